"""Reviews: decisions of a reviewer on one adapter for one unit."""

from __future__ import annotations

from sys import intern
from typing import Any

from pydantic import field_validator

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import (
    APPROVALS,
    PARTS,
    Conditions,
    Decision,
    Delegation,
    Delegator,
    OpenedPagePart,
    ReviewRecord,
    delegation_key,
    has_too_many,
)
from appliance.domain.core.entry import Ordered
from appliance.domain.core.example import NOW, example_commitment, example_digest
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Commitment, Digest, Identifier, Time, add_seconds
from appliance.domain.core.order import derived, entered
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.data.validity import refuse_invalid_sets
from appliance.domain.governance.delegations import refuse_delegate
from appliance.domain.releases import approval
from appliance.domain.releases.adapters import (
    AdapterEntity,
    AdapterOrder,
    complete_adapter,
    find_adapter,
    refuse_candidate,
    take_adapter,
)
from appliance.domain.releases.requests import (
    REQUEST_DIFFERS,
    REQUEST_MISSING,
    find_current_request,
    find_requirement,
    find_review_deadline,
)
from appliance.domain.releases.verdicts import refuse_unaccepted_verdict
from appliance.errors import RefusalCode, Rejected

DELEGATION_MISSING = RefusalCode(
    "delegation-missing",
    "state",
    "{delegator} has not delegated the review function {function} to {id}.",
    "Decide in your own name, or ask {delegator} to delegate it.",
)
DELEGATION_ENDED = RefusalCode(
    "delegation-ended",
    "state",
    "The delegation of entry {id} ended at {until}.",
    "Decide in your own name, or ask {delegator} to delegate {function} again.",
)
DELEGATOR_NOT_REVIEWER = RefusalCode(
    "delegator-not-reviewer",
    "state",
    "{delegator}, who delegated {function} by entry {id}, is no longer a reviewer of it.",
    "Decide in your own name.",
)
DELEGATION_KEY_INVALID = RefusalCode(
    "delegation-key-invalid",
    "state",
    "The delegation of entry {id} was signed with a key that was revoked from an earlier entry on.",
    "Decide in your own name, or ask {delegator} to delegate {function} again.",
)
REQUEST_NOT_COVERED = RefusalCode(
    "request-not-in-policy",
    "policy",
    "The valid policy does not list the exposure or the purpose of the release request of entry {id}.",
    "The release must be requested again.",
)
REVIEW_TOO_LATE = RefusalCode(
    "review-too-late",
    "policy",
    "The release request of entry {id} could be approved until {until}. It is {now}.",
    "The release must be requested again.",
)
CONDITIONS_MISSING = RefusalCode(
    "conditions-missing",
    "order",
    "The decision approve-with-conditions needs a condition.",
    "Give a condition, or decide approve.",
    "conditions.not_before",
)
CONDITIONS_NOT_ALLOWED = RefusalCode(
    "conditions-not-allowed",
    "order",
    "The decision {decision} has no conditions.",
    "Leave them out, or decide approve-with-conditions.",
    "conditions.not_before",
)
REASON_MISSING = RefusalCode(
    "reason-missing",
    "order",
    "The decision {decision} needs a reason.",
    "Write a reason: somebody must act on it.",
    "reason",
)
NOTHING_TO_WITHDRAW = RefusalCode(
    "nothing-to-withdraw",
    "state",
    "{id} has no valid decision on this adapter that can be withdrawn.",
    "Record a decision instead.",
)
DATE_NOT_ALLOWED = RefusalCode(
    "review-date-not-allowed",
    "order",
    "The decision {decision} has no date.",
    "Leave the date empty.",
    "valid_until",
)
DATE_MISSING = RefusalCode(
    "review-date-missing",
    "order",
    "An approval needs a date until which it is valid.",
    "Give a time after {now}.",
    "valid_until",
)
DATE_OUT_OF_RANGE = RefusalCode(
    "review-date-out-of-range",
    "policy",
    "The approval would be valid until {valid_until}. It must end after {now} and, by policy, not after {latest}.",
    "Give a time in this period.",
    "valid_until",
)


class ReviewAdapter(AdapterOrder):
    """A signed decision of a reviewer on an adapter for a unit.

    `request`: digest of the release request that it decides on. `on_behalf_of`: the person who delegated the review
    function to the signer. `opened`: the parts of the review page that the signer had opened, as reported by the
    program with which they signed.
    """

    action = "review"
    decision: Decision
    unit: Identifier
    review_function: Identifier
    meaning: Commitment = entered(
        "one sentence that your signature confirms; others read it",
        description="meaning of the signature, as shown to the signer (21 CFR 11.50)",
    )
    valid_until: Time | None = entered(
        "a day such as 2027-01-31, or a time from now such as 30d",
        needed="for an approval",
        description="time at which an approval expires; other decisions have no date",
    )
    request: Digest | None = derived()
    conditions: Conditions | None
    on_behalf_of: Identifier | None = entered("who delegated this to you", part="In another person's place")
    reason: Commitment | None = entered(
        "why you decide so, in your words; the requester and your colleagues read it, and it can be erased later",
        needed="if a release was requested, and for changes and withdrawals",
        default=None,
        description="why, in your words; it can be erased later",
    )
    opened: tuple[OpenedPagePart, ...] = derived(
        max_length=len(PARTS), description="opened parts of the review page, each once, by name"
    )

    @field_validator("opened")
    @classmethod
    def _check_opened_order(cls, opened: tuple[OpenedPagePart, ...]) -> tuple[OpenedPagePart, ...]:
        names = [opened_part.part for opened_part in opened]
        if names != sorted(set(names)):
            raise ValueError(f"expected each part once, by name, got {', '.join(names)}")
        return opened

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


def complete_review(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the adapter's fields, the unit's valid release request, and the opened parts.

    A given request, which the caller has shown, is kept.
    """
    request = given.values.get("request")
    if "request" not in given.values:
        request = lookup.find_request(given.word("adapter"), given.word("unit"))
    found = request if isinstance(request, ProvenValue) else ProvenValue(request)
    opened = ProvenValue(given.values.get("opened", ()))
    return {**complete_adapter(given, lookup), "request": found, "opened": opened}


class ReviewRecorded(Ordered):
    """The entry that a review was recorded."""

    type = "review.recorded"


def authorise_review(state: State, order: ReviewAdapter, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a review."""
    reasons = _check_delegation(state, order, signer, now)
    if order.on_behalf_of is not None and _find_delegation(state, order) is None:
        return reasons
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons += approval.refuse_makers(adapter, signer.name)
    if order.on_behalf_of is not None:
        reasons += approval.refuse_makers(adapter, order.on_behalf_of)
    reasons += refuse_candidate(state, adapter, order.unit)
    reasons += refuse_invalid_sets(state, adapter.sets) if order.decision in APPROVALS else []
    reasons += _check_request(state, adapter, order, now) + _check_wording(adapter, order)
    signed = [review for review in adapter.reviews if review.reviewer == signer.name]
    own = [review for review in signed if review.unit == order.unit]
    # A person who has signed the most reviews can still reject, once for each unit.
    if order.decision != "reject" or (own and own[-1].decision == "reject"):
        reasons += has_too_many(signer.name, f"reviews for {order.unit}", order.name, len(own))
        reasons += has_too_many(signer.name, "reviews", order.name, len(signed), for_all_units=True)
    if order.decision in APPROVALS:
        approvers = (signer.name, order.on_behalf_of)
        reasons += approval.refuse_approving_activator(state, adapter, order.unit, approvers)
        reasons += refuse_unaccepted_verdict(
            state, adapter, find_requirement(state, adapter, order.unit).required_functions, now
        )
    return reasons + _check_date(state, order, now)


def _check_delegation(state: State, order: ReviewAdapter, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons if the signer decides for a delegator whose delegation is not valid."""
    if order.on_behalf_of is None:
        return []
    delegation = _find_delegation(state, order)
    if delegation is None:
        delegator, function = Rejected(order.on_behalf_of), Rejected(order.review_function)
        return [DELEGATION_MISSING(f"principal:{signer.name}", delegator=delegator, function=function)]
    return delegation_reasons(state, delegation, now)


def delegation_reasons(state: State, delegation: Delegation, now: Time) -> Reasons:
    """Return the refusal reasons if the delegation is not valid now."""
    function, delegator, subject = delegation.review_function, delegation.delegator, f"delegation:{delegation.index}"
    if delegation.until <= state.site.time_for(delegation.index, now):
        return [DELEGATION_ENDED(subject, until=delegation.until, delegator=delegator, function=function)]
    if reasons := refuse_delegate(state, delegation.delegate):
        return reasons  # because of a role that the delegate got later
    person, key = state.principals.get(delegator), state.keys.get(delegation.keyid)
    if person is None or not person.has(f"reviewer:{function}"):
        return [DELEGATOR_NOT_REVIEWER(subject, delegator=delegator, function=function)]
    if key is None or not key.counts(delegation.index):
        return [DELEGATION_KEY_INVALID(subject, delegator=delegator, function=function)]
    return []


def list_delegations(state: State, delegate: str, now: Time) -> list[Delegation]:
    """Return the valid delegations by which this person decides on behalf of another."""
    own = [delegation for delegation in state.delegations.values() if delegation.delegate == delegate]
    return [delegation for delegation in own if not delegation_reasons(state, delegation, now)]


def _find_delegation(state: State, order: ReviewAdapter) -> Delegation | None:
    return state.delegations.get(delegation_key(order.on_behalf_of or "", order.signer, order.review_function))


def _check_request(state: State, adapter: Adapter, order: ReviewAdapter, now: Time) -> Reasons:
    """Return the refusal reasons if the review is not on the unit's current request, or comes too late for it.

    After the time for reviews only a person who approved this request before may approve it again.
    """
    request = find_current_request(state, adapter, order.unit)
    expected = None if request is None else request.order
    if order.request != expected:
        return [REQUEST_DIFFERS(current="none" if request is None else request.index)]
    if order.decision not in APPROVALS:
        return []
    if request is None:
        required = state.parameters.requests_required
        return [REQUEST_MISSING(f"adapter:{order.name}")] if required else []
    until = find_review_deadline(state.parameters, request)
    if until is None:
        return [REQUEST_NOT_COVERED(f"request:{request.index}")]
    approved_before = any(
        r.reviewer == order.signer and r.request == order.request and r.approves for r in adapter.reviews
    )
    if until <= state.site.time_for(request.index, now) and not approved_before:
        return [REVIEW_TOO_LATE(f"request:{request.index}", until=until, now=now)]
    return []


def _check_wording(adapter: Adapter, order: ReviewAdapter) -> Reasons:
    """Return the refusal reasons if conditions or a reason are missing or superfluous, or if nothing can be withdrawn.

    A reason is required where somebody must act on the decision.
    """
    reasons, conditions = [], order.conditions
    if (order.decision == "approve-with-conditions") != (conditions is not None and not conditions.say_nothing()):
        missing = order.decision == "approve-with-conditions"
        reasons.append(CONDITIONS_MISSING() if missing else CONDITIONS_NOT_ALLOWED(decision=order.decision))
    if order.reason is None and (order.request is not None or order.decision not in ("approve", "reject")):
        reasons.append(REASON_MISSING(decision=order.decision))
    if order.decision == "withdraw":
        own = [
            r
            for r in adapter.reviews
            if (*approval.reviewer_key(r), r.unit) == (order.signer, order.on_behalf_of or "", order.unit)
        ]
        if not own or own[-1].decision == "withdraw":
            reasons.append(NOTHING_TO_WITHDRAW(f"principal:{order.signer}"))
    return reasons


def _check_date(state: State, order: ReviewAdapter, now: Time) -> Reasons:
    """Return the refusal reasons against the review's date.

    Approvals must have one. Rejections have none, since they are valid until their reviewer replaces them.
    """
    until, limit = order.valid_until, add_seconds(now, state.parameters.approval_lifetime_s)
    if order.decision not in APPROVALS:
        return [] if until is None else [DATE_NOT_ALLOWED(decision=order.decision)]
    if until is None:
        return [DATE_MISSING(now=now)]
    return [] if now < until <= limit else [DATE_OUT_OF_RANGE(now=now, latest=limit, valid_until=until)]


def apply_review(case: Case) -> Changes:
    """Record a review."""
    order = case.order(ReviewAdapter)
    adapter = take_adapter(case, order)
    delegation = _find_delegation(case.state, order)
    record = ReviewRecord(
        index=case.entry.index,
        order=case.accepted.digest,
        reviewer=intern(order.signer),
        keyid=case.accepted.keyid,
        review_function=intern(order.review_function),
        unit=intern(order.unit),
        decision=order.decision,
        valid_until=order.valid_until,
        time=case.entry.time,
        request=order.request,
        conditions=order.conditions,
        on_behalf_of=None
        if order.on_behalf_of is None or delegation is None
        else Delegator(delegation.delegator, delegation.keyid, delegation.index),
    )
    changed = adapter.model_copy(update={"reviews": (*adapter.reviews, record)})
    return [(case.state.adapters, order.name, changed)]


_MEANINGS: dict[Decision, str] = {
    "approve": "Your approval of exactly this version, for this unit, until this date.",
    "approve-with-conditions": "Your approval of exactly this version, for this unit, until this date, while every "
    "condition holds. The service enforces them.",
    "request-changes": "You ask for changes. The adapter cannot serve the unit until its release is requested again, "
    "or you decide again.",
    "reject": "Your rejection of exactly this version, for this unit. It is valid until you decide again.",
    "withdraw": "Your last decision on this version, for this unit, is no longer valid.",
}


def _meaning(order: ReviewAdapter) -> str:
    return _MEANINGS[order.decision]


_EXAMPLE: dict[str, Any] = {
    "signer": "rita",
    "reason": example_commitment("reason"),
    "valid_until": add_seconds(NOW, 350 * 86_400),
    "request": example_digest("request"),
}


ACTIONS = (
    Action(
        ReviewAdapter,
        title="Review an adapter",
        complete=complete_review,
        authorise=authorise_review,
        signers=("reviewer:FUNCTION", "a delegate"),
        meaning=_meaning,
        summary="Your decision on an adapter for a unit: approve, ask for changes, reject, or take a decision back.",
        event=ReviewRecorded,
        apply=apply_review,
        recheck_slots=True,
        facts=ActionFacts(
            AdapterEntity, "name", ("unit", "review_function", "decision", "valid_until", "on_behalf_of")
        ),
        example_values=_EXAMPLE,
    ),
)
