"""Reviews: a reviewer's decision on one adapter for one unit."""

from __future__ import annotations

from sys import intern
from typing import Literal

from pydantic import Field

from appliance.domain.core.case import Case, Puts
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
    valid_until: Time

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
    if order.valid_until <= now:
        reasons.append(f"valid until: expected a time after {now}, got {order.valid_until}")
    limit = add_seconds(now, state.parameters.approval_lifetime_s)
    if order.valid_until > limit:
        reasons.append(f"valid until: expected at most {limit}, got {order.valid_until}")
    return reasons


def review_recorded(case: Case) -> Puts:
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


VERBS = (
    Verb(
        Review,
        may=may_review,
        meaning="Your decision on exactly these bytes, for this unit, until this date.",
        event=ReviewRecorded,
        apply=review_recorded,
        changes_answers=True,
    ),
)
