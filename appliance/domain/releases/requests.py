"""Release requests: their materiality tier, which request is valid, which approvals are stale, and their conditions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import (
    Conditions,
    DailyAnswers,
    ReleaseRequest,
    ReviewRecord,
    answers_key,
    has_too_many,
)
from appliance.domain.core.entry import Ordered
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Commitment, Digest, Identifier, Time, Token, add_seconds, versioned
from appliance.domain.core.order import derived, entered
from appliance.domain.core.policy import Parameters, Tier
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import Reasons, refuse_without_role
from appliance.domain.core.state import Clearance, State
from appliance.domain.data.validity import refuse_invalid_sets
from appliance.domain.releases.adapters import (
    AdapterEntity,
    AdapterOrder,
    complete_adapter,
    find_adapter,
    refuse_candidate,
    take_adapter,
)
from appliance.errors import BadInput, NotFound, QuotaExceeded, Refusal, RefusalCode, Rejected
from appliance.formats.core.timestamp import parse_time

REQUEST_MISSING = RefusalCode(
    "release-request-missing",
    "policy",
    "Policy requires a release request. There is no valid request to release adapter {id} to this unit.",
    "The person who ordered the run must request the release: appliance release request.",
)
REQUEST_ENDED = RefusalCode(
    "review-without-request",
    "state",
    "The approval of entry {id} was made on a release request that is no longer valid.",
    "The release must be requested again, and {reviewer} must approve it again.",
)
REQUEST_CHANGED = RefusalCode(
    "review-of-another-request",
    "state",
    "The decision of entry {id} is not on the current release request, which is that of entry {request}.",
    "{reviewer} must decide again on the current request.",
)
VERDICT_CHANGED = RefusalCode(
    "review-of-another-verdict",
    "state",
    "The release request behind the decision of entry {id} names another verdict than the adapter's.",
    "The release must be requested again.",
)
REQUEST_NOT_IN_POLICY = RefusalCode(
    "review-request-not-in-policy",
    "policy",
    "The release request behind the decision of entry {id} has the exposure {exposure} and the purpose {purpose}. The "
    "valid policy does not list both.",
    "The release must be requested again with words that policy lists.",
)
ATTESTATION_DUE = RefusalCode(
    "review-renewal-due",
    "policy",
    "The approval of entry {id} was made at {made}. Policy requires a renewal by {due}.",
    "{reviewer} must approve the adapter again.",
)
RUN_NOT_AUTHORISED = RefusalCode(
    "run-not-authorised",
    "policy",
    "Releases of the tier {tier} need a run that a second person authorised before it began. Run {id} has no valid "
    "authorisation.",
    "Order a run for that tier, and have a second person authorise it.",
)
VERDICT_DIFFERS = RefusalCode(
    "verdict-differs",
    "order",
    "The release request names another verdict than that of adapter {id}, which is {verdict}.",
    "Request the release again: the request names the adapter's own verdict.",
)
CONDITIONS_EMPTY = RefusalCode(
    "conditions-empty", "order", "The conditions of the order contain no condition.", "Leave them out."
)
EMERGENCY_UNDECIDED = RefusalCode(
    "emergency-undecided",
    "rule",
    "The emergency release of entry {id} waits for the reviewers' decision.",
    "The reviewers must decide on it first.",
)
NOT_THE_ORDERER = RefusalCode(
    "not-the-orderer",
    "rule",
    "{orderer} ordered the training run and must sign this action. {id} cannot.",
    "Ask {orderer}.",
)
EXPOSURE_UNKNOWN = RefusalCode(
    "exposure-unknown",
    "policy",
    "Policy does not list the exposure {exposure}.",
    "Request the release with one of: {listed}.",
)
PURPOSE_UNKNOWN = RefusalCode(
    "purpose-unknown",
    "policy",
    "Policy does not list the purpose {purpose}.",
    "Request the release with one of: {listed}.",
)
TIER_DIFFERS = RefusalCode(
    "tier-differs",
    "policy",
    "Policy gives the tier {tier} to the exposure {exposure} and the purpose {purpose}. The order names another tier.",
    "Name the tier {tier}.",
)
REQUEST_DIFFERS = RefusalCode(
    "request-differs",
    "state",
    "The order does not name the current release request. The entry of the current request: {current}.",
    "Prepare the order again from the adapter.",
)
REQUEST_OF_EMERGENCY = RefusalCode(
    "request-of-emergency",
    "rule",
    "The release request of entry {id} was opened by an emergency release and cannot be withdrawn.",
    "The reviewers must decide on it.",
)
TOO_EARLY = RefusalCode(
    "condition-not-before",
    "condition",
    "A condition of {source} {id} allows requests from {not_before} on. It is {now}.",
    "Wait until then, or get a decision with another condition.",
)
TOO_LATE = RefusalCode(
    "condition-not-after",
    "condition",
    "A condition of {source} {id} allowed requests until {not_after}. It is {now}.",
    "Get a new decision with another condition.",
)
SERVED_MODEL_NOT_ALLOWED = RefusalCode(
    "condition-served-model",
    "condition",
    "A condition of {source} {id} allows only these served models: {allowed}.",
    "Use one of these served models, or get a decision with another condition.",
)


def choose_tier(parameters: Parameters, exposure: str, purpose: str) -> Tier | None:
    """Return the materiality tier for an exposure and a purpose, None if policy does not list one of the two words.

    The score is the product of the positions of both words in the policy's lists, counted from 1.
    """
    if exposure not in parameters.exposures or purpose not in parameters.purposes:
        return None
    score = (parameters.exposures.index(exposure) + 1) * (parameters.purposes.index(purpose) + 1)
    return [tier for tier in parameters.tiers if tier.from_score <= score][-1]


def find_tier(parameters: Parameters, request: ReleaseRequest) -> Tier | None:
    """Return the tier of a request by the current policy. Requests that an emergency opened have the highest tier."""
    if request.exposure is None or request.purpose is None:
        return parameters.tiers[-1]
    return choose_tier(parameters, request.exposure, request.purpose)


def find_current_request(state: State, adapter: Adapter, unit: str) -> ReleaseRequest | None:
    """Return the unit's last request for the adapter, or None if it was withdrawn or its key is not valid.

    An earlier request does not become valid again.
    """
    last = next((request for request in reversed(adapter.requests) if request.unit == unit), None)
    is_valid = last is not None and last.withdrawn is None and is_key_valid(state, last.requested_by, last)
    return last if is_valid else None


def is_key_valid(state: State, signer: str, signed: ReleaseRequest | ReviewRecord) -> bool:
    """Return True if the signature of a recorded request or review counts: by a valid key of the signer."""
    key = state.keys.get(signed.keyid)
    return key is not None and key.principal == signer and key.counts(signed.index)


def is_decided(state: State, adapter: Adapter, request: ReleaseRequest, *decisions: str) -> bool:
    """Return True if a review under a valid key decided on the request, with one of `decisions` if any are given."""
    return any(
        review.request == request.order
        and (not decisions or review.decision in decisions)
        and is_key_valid(state, review.reviewer, review)
        for review in adapter.reviews
    )


def find_review_deadline(parameters: Parameters, request: ReleaseRequest) -> Time | None:
    """Return the time until which a request may be approved, None if the current policy has no tier for it."""
    tier = find_tier(parameters, request)
    return None if tier is None else add_seconds(request.time, tier.review_s)


def find_reattestation_deadline(state: State, adapter: Adapter, review: ReviewRecord) -> Time | None:
    """Return the time by which an approval of the current request must be renewed.

    The result is None if there is no current request or the approval was made on no request.
    """
    request = find_current_request(state, adapter, review.unit)
    tier = None if request is None else find_tier(state.parameters, request)
    return None if tier is None or review.request is None else add_seconds(review.time, tier.reattest_s)


def explain_stale_approval(state: State, adapter: Adapter, review: ReviewRecord, now: Time) -> Refusal | None:
    """Return why an approval is stale, None if it is not.

    An approval is stale if it is not for the current request, if it is due for renewal, or if a validation set of the
    adapter was revoked.
    """
    subject, request = f"review:{review.index}", find_current_request(state, adapter, review.unit)
    if review.approves and (revoked := refuse_invalid_sets(state, adapter.sets)):
        return revoked[0]
    if request is None:
        return None if review.request is None else REQUEST_ENDED(subject, reviewer=review.reviewer)
    if review.request != request.order:
        return REQUEST_CHANGED(subject, request=request.index, reviewer=review.reviewer)
    if request.verdict != adapter.verdict and request.kind == "request":
        return VERDICT_CHANGED(subject)
    if find_tier(state.parameters, request) is None:
        exposure, purpose = Rejected(request.exposure or ""), Rejected(request.purpose or "")
        return REQUEST_NOT_IN_POLICY(subject, exposure=exposure, purpose=purpose)
    again = find_reattestation_deadline(state, adapter, review)
    if again is not None and again <= now:
        return ATTESTATION_DUE(subject, made=review.time, due=again, reviewer=review.reviewer)
    return None


def explain_unauthorised_run(state: State, adapter: Adapter, tier: Tier | None) -> Refusal | None:
    """Return why the run of the adapter lacks the authorisation that the tier requires, None if nothing is missing.

    Tiers can require that a second person authorises the run before it begins, with a key that is valid at that entry.
    """
    if tier is None or not tier.authorise_runs:
        return None
    authorisation = adapter.authorised
    key = None if authorisation is None else state.keys.get(authorisation.keyid)
    if (
        authorisation is not None
        and key is not None
        and key.principal == authorisation.by
        and key.counts(authorisation.index)
    ):
        return None
    return RUN_NOT_AUTHORISED(f"run:{adapter.run}", tier=tier.name)


@dataclass(frozen=True, slots=True)
class RequiredReviews:
    """The reviews that a release needs, by policy and by the tier of its request.

    The tier can require more than policy, never less.
    """

    reviewers: int
    distinct_functions: int
    required_functions: tuple[str, ...]


def compute_requirement(parameters: Parameters, tier: Tier | None) -> RequiredReviews:
    """Return the reviews that a release of this tier needs, or those of policy alone if `tier` is None."""
    if tier is None:
        return RequiredReviews(parameters.reviewers, parameters.distinct_functions, parameters.required_functions)
    return RequiredReviews(
        max(parameters.reviewers, tier.reviewers),
        max(parameters.distinct_functions, tier.distinct_functions),
        tuple(dict.fromkeys((*parameters.required_functions, *tier.required_functions))),
    )


def find_requirement(state: State, adapter: Adapter, unit: str) -> RequiredReviews:
    """Return the reviews that the unit's current request needs, or those of policy alone if there is no request."""
    request = find_current_request(state, adapter, unit)
    return compute_requirement(state.parameters, None if request is None else find_tier(state.parameters, request))


class RequestRelease(AdapterOrder):
    """A signed request to release an adapter to a unit.

    `tier`: the tier that policy derives from exposure and purpose. `verdict`: digest of the verdict that was sealed
    with the adapter.
    """

    action = "request-release"
    unit: Identifier
    exposure: Token = entered("who sees its responses; the further down the list, the higher the tier")
    purpose: Token = entered("what its responses are for; the further down the list, the higher the tier")
    tier: Identifier = derived()
    verdict: Digest | None = derived()
    intended_use: Commitment
    limits: Commitment = Field(description="uses for which the adapter is not intended")
    conditions: Conditions | None

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


class WithdrawRequest(AdapterOrder):
    """A signed order to withdraw a release request. `request`: digest of the order that made the current request."""

    action = "withdraw-request"
    unit: Identifier
    request: Digest = derived()

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


def complete_request(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the adapter's fields and verdict, and the tier that policy derives from exposure and purpose.

    Raises: BadInput for an exposure or purpose that the policy set does not have.
    """
    found = lookup.read_parameters()
    rules, exposure, purpose = found.value, given.word("exposure"), given.word("purpose")
    derived = complete_adapter(given, lookup)
    verdict = lookup.find_artifact("adapter", given.word("adapter")).value.verdict
    tier = choose_tier(rules, exposure, purpose)
    if tier is None:
        words = {"exposure": (exposure, rules.exposures), "purpose": (purpose, rules.purposes)}
        name, (got, known) = next(item for item in words.items() if item[1][0] not in item[1][1])
        raise BadInput(f"{name}: expected one of {', '.join(known)}, got {got}")
    return {**derived, "verdict": ProvenValue(verdict), "tier": found.of(tier.name)}


def complete_withdrawal(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the adapter's fields, and the unit's valid release request.

    Raises: NotFound if there is none.
    """
    derived, name, unit = complete_adapter(given, lookup), given.word("adapter"), given.word("unit")
    request = lookup.find_request(name, unit)
    if request is None:
        raise NotFound(f"request: expected a valid one for {name} and {unit}, got none")
    return {**derived, "request": request}


class ReleaseRequested(Ordered):
    """The entry that an operator requested a release."""

    type = "release.requested"


class RequestWithdrawn(Ordered):
    """The entry that a release request was withdrawn."""

    type = "request.withdrawn"


def authorise_request_release(state: State, order: RequestRelease, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a release request."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = _check_orderer(state, adapter, signer)
    reasons += refuse_candidate(state, adapter, order.unit)
    if order.verdict != adapter.verdict:
        reasons.append(VERDICT_DIFFERS(f"adapter:{order.name}", verdict=adapter.verdict or "none"))
    if order.conditions is not None and order.conditions.say_nothing():
        reasons.append(CONDITIONS_EMPTY())
    signed = [one for one in adapter.requests if (one.kind, one.requested_by) == ("request", signer.name)]
    own = sum(one.unit == order.unit for one in signed)
    reasons += has_too_many(signer.name, f"release requests to {order.unit}", order.name, own)
    reasons += has_too_many(signer.name, "release requests", order.name, len(signed), for_all_units=True)
    return reasons + _check_emergency_decided(state, adapter, order.unit) + _check_tier(state, adapter, order)


def _check_emergency_decided(state: State, adapter: Adapter, unit: str) -> Reasons:
    """Return the refusal reasons against replacing the request that an emergency opened.

    Emergency releases are reviewed at the highest tier. Another request may replace the one of an emergency after a
    reviewer rejected it or requested changes, or after the version was released through its approvals. A decision
    counts only under a valid key.
    """
    request = find_current_request(state, adapter, unit)
    if request is None or request.kind != "break-glass":
        return []
    sent_back = is_decided(state, adapter, request, "reject", "request-changes")
    name = f"{adapter.name}@{adapter.version}"
    released = any(
        activation.adapter == name and activation.kind != "break-glass" and activation.index > request.index
        for release in state.releases.values()
        if release.unit == unit
        for activation in release.history
    )
    if sent_back or released:
        return []
    return [EMERGENCY_UNDECIDED(f"request:{request.index}")]


def _check_orderer(state: State, adapter: Adapter, signer: Principal) -> Reasons:
    """Return the refusal reasons if the signer did not order the run.

    If the orderer was revoked, any operator may sign.
    """
    orderer = state.principals.get(adapter.ordered_by)
    if signer.name == adapter.ordered_by or orderer is None or orderer.revoked is not None:
        return []
    return [NOT_THE_ORDERER(f"principal:{signer.name}", orderer=adapter.ordered_by)]


def _check_tier(state: State, adapter: Adapter, order: RequestRelease) -> Reasons:
    """Return the refusal reasons against the request's exposure, purpose and tier, and against an unauthorised run."""
    rules = state.parameters
    reasons = []
    if order.exposure not in rules.exposures:
        reasons.append(EXPOSURE_UNKNOWN(exposure=Rejected(order.exposure), listed=rules.exposures))
    if order.purpose not in rules.purposes:
        reasons.append(PURPOSE_UNKNOWN(purpose=Rejected(order.purpose), listed=rules.purposes))
    tier = choose_tier(rules, order.exposure, order.purpose)
    if tier is not None and tier.name != order.tier:
        reasons.append(TIER_DIFFERS(tier=tier.name, exposure=order.exposure, purpose=order.purpose))
    missing = explain_unauthorised_run(state, adapter, tier)
    return reasons if missing is None else [*reasons, missing]


def authorise_withdraw_request(state: State, order: WithdrawRequest, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against withdrawing a request.

    The person who made the request and administrators may withdraw it. Requests that an emergency opened stay open.
    """
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    request = find_current_request(state, adapter, order.unit)
    is_requester = request is not None and signer.name == request.requested_by
    reasons = [] if is_requester else refuse_without_role(signer, "administrator")
    if request is None or request.order != order.request:
        return [*reasons, REQUEST_DIFFERS(current="none" if request is None else request.index)]
    if request.kind == "break-glass":
        reasons.append(REQUEST_OF_EMERGENCY(f"request:{request.index}"))
    return reasons


def apply_release_request(case: Case) -> Changes:
    """Record a release request."""
    order = case.order(RequestRelease)
    adapter = take_adapter(case, order)
    request = ReleaseRequest(
        order=case.accepted.digest,
        unit=order.unit,
        kind="request",
        requested_by=order.signer,
        keyid=case.accepted.keyid,
        exposure=order.exposure,
        purpose=order.purpose,
        verdict=order.verdict,
        conditions=order.conditions,
        index=case.entry.index,
        time=case.entry.time,
    )
    changed = adapter.model_copy(update={"requests": (*adapter.requests, request)})
    return [(case.state.adapters, order.name, changed)]


def apply_request_withdrawal(case: Case) -> Changes:
    """Record that a release request was withdrawn."""
    order = case.order(WithdrawRequest)
    adapter = take_adapter(case, order)
    requests = tuple(
        request.model_copy(update={"withdrawn": case.entry.index}) if request.order == order.request else request
        for request in adapter.requests
    )
    return [(case.state.adapters, order.name, adapter.model_copy(update={"requests": requests}))]


ACTIONS = (
    Action(
        RequestRelease,
        title="Request a release",
        complete=complete_request,
        authorise=authorise_request_release,
        meaning="You ask that this adapter is released to the unit for this use. Approvals of an earlier request are "
        "no longer valid.",
        signers=("operator",),
        event=ReleaseRequested,
        apply=apply_release_request,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", ("unit", "exposure", "purpose", "tier")),
        example_values={"signer": "olga", "exposure": "internal", "purpose": "assist", "tier": "low"},
    ),
    Action(
        WithdrawRequest,
        title="Withdraw a release request",
        complete=complete_withdrawal,
        authorise=authorise_withdraw_request,
        meaning="The request is withdrawn. Approvals of it are no longer valid.",
        signers=("who ordered it", "administrator"),
        event=RequestWithdrawn,
        apply=apply_request_withdrawal,
        recheck_slots=True,
        facts=ActionFacts(AdapterEntity, "name", ("unit",)),
        example_values={"signer": "olga"},
    ),
)


Binding = list[tuple[str, int, Conditions]]
"""Conditions that apply to a release: the kind of their source, the index of its entry, and the conditions."""


def binding_conditions(state: State, adapter: Adapter, unit: str, approvals: Iterable[ReviewRecord]) -> Binding:
    """Return the conditions of the unit's current request and of these approvals."""
    request = find_current_request(state, adapter, unit)
    found = [] if request is None else [("request", request.index, request.conditions)]
    found += [("review", r.index, r.conditions) for r in approvals]
    return [(kind, index, one) for kind, index, one in found if one is not None]


def refuse_by_binding(state: State, binding: Binding, served_model: str, now: Time) -> Reasons:
    """Return the refusal reasons that follow from the dates and served models of these conditions."""
    reasons = []
    for source, index, one in binding:
        subject = f"{source}:{index}"
        if one.not_before is not None and now < one.not_before:
            reasons.append(TOO_EARLY(subject, source=source, not_before=one.not_before, now=now))
        if one.not_after is not None and one.not_after <= state.site.time_for(index, now):
            reasons.append(TOO_LATE(subject, source=source, not_after=one.not_after, now=now))
        if one.served_models and served_model not in one.served_models:
            reasons.append(SERVED_MODEL_NOT_ALLOWED(subject, source=source, allowed=one.served_models))
    return reasons


def ends(binding: Binding) -> list[Time]:
    """Return the times at which these conditions begin to refuse."""
    return [one.not_after for _, _, one in binding if one.not_after is not None]


def daily_limit(binding: Binding) -> int | None:
    """Return the smallest number of answers a day that these conditions allow, None if they set no limit."""
    return min((one.answers_a_day for _, _, one in binding if one.answers_a_day is not None), default=None)


def count_answer(case: Case, clearance: Clearance) -> Changes:
    """Count one more request on the entry's day, over all served models and programs that the adapter serves for the
    unit.

    Raises:
        QuotaExceeded: the conditions allow no more answers on this day (code `answers-a-day`).
    """
    if (most := clearance.answers_a_day) is None:
        return []
    adapter, unit = clearance.adapter, clearance.release.unit
    name, day = versioned(adapter.name, adapter.version), case.entry.time[:10]
    key = answers_key(unit, name)
    before = case.state.answers.get(key)
    count = 0 if before is None or before.day != day else before.count
    if count >= most:
        raise QuotaExceeded(
            f"{case.place}: answers of {name} for {unit} on {day}: expected at most {most}, by a condition of its "
            f"approval, got one more; the next day begins at 00:00 UTC",
            code="answers-a-day",
            retry_after_s=_seconds_left_of_day(case.entry.time),
        )
    return [(case.state.answers, key, DailyAnswers(unit=unit, adapter=name, day=day, count=count + 1))]


def _seconds_left_of_day(time: Time) -> int:
    """Return the seconds until the next day in UTC, rounded up."""
    now = parse_time(time)
    return 86_400 - (now.hour * 3_600 + now.minute * 60 + now.second)
