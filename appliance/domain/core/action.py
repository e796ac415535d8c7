"""The rows of the action registry: one for each kind of order, and one for each event that no order causes.

Each row is declared in the file of its subject, beside the order, the event and the functions that it names. `actions`
collects the rows; they are the only list of orders and events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, Ordered
from appliance.domain.core.example import make_example
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.lookup import Completion
from appliance.domain.core.order import Order
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, refuse_role
from appliance.domain.core.signatures import AcceptedOrder
from appliance.domain.core.state import State

NEWEST_RULES = 1
"""Newest version of the rules that this build implements (docs/adr/0014-versions-of-meaning.md).

A log is evaluated by version 1 until two administrators adopt a later one.
"""

Rule = Callable[[Case], Changes]
"""A function that returns how an entry of one type changes the state, and raises an error if the entry is not valid."""

Invariant = Callable[..., Reasons]
"""A function of (state, order, signer, now) that returns the refusal reasons of the order; an empty list allows it."""


@dataclass(frozen=True)
class Attachment:
    """A document that its sender submits beside an order. The order contains its digest in the field `role`."""

    role: str
    check: Callable[[Case, Any, bytes], None]
    """A function of (case, order, document) that raises an error if the document is malformed or not the bound one."""
    optional: bool = False
    """True if the order's field can be null, in which case there is no document."""

    def of(self, order: Order) -> bool:
        """Return True if this order binds a document."""
        return not self.optional or getattr(order, self.role) is not None


Signing = Callable[[Order, Principal], tuple[str, bool]]
"""A function that returns a kind of signer in words, and True if the principal is of this kind for the order.

The words are empty if the order has no signer of this kind.
"""


def _holds(role: str) -> Signing:
    return lambda order, signer: (role, signer.has(role))


def _holds_any(kind: str) -> Signing:
    return lambda order, signer: (kind, any(signer.has(role) for role in signer.roles if role.startswith(f"{kind}:")))


def _holds_in(kind: str, member: str) -> Signing:
    """Return the signer who holds a role in the order's own unit or review function, or in any if it names none."""

    any_of = _holds_any(kind)

    def find(order: Order, signer: Principal) -> tuple[str, bool]:
        place = getattr(order, member, None)
        if place is None:
            return any_of(order, signer)
        return f"{kind}:{place}", signer.has(f"{kind}:{place}")

    return find


def _is_unit_of(order: Order, signer: Principal) -> tuple[str, bool]:
    unit = getattr(order, "unit", None) or getattr(order, "principal", None)
    return f"the unit {unit}", signer.has("unit") and signer.name == unit


def _owns_key(order: Order, signer: Principal) -> tuple[str, bool]:
    owner = getattr(order, "principal", None)
    return f"the key's owner {owner}", signer.name == owner


def _can_have_ordered(order: Order, signer: Principal) -> tuple[str, bool]:
    """Return True for everyone whose role lets them order runs and imports. `authorise` compares the person."""
    return "who ordered it", signer.has("operator") or signer.has("validator")


def _can_have_signed(order: Order, signer: Principal) -> tuple[str, bool]:
    """Return True for everyone but units, which sign no order that waits. `authorise` compares the person."""
    return "who signed it", not signer.has("unit")


def _can_be_delegate(order: Order, signer: Principal) -> tuple[str, bool]:
    """Return True for every person if the order is on behalf of another. `authorise` looks for the delegation."""
    delegator = getattr(order, "on_behalf_of", None)
    return (f"a delegate of {delegator}", not signer.has("unit")) if delegator is not None else ("", False)


_SIGNERS: Mapping[str, Signing] = {
    "reviewer:FUNCTION": _holds_in("reviewer", "review_function"),
    "release-owner:UNIT": _holds_in("release-owner", "unit"),
    "any reviewer": _holds_any("reviewer"),
    "the unit": _is_unit_of,
    "the key's owner": _owns_key,
    "who ordered it": _can_have_ordered,
    "who signed it": _can_have_signed,
    "a delegate": _can_be_delegate,
}
"""Kinds of signers that depend on the order. All others are names of roles."""


@dataclass(frozen=True)
class Action:
    """A kind of order that a person can sign, with its rule, its invariant and its event.

    `countersign` alone has no event of its own: it puts the event of the countersigned order into the log.
    """

    order: type[Order]
    authorise: Invariant
    meaning: str | Callable[[Any], str]
    """The meaning of the signature, shown before signing (21 CFR 11.50).

    It is a function of the order where it depends on the order.
    """
    signers: tuple[str, ...]
    """Roles that may sign the order, and relations to what it is about.

    `refuse_signer` decides by them before `authorise` is called, in the service and in the state replay, so `authorise`
    need not check them again. docs/reference/actions.md lists them.
    """
    summary: str = ""
    """A description of the order for a reader who chooses one; empty where `meaning` is a text and describes it."""
    event: type[Ordered] | None = None
    apply: Rule | None = None
    two_administrators: bool | Callable[[State, Any], bool] = False
    """True if the order changes who has power or what can be known, and therefore needs a second administrator.

    It is a function of (state, order) where only some orders of the action need one.
    """
    attachment: Attachment | None = None
    recheck_slots: bool = False
    """True if all slots and all unfinished runs are checked again after the order."""
    body: Callable[[State], Mapping[str, object]] | None = None
    """A function of the state before the entry that returns the event's fields other than `policy`."""
    evidence: Callable[[State, AcceptedOrder], Mapping[str, bytes]] | None = None
    """A function that returns the documents that the service adds beside the order, by role; the rule compares them."""
    facts: ActionFacts | None = None
    """The facts for Cedar policies; None if the order is decided as several orders of another action."""
    example_values: Mapping[str, Any] = field(kw_only=True)
    """The signer of the example, and its fields that have other values than usual on the example site."""
    title: str = field(kw_only=True)
    """The action's title for people: a verb and what it acts on, such as "Revoke a key"."""
    has_form: bool = True
    """False if the order can be made on the command line only: it needs large files, a unit's key or another trust."""
    complete: Completion | None = None
    """A function that fills the derived fields of the order from a `Lookup`, in the client and in the console."""
    since: int = 1
    """First version of the rules to which this row applies; an earlier row of the action applies to earlier entries."""

    @cached_property
    def example(self) -> Order:
        """Return an order that the rules accept on the example site (`actions/example.py`)."""
        return make_example(self.order, **self.example_values)

    @property
    def name(self) -> str:
        return self.order.action

    def refuse_signer(self, order: Order, signer: Principal) -> Reasons:
        """Return one refusal reason if the signer has none of the roles and relations in `signers`, else an empty list.

        The reason depends on the order and the signer alone, so it contains no facts of the log that the signer may
        not read.
        """
        kinds = [_SIGNERS.get(kind, _holds(kind)) for kind in self.signers]
        found = [kind(order, signer) for kind in kinds]
        if any(fits for _, fits in found):
            return []
        needed = {kind: words for kind, (words, _) in zip(self.signers, found, strict=True) if words}
        return [refuse_role(signer.name, signer.roles, tuple(needed.values()), tuple(needed))]

    def needs_second(self, state: State, order: Order) -> bool:
        """Return True if this order takes effect only once a second administrator has signed.

        A site with a single administrator has no second one.
        """
        needed = self.two_administrators
        return not state.site.single_administrator and (needed(state, order) if callable(needed) else needed)

    def attachment_of(self, order: Order) -> Attachment | None:
        """Return the document that must accompany this order, or None."""
        return self.attachment if self.attachment is not None and self.attachment.of(order) else None

    @property
    def description(self) -> str:
        """Return the description of the order that is shown before its fields are filled in."""
        return self.meaning if isinstance(self.meaning, str) else self.summary

    def explain(self, order: Order) -> str:
        return self.meaning if isinstance(self.meaning, str) else self.meaning(order)


@dataclass(frozen=True)
class EventRule:
    """An event that the service records without an order, and the rule by which it changes the state."""

    event: type[Event]
    apply: Rule
    since: int = 1
    """First version of the rules to which this row applies; an earlier row of the event applies to earlier entries."""


def leave_unchanged(case: Case) -> Changes:
    """Return no changes: the rule of an event that is recorded only."""
    return []
