"""The rules of serving: releases, admission, slots and requests."""

from __future__ import annotations

from typing import Literal

from appliance.domain.approval import barred, standing_reviews, superseded
from appliance.domain.case import Case, Puts
from appliance.domain.custody import unwitnessed
from appliance.domain.events import (
    AdapterAdmitted,
    AdapterLoaded,
    AdapterUnloaded,
    AdmissionRefused,
    RequestAdmitted,
    RequestFinished,
    RequestRefused,
)
from appliance.domain.exports import standing_of
from appliance.domain.names import encode_value
from appliance.domain.orders import Activate, ExportAdapter, RollBack
from appliance.domain.records import (
    Activation,
    Adapter,
    Export,
    OpenRequest,
    Release,
    Slot,
    export_key,
    release_key,
)
from appliance.domain.signatures import token_revoked
from appliance.domain.state import State
from appliance.errors import Denied, NotAuthenticated
from appliance.formats.digest import digest_bytes


def activated(case: Case) -> Puts:
    return _release(case, case.allowed(Activate), "activate")


def rolled_back(case: Case) -> Puts:
    return _release(case, case.allowed(RollBack), "roll-back")


def _release(case: Case, order: Activate | RollBack, kind: Literal["activate", "roll-back"]) -> Puts:
    key = release_key(order.unit, order.task)
    before = case.state.releases.get(key)
    activation = Activation(
        index=case.entry.index,
        order=case.accepted.digest,
        adapter=order.name,
        manifest=order.manifest,
        signer=order.signer,
        keyid=case.accepted.keyid,
        kind=kind,
    )
    history = (() if before is None else before.history) + (activation,)
    return [(case.state.releases, key, Release(unit=order.unit, task=order.task, history=history))]


def _admissible(case: Case, unit: str, task: str) -> tuple[Release, Adapter]:
    """Today's release for the unit's task, with nothing that stands against it."""
    release = case.state.releases.get(release_key(unit, task))
    adapter = None if release is None else case.state.adapters.get(release.current.adapter)
    if release is None or adapter is None:
        raise Denied(f"entry {case.entry.index}: release: expected one for {unit}/{task}, got none")
    reasons = barred(case.state, release, adapter, case.entry.time)
    if reasons:
        raise Denied(f"admission of {adapter.name}@{adapter.version} for {unit}", reasons=tuple(reasons))
    return release, adapter


def admitted(case: Case) -> Puts:
    body = case.of(AdapterAdmitted)
    release, adapter = _admissible(case, body.unit, body.task)
    name = f"{adapter.name}@{adapter.version}"
    case.require(body.adapter == name, "adapter", name, body.adapter)
    case.require(body.manifest == adapter.manifest, "manifest", adapter.manifest, body.manifest)
    case.require(body.policy == case.state.site.policy, "policy", case.state.site.policy, body.policy)
    standing = tuple(r.index for r in standing_reviews(case.state, adapter, body.unit, case.entry.time))
    case.require(body.approvals == standing, "approvals", standing, body.approvals)
    case.require(body.head <= case.entry.index, "head", f"at most {case.entry.index}", body.head)
    if reasons := unwitnessed(case.state, case.entry.time):
        raise Denied(f"admission of {name} for {body.unit}", reasons=tuple(reasons))
    before = case.state.slots.get(release_key(body.unit, body.task))
    if before is not None:
        # Else nobody would have said when the last token of it left.
        filled = f"one that {before.adapter} fills since entry {before.admitted}"
        case.require(before.loaded is None, "slot", "one that is empty, or admitted only", filled)
    slot = Slot(
        unit=body.unit,
        task=body.task,
        adapter=name,
        manifest=adapter.manifest,
        admitted=case.entry.index,
        release=release.current.index,
        approvals=standing,
    )
    return [(case.state.slots, release_key(body.unit, body.task), slot)]


def _slot(case: Case, unit: str, task: str) -> Slot:
    slot = case.state.slots.get(release_key(unit, task))
    if slot is None:
        raise Denied(f"entry {case.entry.index}: slot: expected one admitted for {unit}/{task}, got none")
    return slot


def _answering(case: Case, unit: str, task: str) -> Slot:
    """The slot of today's release, with nothing against it, and everything that it was admitted by."""
    slot = _slot(case, unit, task)
    release, adapter = _admissible(case, unit, task)
    case.require(adapter.manifest == slot.manifest, "manifest", slot.manifest, adapter.manifest)
    if reasons := superseded(case.state, release, slot):
        raise Denied(f"slot of {slot.adapter} for {unit}", reasons=tuple(reasons))
    return slot


def loaded(case: Case) -> Puts:
    """Only if what admission saw still holds: same release, same adapter, nothing against it."""
    body = case.of(AdapterLoaded)
    slot = _answering(case, body.unit, body.task)
    case.require(body.admitted == slot.admitted, "admitted", slot.admitted, body.admitted)
    case.require(body.adapter == slot.adapter, "adapter", slot.adapter, body.adapter)
    changed = slot.model_copy(update={"loaded": case.entry.index, "loaded_at": case.entry.time})
    return [(case.state.slots, release_key(body.unit, body.task), changed)]


def unloaded(case: Case) -> Puts:
    """No token left after the slot was empty, and no answer under way in it can end well any more."""
    body = case.of(AdapterUnloaded)
    slot = _slot(case, body.unit, body.task)
    case.require(body.adapter == slot.adapter, "adapter", slot.adapter, body.adapter)
    case.require(body.admitted == slot.admitted, "admitted", slot.admitted, body.admitted)
    if body.last_token is not None:
        since = slot.loaded_at or "a load, of which there was none"
        between = since <= body.last_token <= case.entry.time
        case.require(between, "last token", f"a time from {since} to {case.entry.time}", body.last_token)
    return [(case.state.slots, release_key(body.unit, body.task), None), *cut(case.state, slot)]


def cut(state: State, slot: Slot) -> Puts:
    """Every request that the slot was answering."""
    return [
        (state.requests, request.id, request._replace(cut=True))
        for request in state.requests.values()
        if request.admitted == slot.admitted
    ]


def admission_refused(case: Case) -> Puts:
    case.of(AdmissionRefused)
    return []


def exported(case: Case) -> Puts:
    """The rows beside the order are those of the state: whoever holds the log's key can decide over them.

    It is remembered until a later export finds it expired: time never decreases, so it answers no question about that
    entry or one after it.
    """
    order = case.allowed(ExportAdapter)
    expected = encode_value(standing_of(case.state, order, case.accepted.keyid))
    got = case.documents["standing"]
    case.require(got == expected, "standing", digest_bytes(expected), digest_bytes(got))
    exports, index = case.state.exports, case.entry.index
    expired: Puts = [(exports, key, None) for key, row in exports.items() if row.valid_until <= case.entry.time]
    export = Export(
        unit=order.unit,
        task=order.task,
        adapter=order.name,
        manifest=order.manifest,
        index=index,
        valid_until=order.valid_until,
    )
    return [*expired, (exports, export_key(order.unit, order.task, index), export)]


def request_admitted(case: Case) -> Puts:
    """Answered only by what is loaded for this unit and task, and admissible at this moment."""
    body = case.of(RequestAdmitted)
    slot = _answering(case, body.unit, body.task)
    case.require(slot.loaded is not None, "slot", "a loaded adapter", "one that is admitted only")
    expected, got = slot.answered_by, body.answered_by
    case.require(got == expected, "what answers", expected, got)
    if revoked := token_revoked(case.state, body.unit, body.token, body.token_issued_at):
        raise NotAuthenticated(f"entry {case.entry.index}: {revoked}", code="revoked")
    case.require(body.request not in case.state.requests, "request", "a new one", body.request)
    request = OpenRequest(
        id=body.request,
        unit=body.unit,
        task=body.task,
        adapter=body.adapter,
        manifest=body.manifest,
        admitted=body.admitted,
        release=body.release,
        approvals=body.approvals,
        entry=case.entry.index,
    )
    return [(case.state.requests, body.request, request)]


def request_finished(case: Case) -> Puts:
    body = case.of(RequestFinished)
    record = case.state.requests.get(body.request)
    if record is None:
        raise Denied(f"entry {case.entry.index}: request: expected an open one, got {body.request}")
    expected, got = record.answered_by, body.answered_by
    case.require(got == expected, "what answers", expected, got)
    if record.cut:
        ended = case.entry.outcome
        case.require(ended != "success", "outcome", "none but failure or interrupted: its slot was emptied", ended)
    return [(case.state.requests, body.request, None)]


def request_refused(case: Case) -> Puts:
    case.of(RequestRefused)
    return []


RULES = {
    "release.activated": activated,
    "release.rolled-back": rolled_back,
    "adapter.admitted": admitted,
    "admission.refused": admission_refused,
    "adapter.exported": exported,
    "adapter.loaded": loaded,
    "adapter.unloaded": unloaded,
    "request.admitted": request_admitted,
    "request.finished": request_finished,
    "request.refused": request_refused,
}
