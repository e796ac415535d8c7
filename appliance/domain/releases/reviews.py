"""Reviews: a reviewer's decision on one adapter for one unit."""

from __future__ import annotations

from sys import intern

from pydantic import Field, field_validator

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import (
    APPROVALS,
    PARTS,
    Conditions,
    Decision,
    Delegated,
    Delegation,
    Opened,
    ReviewRecord,
    delegation_key,
)
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Commitment, Digest, Identifier, Time, add_seconds
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, is_unit, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.data.standing import sets_stand
from appliance.domain.governance.delegations import apart
from appliance.domain.releases import approval
from appliance.domain.releases.adapters import OnAdapter, find_adapter, take_adapter
from appliance.domain.releases.tiers import current_request, needed_for, reviewed_until
from appliance.domain.releases.verdicts import unaccepted


class Review(OnAdapter):
    """`request`: the release request that it is made on. `on_behalf_of`: who delegated the field to the signer.
    `opened`: what of the review page was shown to the signer before, as the program says with which they signed."""

    verb = "review"
    decision: Decision
    unit: Identifier
    field: Identifier
    meaning: Commitment = Field(description="what the signature means, as shown to the signer (21 CFR 11.50)")
    valid_until: Time | None = Field(description="until when an approval counts; no other decision has a date")
    request: Digest | None
    conditions: Conditions | None
    on_behalf_of: Identifier | None
    opened: tuple[Opened, ...] = Field(max_length=len(PARTS), description="by part, each once; empty: nothing is said")

    @field_validator("opened")
    @classmethod
    def _in_one_order(cls, opened: tuple[Opened, ...]) -> tuple[Opened, ...]:
        names = [one.part for one in opened]
        if names != sorted(set(names)):
            raise ValueError(f"expected each part once, by name, got {', '.join(names)}")
        return opened

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


class ReviewRecorded(Ordered):
    type = "review.recorded"


def may_review(state: State, order: Review, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = _authority(state, order, signer, now) + approval.duties(adapter, signer.name)
    if order.on_behalf_of is not None:
        reasons += approval.duties(adapter, order.on_behalf_of)
    if not is_unit(state, order.unit):
        reasons.append(f"unit: expected an enrolled one, got {order.unit}")
    if adapter.purpose != "release":
        reasons.append(f"adapter {order.name}: expected one made for release, got one made as a {adapter.purpose}")
    if adapter.revoked is not None:
        reasons.append(f"adapter {order.name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    reasons += sets_stand(state, adapter.sets) if order.decision in APPROVALS else []
    reasons += _on_request(state, adapter, order, now) + _worded(adapter, order)
    if order.decision in APPROVALS:
        reasons += unaccepted(state, adapter, needed_for(state, adapter, order.unit).required_fields, now)
    return reasons + _dated(state, order, now)


def _authority(state: State, order: Review, signer: Principal, now: Time) -> Reasons:
    """The signer's own field, or one that was delegated to them until a time that has not come."""
    if order.on_behalf_of is None:
        return needs(signer, f"reviewer:{order.field}")
    delegation = _delegation(state, order)
    if delegation is None or delegation.until <= state.site.time_for(delegation.index, now):
        got = "none" if delegation is None else f"one that ended at {delegation.until}"
        by = f"a delegation of {order.field} by {order.on_behalf_of} to {signer.name} that stands at {now}"
        return [f"on behalf of: expected {by}, got {got}"]
    if reasons := apart(state, signer.name):
        return [f"on behalf of: {reason}" for reason in reasons]  # a role that was granted since
    delegator, key = state.principals.get(order.on_behalf_of), state.keys.get(delegation.keyid)
    if delegator is None or not delegator.has(f"reviewer:{order.field}"):
        return [f"on behalf of: expected {order.on_behalf_of} to be a standing reviewer of {order.field}"]
    if key is None or not key.counts(delegation.index):
        return [f"on behalf of: expected a delegation by a key that counts, got that of entry {delegation.index}"]
    return []


def _delegation(state: State, order: Review) -> Delegation | None:
    return state.delegations.get(delegation_key(order.on_behalf_of or "", order.signer, order.field))


def _on_request(state: State, adapter: Adapter, order: Review, now: Time) -> Reasons:
    """On the request in force. Once its time has passed, only who approved it before approves it again."""
    request = current_request(state, adapter, order.unit)
    expected = None if request is None else request.order
    if order.request != expected:
        of = "none, since none stands" if request is None else f"{expected}, that of entry {request.index}"
        return [f"request: expected {of}, got {order.request or 'none'}"]
    if order.decision not in APPROVALS:
        return []
    if request is None:
        required = state.parameters.requests_required
        return [f"request: expected a standing one for {order.unit}, as policy requires, got none"] if required else []
    until = reviewed_until(state.parameters, request)
    if until is None:
        return [f"request: expected exposure and purpose by the policy in force, got that of entry {request.index}"]
    again = any(r.reviewer == order.signer and r.request == order.request and r.approves for r in adapter.reviews)
    if until <= state.site.time_for(request.index, now) and not again:
        return [f"request: expected an approval by {until}, got one at {now}: it has to be requested again"]
    return []


def _worded(adapter: Adapter, order: Review) -> Reasons:
    """Conditions where the decision has some, a reason where somebody must act on it, and something to withdraw."""
    reasons, conditions = [], order.conditions
    if (order.decision == "approve-with-conditions") != (conditions is not None and not conditions.say_nothing()):
        expected = "some" if order.decision == "approve-with-conditions" else f"none of the decision {order.decision}"
        reasons.append(f"conditions: expected {expected}, got {'none' if conditions is None else 'others'}")
    if order.reason is None and (order.request is not None or order.decision not in ("approve", "reject")):
        reasons.append(f"reason: expected one for the decision {order.decision}, got none")
    if order.decision == "withdraw":
        own = [
            r
            for r in adapter.reviews
            if (*approval.voice(r), r.unit) == (order.signer, order.on_behalf_of or "", order.unit)
        ]
        if not own or own[-1].decision == "withdraw":
            place = "" if order.on_behalf_of is None else f" in the place of {order.on_behalf_of}"
            reasons.append(f"decision: expected one of {order.signer}{place} to withdraw, got none that stands")
    return reasons


def _dated(state: State, order: Review, now: Time) -> Reasons:
    """An approval ends at its date. A rejection counts until its reviewer replaces it, so a date would be false."""
    until, limit = order.valid_until, add_seconds(now, state.parameters.approval_lifetime_s)
    if order.decision not in APPROVALS:
        what = {"reject": "a rejection"}.get(order.decision, f"the decision {order.decision}")
        return [] if until is None else [f"valid until: expected none, since {what} has no date, got {until}"]
    if until is None:
        return [f"valid until: expected a time after {now}, since an approval has a date, got none"]
    if until <= now:
        return [f"valid until: expected a time after {now}, got {until}"]
    return [] if until <= limit else [f"valid until: expected at most {limit}, got {until}"]


def review_recorded(case: Case) -> Changes:
    order = case.order(Review)
    adapter = take_adapter(case, order)
    delegation = _delegation(case.state, order)
    record = ReviewRecord(
        index=case.entry.index,
        order=case.accepted.digest,
        reviewer=intern(order.signer),
        keyid=case.accepted.keyid,
        field=intern(order.field),
        unit=intern(order.unit),
        decision=order.decision,
        valid_until=order.valid_until,
        time=case.entry.time,
        request=order.request,
        conditions=order.conditions,
        on_behalf_of=None
        if order.on_behalf_of is None or delegation is None
        else Delegated(delegation.delegator, delegation.keyid, delegation.index),
    )
    changed = adapter.model_copy(update={"reviews": (*adapter.reviews, record)})
    return [(case.state.adapters, order.name, changed)]


_MEANINGS: dict[Decision, str] = {
    "approve": "Your approval of exactly these bytes, for this unit, until this date.",
    "approve-with-conditions": "Your approval of exactly these bytes, for this unit, until this date, while every "
    "condition holds. The service enforces them.",
    "request-changes": "You do not approve what is asked for. Nothing answers until it is asked for again, or you "
    "replace this.",
    "reject": "Your rejection of exactly these bytes, for this unit. It counts until you replace it.",
    "withdraw": "Your last decision on these bytes, for this unit, no longer counts.",
}


def _meaning(order: Review) -> str:
    return _MEANINGS[order.decision]


VERBS = (
    Verb(
        Review,
        may=may_review,
        signers=("reviewer:FIELD",),
        meaning=_meaning,
        summary="Your decision on an adapter for a unit: approve, ask for changes, reject, or take a decision back.",
        event=ReviewRecorded,
        apply=review_recorded,
        changes_answers=True,
    ),
)
