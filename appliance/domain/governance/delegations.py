"""Delegations: a reviewer lets another person decide for the reviewer's own review function until a time."""

from __future__ import annotations

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Delegation, delegation_key
from appliance.domain.core.entry import Ordered
from appliance.domain.core.example import TOMORROW
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.names import EXCLUSIVE_ROLES, Identifier, Time, add_seconds
from appliance.domain.core.order import Order, Subjects, entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, require_enrolled
from appliance.domain.core.state import State
from appliance.errors import RefusalCode

NO_DELEGATION = RefusalCode(
    "no-delegation", "state", "{id} has not delegated this review function to this person.", "Nothing is to be ended."
)
DELEGATION_END = RefusalCode(
    "delegation-end-out-of-range",
    "policy",
    "Policy lets a delegation end by {latest}. The order says {until}.",
    "Give an end after {now} and not after {latest}.",
)
DELEGATE_IS_SIGNER = RefusalCode(
    "delegate-is-signer", "order", "{id} cannot delegate a review function to themselves.", "Name another person."
)
DELEGATE_HAS_ROLE = RefusalCode(
    "delegate-has-excluding-role",
    "rule",
    "{id} has the role {role}. People who make adapters, enrol people, audit or use adapters do not review them for "
    "others.",
    "Delegate to another person.",
)


class Delegate(Order):
    """An order to delegate a review function to a person.

    It replaces an earlier delegation of the same review function to the same person. If `until` is None, the order ends
    the earlier delegation at once.
    """

    action = "delegate"
    principal: Identifier
    review_function: Identifier
    until: Time | None = entered(
        "a day, or 7d; empty to end the delegation now", description="null ends the valid delegation"
    )

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class ReviewDelegated(Ordered):
    """The event of a delegation or of its end."""

    type = "review.delegated"


def authorise_delegate(state: State, order: Delegate, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a delegation.

    The action's `signers` require that the signer has the review function as a role, so a delegate cannot delegate it
    further. People who make adapters cannot be delegates.
    """
    if order.until is None:
        key = delegation_key(order.signer, order.principal, order.review_function)
        return [] if key in state.delegations else [NO_DELEGATION(f"principal:{signer.name}")]
    reasons: Reasons = []
    limit = add_seconds(now, state.parameters.delegation_lifetime_s)
    if not now < order.until <= limit:
        reasons.append(DELEGATION_END(now=now, latest=limit, until=order.until))
    if order.principal == signer.name:
        reasons.append(DELEGATE_IS_SIGNER(f"principal:{signer.name}"))
    return reasons + require_enrolled(state, order.principal) + refuse_delegate(state, order.principal)


def refuse_delegate(state: State, name: str) -> Reasons:
    """Return the refusal reasons of a delegate whose roles exclude reviews for another person.

    The rules check them when a review function is delegated, and again at each decision of the delegate.
    """
    person = state.principals.get(name)
    roles = () if person is None else person.roles
    return [
        DELEGATE_HAS_ROLE(f"principal:{name}", role=role) for role in roles if role in ("operator", *EXCLUSIVE_ROLES)
    ]


def apply_delegation(case: Case) -> Changes:
    """Apply a delegation or its end."""
    order = case.order(Delegate)
    key = delegation_key(order.signer, order.principal, order.review_function)
    if order.until is None:
        return [(case.state.delegations, key, None)]
    row = Delegation(
        delegator=order.signer,
        delegate=order.principal,
        review_function=order.review_function,
        until=order.until,
        keyid=case.accepted.keyid,
        index=case.entry.index,
    )
    return [(case.state.delegations, key, row)]


def _meaning(order: Delegate) -> str:
    if order.until is None:
        return "This person no longer decides in your place. What they decided so far still counts."
    return "Until then this person decides on adapters in your place, for this review function. You answer for it."


ACTIONS = (
    Action(
        Delegate,
        title="Delegate a review function",
        authorise=authorise_delegate,
        meaning=_meaning,
        summary="Another person decides on adapters in your place, for one review function, until a date. Without a "
        "date, a delegation ends.",
        signers=("reviewer:FUNCTION",),
        event=ReviewDelegated,
        apply=apply_delegation,
        facts=ActionFacts(PrincipalEntity, "principal", ("review_function", "until")),
        example_values={"signer": "rita", "principal": "dana", "until": TOMORROW},
    ),
)
