"""Emergencies: two people let an earlier version answer for some hours, and a review of it opens."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.decisions import ReleaseRequest
from appliance.domain.core.event import Endorsed
from appliance.domain.core.names import Time, add_seconds
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.serving import Activation, Release, release_key
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.domain.releases.activations import OnRelease, instruction_is_there
from appliance.domain.releases.adapters import find_adapter
from appliance.domain.releases.approval import conditions_against, objections, quorum
from appliance.errors import Denied


class BreakGlass(OnRelease):
    """A version that was approved and answered this task before. It waits for an administrator's endorsement."""

    verb = "break-glass"
    adds_instruction: bool
    until: Time


class EmergencyDeclared(Endorsed):
    type = "release.emergency"


def may_break_glass(state: State, order: BreakGlass, signer: Principal, now: Time) -> Reasons:
    """It lifts what is missing of approvals, and nothing else: not a revocation, a rejection, an open finding that
    blocks, or a condition."""
    adapter = find_adapter(state, order)
    if isinstance(adapter, list):
        return adapter
    reasons = needs(signer, f"release-owner:{order.unit}")
    if signer.name == adapter.ordered_by:
        reasons.append(f"separation of duties: expected a release owner who did not order the run, got {signer.name}")
    if state.site.single_administrator:
        reasons.append("administrators: expected a second person who can endorse it, got a site with a single one")
    if order.reason is None:
        reasons.append("reason: expected what the emergency is, got none")
    release = state.releases.get(release_key(order.unit, order.task))
    answered = [] if release is None else [one.adapter for one in release.history if one.kind != "break-glass"]
    if order.name not in answered:
        before = f"one that was approved and answered {order.unit}/{order.task} before"
        reasons.append(f"adapter: expected {before}, got {order.name}")
    limit = add_seconds(now, state.parameters.break_glass_lifetime_s)
    if not now < order.until <= limit:
        reasons.append(f"until: expected a time after {now} and not after {limit}, got {order.until}")
    if order.adds_instruction:
        reasons += instruction_is_there(state, adapter)
    unheard = _unreviewed(adapter, order.unit)
    if unheard is not None:
        reasons.append(f"adapter {order.name}: expected a review of the emergency of entry {unheard} first, got none")
    reasons += objections(state, adapter, order.unit, now)
    reasons += conditions_against(state, adapter, order.unit, order.task, now, emergency=True)
    if not quorum(state, adapter, order.unit, now):
        reasons.append(f"adapter {order.name}: expected one whose approvals lack something, got one to roll back to")
    return reasons


def _unreviewed(adapter: Adapter, unit: str) -> int | None:
    """The entry of the unit's last emergency with this version, where no reviewer has decided on it: otherwise two
    people could have it answer for ever."""
    opened = [request for request in adapter.requests if request.unit == unit and request.kind == "break-glass"]
    heard = {review.request for review in adapter.reviews}
    return opened[-1].index if opened and opened[-1].order not in heard else None


def emergency_declared(case: Case) -> Changes:
    """The release owner's order is the one that counts; the entry's own is its endorsement."""
    order, state, index = case.order(BreakGlass), case.state, case.entry.index
    key = release_key(order.unit, order.task)
    before, adapter = state.releases.get(key), state.adapters.get(order.name)
    if before is None or adapter is None or "endorsed" not in case.documents:
        raise Denied(f"entry {index}: expected an endorsed order for an adapter that answered {key}, got {order.name}")
    first = case.reader.read(state, case.documents["endorsed"], case.entry.time)
    activation = Activation(
        index=index,
        order=first.digest,
        adapter=order.name,
        manifest=order.manifest,
        signer=order.signer,
        keyid=first.keyid,
        kind="break-glass",
        adds_instruction=order.adds_instruction,
        until=order.until,
        endorsed_keyid=case.accepted.keyid,
    )
    request = _review(adapter, order, first.digest, first.keyid, case)
    return [
        (state.releases, key, Release(unit=order.unit, task=order.task, history=(*before.history, activation))),
        (state.adapters, order.name, adapter.model_copy(update={"requests": (*adapter.requests, request)})),
    ]


def _review(adapter: Adapter, order: BreakGlass, digest: str, keyid: str, case: Case) -> ReleaseRequest:
    """The review that opens by itself. The conditions of what was asked for before go on."""
    asked = [request for request in adapter.requests if request.unit == order.unit]
    return ReleaseRequest(
        order=digest,
        unit=order.unit,
        kind="break-glass",
        requested_by=order.signer,
        keyid=keyid,
        exposure=None,
        purpose=None,
        verdict=adapter.verdict,
        conditions=asked[-1].conditions if asked else None,
        index=case.entry.index,
        time=case.entry.time,
    )


VERBS = (
    Verb(
        BreakGlass,
        may=may_break_glass,
        meaning="In an emergency this earlier version answers the unit's task until then, though its approvals lack "
        "something. A review of it opens.",
        signers=("release-owner:UNIT",),
        event=EmergencyDeclared,
        apply=emergency_declared,
        two_administrators=True,
        changes_answers=True,
    ),
)
