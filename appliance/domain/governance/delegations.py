"""Delegations: a reviewer gives the own field to another person for a time."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Delegation, delegation_key
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import EXCLUSIVE_ROLES, Identifier, Time, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs, stands
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb


class Delegate(Order):
    """Replaces an earlier one of the same field to the same person; without a time it ends that."""

    verb = "delegate"
    principal: Identifier
    field: Identifier
    until: Time | None = Field(description="null ends the delegation that is in force")

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class FieldDelegated(Ordered):
    type = "field.delegated"


def may_delegate(state: State, order: Delegate, signer: Principal, now: Time) -> Reasons:
    """Only what the signer holds by role, so that nothing is delegated on; never to who makes adapters."""
    reasons = needs(signer, f"reviewer:{order.field}")
    if order.until is None:
        key = delegation_key(order.signer, order.principal, order.field)
        return reasons if key in state.delegations else [*reasons, "until: expected a delegation to end, got none"]
    limit = add_seconds(now, state.parameters.delegation_lifetime_s)
    if not now < order.until <= limit:
        reasons.append(f"until: expected a time after {now} and not after {limit}, got {order.until}")
    if order.principal == signer.name:
        reasons.append(f"principal: expected another person than the signer, got {order.principal}")
    return reasons + stands(state, order.principal) + apart(state, order.principal)


def apart(state: State, name: str) -> Reasons:
    """What keeps a person from deciding in another's place: asked when a field is delegated, and at each decision."""
    person = state.principals.get(name)
    held = () if person is None else person.roles
    return [
        f"separation of duties: expected a delegate who does not make adapters, enrol, audit or consume, got {name}, "
        f"who is {role}"
        for role in held
        if role in ("operator", *EXCLUSIVE_ROLES)
    ]


def field_delegated(case: Case) -> Changes:
    order = case.order(Delegate)
    key = delegation_key(order.signer, order.principal, order.field)
    if order.until is None:
        return [(case.state.delegations, key, None)]
    row = Delegation(
        delegator=order.signer,
        delegate=order.principal,
        field=order.field,
        until=order.until,
        keyid=case.accepted.keyid,
        index=case.entry.index,
    )
    return [(case.state.delegations, key, row)]


def _meaning(order: Delegate) -> str:
    if order.until is None:
        return "This person no longer decides in your place. What they decided so far still counts."
    return "Until then this person decides on adapters in your place, for this field. You answer for it."


VERBS = (
    Verb(
        Delegate,
        may=may_delegate,
        meaning=_meaning,
        summary="Another reviewer decides on adapters in your place, for one field, until a date; or no longer does.",
        signers=("reviewer:FIELD",),
        event=FieldDelegated,
        apply=field_delegated,
    ),
)
