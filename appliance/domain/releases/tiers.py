"""The tier of materiality of a release request, which request is in force, and which approvals went stale."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.domain.core.decisions import ReleaseRequest, ReviewRecord
from appliance.domain.core.names import Time, add_seconds
from appliance.domain.core.policy import Parameters, Tier
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.state import State
from appliance.domain.data.standing import sets_stand


def tier_for(parameters: Parameters, exposure: str, purpose: str) -> Tier | None:
    """Exposure times purpose, each by its place in the policy's list, counted from 1; None for a word that is not in
    it."""
    if exposure not in parameters.exposures or purpose not in parameters.purposes:
        return None
    score = (parameters.exposures.index(exposure) + 1) * (parameters.purposes.index(purpose) + 1)
    return [tier for tier in parameters.tiers if tier.from_score <= score][-1]


def tier_of(parameters: Parameters, request: ReleaseRequest) -> Tier | None:
    """By the policy in force. What an emergency opened has the highest."""
    if request.exposure is None or request.purpose is None:
        return parameters.tiers[-1]
    return tier_for(parameters, request.exposure, request.purpose)


def current_request(state: State, adapter: Adapter, unit: str) -> ReleaseRequest | None:
    """The unit's last request, unless it was withdrawn or its key does not count: an earlier one never stands again."""
    last = next((request for request in reversed(adapter.requests) if request.unit == unit), None)
    return last if last is not None and last.withdrawn is None and _counts(state, last) else None


def _counts(state: State, request: ReleaseRequest) -> bool:
    key = state.keys.get(request.keyid)
    return key is not None and key.principal == request.requested_by and key.counts(request.index)


def reviewed_until(parameters: Parameters, request: ReleaseRequest) -> Time | None:
    """Until when it may be approved; None where policy no longer knows its tier."""
    tier = tier_of(parameters, request)
    return None if tier is None else add_seconds(request.time, tier.review_s)


def reattested_by(state: State, adapter: Adapter, review: ReviewRecord) -> Time | None:
    """When an approval on the standing request has to be made again; None of one that was made on none."""
    request = current_request(state, adapter, review.unit)
    tier = None if request is None else tier_of(state.parameters, request)
    return None if tier is None or review.request is None else add_seconds(review.time, tier.reattest_s)


def stale(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> str | None:
    """Why an approval is of something else than what is asked for now, too old, or rests on a validation set that was
    revoked; None where it is none of these."""
    what, request = f"review {review.index}", current_request(state, adapter, review.unit)
    if review.approves and (revoked := sets_stand(state, adapter.sets)):
        return f"{what}: {revoked[0]}"
    if request is None:
        return None if review.request is None else f"{what}: expected its release request to stand, got none that does"
    if review.request != request.order:
        got = "one made on none" if review.request is None else f"one of {review.request}"
        return f"{what}: expected one on the release request of entry {request.index}, got {got}"
    if request.verdict != adapter.verdict and request.kind == "request":
        return f"{what}: expected a release request of the verdict {adapter.verdict}, got {request.verdict}"
    if tier_of(state.parameters, request) is None:
        asked = f"{request.exposure} and {request.purpose}"
        return f"{what}: expected a release request by words of the policy in force, got {asked}"
    again = reattested_by(state, adapter, review)
    if again is not None and again <= now:
        return f"{what}: expected one that was made again by {again}, got one of {review.time}"
    return None


def unauthorised(state: State, adapter: Adapter, tier: Tier | None) -> str | None:
    """What the tier misses of the run that made the adapter; None where it asks for nothing, or a second person let the
    run begin, under a key that counts."""
    if tier is None or not tier.authorise_runs:
        return None
    made = adapter.authorised
    key = None if made is None else state.keys.get(made.keyid)
    if made is not None and key is not None and key.principal == made.by and key.counts(made.index):
        return None
    got = "one that began without" if made is None else f"one by a key that does not count at entry {made.index}"
    wanted = f"one that a second person authorised before it began, as the tier {tier.name} asks"
    return f"run {adapter.run}: expected {wanted}, got {got}; order a run for that tier"


@dataclass(frozen=True, slots=True)
class Needed:
    """What a release needs of reviewers: by policy, and more where the tier of its request asks for more."""

    reviewers: int
    distinct_fields: int
    required_fields: tuple[str, ...]


def needed(parameters: Parameters, tier: Tier | None) -> Needed:
    if tier is None:
        return Needed(parameters.reviewers, parameters.distinct_fields, parameters.required_fields)
    return Needed(
        max(parameters.reviewers, tier.reviewers),
        max(parameters.distinct_fields, tier.distinct_fields),
        tuple(dict.fromkeys((*parameters.required_fields, *tier.required_fields))),
    )


def needed_for(state: State, adapter: Adapter, unit: str) -> Needed:
    """By the unit's standing request; by policy alone where there is none."""
    request = current_request(state, adapter, unit)
    return needed(state.parameters, None if request is None else tier_of(state.parameters, request))
