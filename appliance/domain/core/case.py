"""What a rule sees: the state before, the entry, its typed body, its documents, and the order behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from appliance.domain.core.entry import Entry
from appliance.domain.core.event import Event
from appliance.domain.core.order import Order
from appliance.domain.core.signatures import Accepted, OrderReader
from appliance.domain.core.state import State
from appliance.domain.core.table import Table
from appliance.errors import BadInput, Denied

Change = tuple[Table[Any], str, Any]
Changes = list[Change]
"""(table, key, value or None to remove) of what an entry changes."""

O = TypeVar("O", bound=Order)  # noqa: E741
E = TypeVar("E", bound=Event)


class Case(NamedTuple):
    state: State
    entry: Entry
    body: Event
    documents: Mapping[str, bytes]
    reader: OrderReader
    signed: Accepted | None = None
    """The order that the entry's actor signed."""
    ordered: Order | None = None
    """The order that the entry carries out: the one that was signed, or the one that it endorses. It is authentic, and
    no invariant is against it."""

    @property
    def accepted(self) -> Accepted:
        if self.signed is None:
            raise BadInput(f"{self.place}: order: expected one, got none")
        return self.signed

    @property
    def place(self) -> str:
        """How an error names the entry."""
        return f"entry {self.entry.index} ({self.entry.type})"

    def of(self, model: type[E]) -> E:
        """The body as the type that the rule is for."""
        if not isinstance(self.body, model):
            raise BadInput(f"entry {self.entry.index}: body: expected {model.__name__}, got {type(self.body).__name__}")
        return self.body

    def order(self, model: type[O]) -> O:
        """The order that the entry carries out, as the verb that the rule is for."""
        if not isinstance(self.ordered, model):
            got = "none" if self.ordered is None else self.ordered.verb
            raise Denied(f"{self.place}: order: expected {model.verb}, got {got}")
        return self.ordered

    def require(self, condition: bool, rule: str, expected: object, got: object) -> None:
        """Denied unless the condition holds."""
        if not condition:
            raise Denied(f"{self.place}: {rule}: expected {expected}, got {got}")


def check_walls(case: Case, walls: dict[str, str]) -> None:
    """Every probe was made and every one was refused."""
    through = sorted(name for name, result in walls.items() if result != "refused")
    case.require(bool(walls), "walls", "the worker's probes", "none")
    case.require(not through, "walls", "every probe refused", f"through: {', '.join(through)}")
