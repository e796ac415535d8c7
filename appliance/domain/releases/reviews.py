"""Reviews: a reviewer's decision on one adapter for one unit."""

from __future__ import annotations

from sys import intern
from typing import Literal

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Commitment, Identifier, Time, add_seconds
from appliance.domain.core.records import Principal, ReviewRecord
from appliance.domain.core.roles import Reasons, is_unit, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.releases import approval
from appliance.domain.releases.adapters import OnAdapter, find_adapter
from appliance.errors import Denied


class Review(OnAdapter):
    verb = "review"
    decision: Literal["approve", "reject"]
    unit: Identifier
    field: Identifier
    meaning: Commitment = Field(description="what the signature means, as shown to the signer (21 CFR 11.50)")
    valid_until: Time | None = Field(description="until when an approval counts; a rejection has no date")

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


class ReviewRecorded(Ordered):
    type = "review.recorded"


def may_review(state: State, order: Review, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = needs(signer, f"reviewer:{order.field}") + approval.duties(adapter, signer.name)
    if not is_unit(state, order.unit):
        reasons.append(f"unit: expected an enrolled one, got {order.unit}")
    if adapter.purpose != "release":
        reasons.append(f"adapter {order.name}: expected one made for release, got one made as a {adapter.purpose}")
    if adapter.revoked is not None:
        reasons.append(f"adapter {order.name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    return reasons + _dated(state, order, now)


def _dated(state: State, order: Review, now: Time) -> Reasons:
    """An approval ends; a rejection stands until its reviewer replaces it, so that a date would say what is not so."""
    until, limit = order.valid_until, add_seconds(now, state.parameters.approval_lifetime_s)
    if order.decision == "reject":
        return [] if until is None else [f"valid until: expected none, since a rejection has no date, got {until}"]
    if until is None:
        return [f"valid until: expected a time after {now}, since an approval has a date, got none"]
    if until <= now:
        return [f"valid until: expected a time after {now}, got {until}"]
    return [] if until <= limit else [f"valid until: expected at most {limit}, got {until}"]


def review_recorded(case: Case) -> Changes:
    order = case.order(Review)
    adapter = case.state.adapters.get(order.name)
    if adapter is None:
        raise Denied(f"entry {case.entry.index}: adapter: expected a sealed one, got {order.name}")
    record = ReviewRecord(
        index=case.entry.index,
        order=case.accepted.digest,
        reviewer=intern(order.signer),
        keyid=case.accepted.keyid,
        field=intern(order.field),
        unit=intern(order.unit),
        decision=order.decision,
        valid_until=order.valid_until,
    )
    changed = adapter.model_copy(update={"reviews": (*adapter.reviews, record)})
    return [(case.state.adapters, order.name, changed)]


def _meaning(order: Review) -> str:
    if order.decision == "reject":
        return "Your rejection of exactly these bytes, for this unit. It stands until you replace it."
    return "Your approval of exactly these bytes, for this unit, until this date."


VERBS = (
    Verb(
        Review,
        may=may_review,
        signers=("reviewer:FIELD",),
        meaning=_meaning,
        event=ReviewRecorded,
        apply=review_recorded,
        changes_answers=True,
    ),
)
