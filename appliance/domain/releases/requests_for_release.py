"""Requests for release: who asks for what use of an adapter by which unit, and of which materiality that is."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import Conditions, ReleaseRequest
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Commitment, Digest, Identifier, Time, Token
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, is_unit, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.releases.adapters import OnAdapter, find_adapter, take_adapter
from appliance.domain.releases.tiers import current_request, tier_for, unauthorised


class RequestRelease(OnAdapter):
    """`tier`: what policy makes of exposure and purpose; `verdict`: the one that was sealed with the adapter."""

    verb = "request-release"
    unit: Identifier
    exposure: Token
    purpose: Token
    tier: Identifier
    verdict: Digest | None
    intended_use: Commitment
    limits: Commitment = Field(description="what it is not to be used for")
    conditions: Conditions | None

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


class WithdrawRequest(OnAdapter):
    """`request`: the order of the one in force."""

    verb = "withdraw-request"
    unit: Identifier
    request: Digest

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.name}", f"unit:{self.unit}")


class ReleaseRequested(Ordered):
    type = "release.requested"


class RequestWithdrawn(Ordered):
    type = "request.withdrawn"


def may_request_release(state: State, order: RequestRelease, signer: Principal, now: Time) -> Reasons:
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = needs(signer, "operator") + _orderer(state, adapter, signer)
    if not is_unit(state, order.unit):
        reasons.append(f"unit: expected an enrolled one, got {order.unit}")
    if adapter.purpose != "release":
        reasons.append(f"adapter {order.name}: expected one made for release, got one made as a {adapter.purpose}")
    if adapter.revoked is not None:
        reasons.append(f"adapter {order.name}: expected a standing one, got one revoked by entry {adapter.revoked}")
    if order.verdict != adapter.verdict:
        reasons.append(f"verdict: expected {adapter.verdict or 'none'}, got {order.verdict or 'none'}")
    if order.conditions is not None and order.conditions.say_nothing():
        reasons.append("conditions: expected null where there are none, got one that says nothing")
    return reasons + _decided(state, adapter, order.unit) + _tiered(state, adapter, order)


def _decided(state: State, adapter: Adapter, unit: str) -> Reasons:
    """What an emergency let answer is reviewed with the highest tier: another request takes its place only where a
    reviewer sent it back, or where the version was released by its approvals since."""
    request = current_request(state, adapter, unit)
    if request is None or request.kind != "break-glass":
        return []
    refusals = ("reject", "request-changes")
    sent_back = any(one.request == request.order and one.decision in refusals for one in adapter.reviews)
    name = f"{adapter.name}@{adapter.version}"
    released = any(
        one.adapter == name and one.kind != "break-glass" and one.index > request.index
        for release in state.releases.values()
        if release.unit == unit
        for one in release.history
    )
    if sent_back or released:
        return []
    opened = f"that of the emergency of entry {request.index}"
    return [f"request: expected reviewers to decide on {opened} first, got another"]


def _orderer(state: State, adapter: Adapter, signer: Principal) -> Reasons:
    """Who ordered the run; another operator only where they have left."""
    orderer = state.principals.get(adapter.ordered_by)
    if signer.name == adapter.ordered_by or orderer is None or orderer.revoked is not None:
        return []
    return [f"signer: expected {adapter.ordered_by}, who ordered the run, got {signer.name}"]


def _tiered(state: State, adapter: Adapter, order: RequestRelease) -> Reasons:
    rules = state.parameters
    reasons = [
        f"{name}: expected one of {', '.join(words)}, got {got}"
        for name, got, words in (
            ("exposure", order.exposure, rules.exposures),
            ("purpose", order.purpose, rules.purposes),
        )
        if got not in words
    ]
    tier = tier_for(rules, order.exposure, order.purpose)
    if tier is not None and tier.name != order.tier:
        reasons.append(f"tier: expected {tier.name} for {order.exposure} and {order.purpose}, got {order.tier}")
    missing = unauthorised(state, adapter, tier)
    return reasons if missing is None else [*reasons, missing]


def may_withdraw_request(state: State, order: WithdrawRequest, signer: Principal, now: Time) -> Reasons:
    """Who asked, or an administrator. The review that an emergency opened is withdrawn by no one."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    request = current_request(state, adapter, order.unit)
    asked = request is not None and signer.name == request.requested_by
    reasons = [] if asked else needs(signer, "administrator")
    if request is None or request.order != order.request:
        stands = "none" if request is None else request.order
        return [*reasons, f"request: expected the one that stands, {stands}, got {order.request}"]
    if request.kind == "break-glass":
        emergency = f"that of the emergency of entry {request.index}"
        reasons.append(f"request: expected one that a person asked for, got {emergency}")
    return reasons


def release_requested(case: Case) -> Changes:
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


def request_withdrawn(case: Case) -> Changes:
    order = case.order(WithdrawRequest)
    adapter = take_adapter(case, order)
    requests = tuple(
        one.model_copy(update={"withdrawn": case.entry.index}) if one.order == order.request else one
        for one in adapter.requests
    )
    return [(case.state.adapters, order.name, adapter.model_copy(update={"requests": requests}))]


VERBS = (
    Verb(
        RequestRelease,
        may=may_request_release,
        meaning="You ask that this adapter is released to the unit for this use. Approvals of an earlier request of "
        "yours no longer count.",
        signers=("operator",),
        event=ReleaseRequested,
        apply=release_requested,
        changes_answers=True,
    ),
    Verb(
        WithdrawRequest,
        may=may_withdraw_request,
        meaning="The request no longer counts, and neither do approvals of it.",
        signers=("who ordered it", "administrator"),
        event=RequestWithdrawn,
        apply=request_withdrawn,
        changes_answers=True,
    ),
)
