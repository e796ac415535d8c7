"""What a rule sees: the state before, the entry, its typed body, its documents and the order that was accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from appliance.domain.entry import Entry
from appliance.domain.events import Event, Ordered
from appliance.domain.invariants import reasons_against
from appliance.domain.orders import Order
from appliance.domain.signatures import Accepted
from appliance.domain.state import State
from appliance.domain.table import Table
from appliance.errors import BadInput, Denied

Puts = list[tuple[Table[Any], str, Any]]
"""(table, key, value or None to remove) of what an entry changes."""

O = TypeVar("O", bound=Order)  # noqa: E741
E = TypeVar("E", bound=Event)


class Case(NamedTuple):
    state: State
    entry: Entry
    body: Event
    documents: Mapping[str, bytes]
    order: Accepted | None = None

    def with_order(self, accepted: Accepted) -> Case:
        return self._replace(order=accepted)

    @property
    def accepted(self) -> Accepted:
        if self.order is None:
            raise BadInput(f"entry {self.entry.index} ({self.entry.type}): order: expected one, got none")
        return self.order

    @property
    def ordered(self) -> Ordered:
        return self.of(Ordered)

    def of(self, model: type[E]) -> E:
        """The body as the type that the rule is for."""
        if not isinstance(self.body, model):
            raise BadInput(f"entry {self.entry.index}: body: expected {model.__name__}, got {type(self.body).__name__}")
        return self.body

    def allowed(self, model: type[O], order: Order | None = None) -> O:
        """The order as the verb that the rule is for, with no invariant against it; Denied carries every reason."""
        found = self.accepted.order if order is None else order
        if not isinstance(found, model) or found.verb != model.verb:  # a verb's class may be made of another's
            raise Denied(
                f"entry {self.entry.index} ({self.entry.type}): order: expected {model.verb}, got {found.verb}"
            )
        reasons = reasons_against(self.state, found, self.entry.time)
        if reasons:
            raise Denied(f"order {found.verb} by {found.signer}", reasons=tuple(reasons))
        return found

    def require(self, condition: bool, rule: str, expected: object, got: object) -> None:
        """Denied unless the condition holds."""
        if not condition:
            raise Denied(f"entry {self.entry.index} ({self.entry.type}): {rule}: expected {expected}, got {got}")
