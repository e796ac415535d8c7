"""Slots: an adapter is admitted, loaded and unloaded for a unit's task."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import Digest, Identifier, OtherEngine, Time, VersionedName
from appliance.domain.core.records.serving import Slot, release_key, slot_key
from appliance.domain.core.roles import is_person
from appliance.domain.core.state import Clearance, State
from appliance.domain.core.verb import EventRule
from appliance.domain.releases.approval import clear, standing_reviews, superseded
from appliance.domain.witnesses.cosignatures import unwitnessed
from appliance.errors import Denied


def slot_subjects(unit: str, task: str, adapter: str) -> tuple[str, ...]:
    return f"unit:{unit}", f"task:{task}", f"adapter:{adapter}"


class AdapterAdmitted(Event):
    """Admission recomputed the approval as a proof; `head` is the log's size it saw. `process`: the one of several
    whose engine it is for."""

    type = "adapter.admitted"
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    manifest: Digest
    head: int = Field(ge=1)
    approvals: tuple[int, ...]
    policy: Digest
    process: Identifier | None

    def about(self) -> tuple[str, ...]:
        of_process = () if self.process is None else (f"process:{self.process}",)
        return (*slot_subjects(self.unit, self.task, self.adapter), *of_process)


class AdmissionRefused(Event):
    """The unit is no person, and the adapter one that the log knows, where one is named."""

    type = "admission.refused"
    outcomes = ("denied",)
    unit: Identifier
    task: Identifier
    adapter: VersionedName | None
    reasons: tuple[str, ...] = Field(min_length=1)

    def about(self) -> tuple[str, ...]:
        return (
            f"unit:{self.unit}",
            f"task:{self.task}",
            *((f"adapter:{self.adapter}",) if self.adapter else ()),
        )


class AdapterLoaded(Event):
    """Only now the slot answers. `engine`: what answers, if it is not the appliance's own engine; its probe is close to
    what was sealed, and the adapter was judged on it."""

    type = "adapter.loaded"
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    admitted: int = Field(ge=1)
    probe: Literal["identical", "close"]
    engine: OtherEngine | None

    def about(self) -> tuple[str, ...]:
        return slot_subjects(self.unit, self.task, self.adapter)


class AdapterUnloaded(Event):
    """The slot is empty, and what it was answering is cut off. `last_token`: when the service gave the last token of
    this slot to a client; null where it gave none."""

    type = "adapter.unloaded"
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    admitted: int = Field(ge=1)
    reason: str
    last_token: Time | None

    def about(self) -> tuple[str, ...]:
        return slot_subjects(self.unit, self.task, self.adapter)


def admissible(case: Case, unit: str, task: str) -> Clearance:
    """Today's release for the unit's task, with no reason against it."""
    release = case.state.releases.get(release_key(unit, task))
    adapter = None if release is None else case.state.adapters.get(release.current.adapter)
    if release is None or adapter is None:
        raise Denied(f"entry {case.entry.index}: release: expected one for {unit}/{task}, got none")
    clearance = clear(case.state, release, adapter, case.entry.time)
    if clearance.reasons:
        raise Denied(f"admission of {adapter.name}@{adapter.version} for {unit}", reasons=clearance.reasons)
    return clearance


def admitted(case: Case) -> Changes:
    body = case.of(AdapterAdmitted)
    clearance = admissible(case, body.unit, body.task)
    adapter = clearance.adapter
    name = f"{adapter.name}@{adapter.version}"
    case.require(body.adapter == name, "adapter", name, body.adapter)
    case.require(body.manifest == adapter.manifest, "manifest", adapter.manifest, body.manifest)
    case.require(body.policy == case.state.site.policy, "policy", case.state.site.policy, body.policy)
    standing = tuple(r.index for r in standing_reviews(case.state, adapter, body.unit, case.entry.time))
    case.require(body.approvals == standing, "approvals", standing, body.approvals)
    case.require(body.head <= case.entry.index, "head", f"at most {case.entry.index}", body.head)
    if reasons := unwitnessed(case.state, case.entry.time):
        raise Denied(f"admission of {name} for {body.unit}", reasons=tuple(reasons))
    if body.process is not None:
        row = case.state.processes.get(body.process)
        case.require(row is not None and row.ended is None, "process", "one that runs", body.process)
    key = slot_key(body.unit, body.task, body.process)
    before = case.state.slots.get(key)
    if before is not None:
        # Otherwise the time of its last token would not be recorded.
        filled = f"one that {before.adapter} fills since entry {before.admitted}"
        case.require(before.loaded is None, "slot", "one that is empty, or admitted only", filled)
    slot = Slot(
        unit=body.unit,
        task=body.task,
        adapter=name,
        manifest=adapter.manifest,
        admitted=case.entry.index,
        release=clearance.release.current.index,
        approvals=standing,
        process=body.process,
    )
    return [(case.state.slots, key, slot)]


def admission_refused(case: Case) -> Changes:
    body = case.of(AdmissionRefused)
    case.require(not is_person(case.state, body.unit), "unit", "no person", body.unit)
    if body.adapter is not None:
        case.require(body.adapter in case.state.adapters, "adapter", "a sealed one", body.adapter)
    return []


def find_slot(case: Case, unit: str, task: str, admitted: int) -> Slot:
    """That which the entry `admitted` filled; where there is none, another for the unit's task."""
    state = case.state
    slot = state.slots.get(release_key(unit, task))
    if slot is None or slot.admitted != admitted:
        for process, _ in state.processes.items():
            other = state.slots.get(slot_key(unit, task, process))
            slot = other if other is not None and (slot is None or other.admitted == admitted) else slot
    if slot is None:
        raise Denied(f"entry {case.entry.index}: slot: expected one admitted for {unit}/{task}, got none")
    return slot


def answering_slot(case: Case, unit: str, task: str, admitted: int) -> tuple[Slot, Clearance, Changes]:
    """The slot of today's release, with nothing against it and with everything that it was admitted by; what was found
    of that, and what is kept of it, so that the next request need not ask again."""
    slot = find_slot(case, unit, task, admitted)
    clearance, key = admissible(case, unit, task), release_key(unit, task)
    expected, got = slot.manifest, clearance.adapter.manifest
    case.require(got == expected, "manifest", expected, got)
    if reasons := superseded(clearance, slot):
        raise Denied(f"slot of {slot.adapter} for {unit}", reasons=tuple(reasons))
    if clearance is case.state.clearances.get(key):
        return slot, clearance, []
    return slot, clearance, [(case.state.clearances, key, clearance)]


def loaded(case: Case) -> Changes:
    """Only if what admission saw still holds: same release, same adapter, nothing against it."""
    body = case.of(AdapterLoaded)
    slot, _, changes = answering_slot(case, body.unit, body.task, body.admitted)
    case.require(body.admitted == slot.admitted, "admitted", slot.admitted, body.admitted)
    case.require(body.adapter == slot.adapter, "adapter", slot.adapter, body.adapter)
    case.require(slot.loaded is None, "slot", "one that is admitted only", "one that is loaded")
    _check_engine(case, body, slot)
    changed = slot.model_copy(update={"loaded": case.entry.index, "loaded_at": case.entry.time, "engine": body.engine})
    return [*changes, (case.state.slots, slot.key, changed)]


def _check_engine(case: Case, body: AdapterLoaded, slot: Slot) -> None:
    expected = "identical" if body.engine is None else "close"
    case.require(body.probe == expected, "probe", expected, body.probe)
    adapter = case.state.adapters.get(slot.adapter)
    if body.engine is not None and (adapter is None or body.engine not in adapter.engines):
        raise Denied(f"entry {case.entry.index}: {not_judged(slot.adapter, body.engine)}", code="not-admitted")


def not_judged(adapter: str, engine: str) -> str:
    return f"adapter {adapter}: expected one that was judged on {engine}, got one that was not"


def unloaded(case: Case) -> Changes:
    """No token left after the slot was empty, and no answer under way in it can end well any more."""
    body = case.of(AdapterUnloaded)
    slot = find_slot(case, body.unit, body.task, body.admitted)
    case.require(body.adapter == slot.adapter, "adapter", slot.adapter, body.adapter)
    case.require(body.admitted == slot.admitted, "admitted", slot.admitted, body.admitted)
    if body.last_token is not None:
        since = slot.loaded_at or "a load, of which there was none"
        between = since <= body.last_token <= case.entry.time
        case.require(between, "last token", f"a time from {since} to {case.entry.time}", body.last_token)
    return [(case.state.slots, slot.key, None), *cut_requests(case.state, slot)]


def cut_requests(state: State, slot: Slot) -> Changes:
    """Every request that the slot was answering."""
    return [
        (state.requests, request.id, request._replace(cut=True))
        for request in state.requests.values()
        if request.admitted == slot.admitted
    ]


EVENTS = (
    EventRule(AdapterAdmitted, admitted),
    EventRule(AdmissionRefused, admission_refused),
    EventRule(AdapterLoaded, loaded),
    EventRule(AdapterUnloaded, unloaded),
)
