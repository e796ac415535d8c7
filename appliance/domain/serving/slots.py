"""Slots: entries and rules about adapters that are admitted, loaded and unloaded for a unit's served model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.domain.core.action import EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event, RecordedRefusal
from appliance.domain.core.names import Code, Digest, Identifier, OtherEngine, Time, VersionedName
from appliance.domain.core.records.serving import Slot, release_key, slot_key
from appliance.domain.core.roles import is_person
from appliance.domain.core.state import Clearance, State
from appliance.domain.releases.approval import compute_clearance, find_superseded_evidence, list_valid_reviews
from appliance.domain.witnesses import refuse_unwitnessed_log
from appliance.errors import Denied, Refusal, RefusalCode

NOT_EVALUATED_ON_ENGINE = RefusalCode(
    "not-evaluated-on-engine",
    "state",
    "Adapter {id} was not evaluated on the inference engine {engine}.",
    "Train it again. Runs are evaluated on this engine now.",
)


def slot_subjects(unit: str, served_model: str, adapter: str) -> tuple[str, ...]:
    """Return the ledger subjects of an entry about a slot."""
    return f"unit:{unit}", f"served-model:{served_model}", f"adapter:{adapter}"


class AdapterAdmitted(Event):
    """The entry that admission proved an adapter's approval.

    `head`: size of the log that admission read. `process`: the serving process for whose engine it was admitted, if
    there are several.
    """

    type = "adapter.admitted"
    unit: Identifier
    served_model: Identifier
    adapter: VersionedName
    manifest: Digest
    head: int = Field(ge=1)
    approvals: tuple[int, ...]
    policy: Digest
    process: Identifier | None

    def about(self) -> tuple[str, ...]:
        of_process = () if self.process is None else (f"process:{self.process}",)
        return (*slot_subjects(self.unit, self.served_model, self.adapter), *of_process)


class AdmissionRefused(Event):
    """The entry that an admission or a load was refused.

    `refusals` are in the order in which they were found. They are empty if the code is the reason. The same refusal of
    a release is recorded once, until a load succeeds.
    """

    type = "admission.refused"
    records = "refusals"
    outcomes = ("denied",)
    unit: Identifier
    served_model: Identifier
    adapter: VersionedName | None
    code: Code
    refusals: tuple[RecordedRefusal, ...]

    def about(self) -> tuple[str, ...]:
        return (
            f"unit:{self.unit}",
            f"served-model:{self.served_model}",
            *((f"adapter:{self.adapter}",) if self.adapter else ()),
        )


class AdapterLoaded(Event):
    """The entry that a slot serves requests from now on.

    `engine`: the inference engine, if it is not the appliance's own. `logit_fingerprint`: its comparison with the
    sealed one. With another engine it is `close`, and the adapter must have been evaluated on that engine.
    """

    type = "adapter.loaded"
    unit: Identifier
    served_model: Identifier
    adapter: VersionedName
    admitted: int = Field(ge=1)
    logit_fingerprint: Literal["identical", "close"]
    engine: OtherEngine | None

    def about(self) -> tuple[str, ...]:
        return slot_subjects(self.unit, self.served_model, self.adapter)


class AdapterUnloaded(Event):
    """The entry that a slot was emptied, which cuts off the responses that it was generating.

    `reason`: code of the refusal because of which the slot was closed.

    `last_token`: the time at which the service sent the last token of this slot to a client, null if it sent none.
    """

    type = "adapter.unloaded"
    unit: Identifier
    served_model: Identifier
    adapter: VersionedName
    admitted: int = Field(ge=1)
    reason: Code
    last_token: Time | None

    def about(self) -> tuple[str, ...]:
        return slot_subjects(self.unit, self.served_model, self.adapter)


def admissible(case: Case, unit: str, served_model: str) -> Clearance:
    """Return the clearance of the current release for the unit's served model.

    Raises:
        Denied: there is no release, or there are refusal reasons against it.
    """
    release = case.state.releases.get(release_key(unit, served_model))
    adapter = None if release is None else case.state.adapters.get(release.current.adapter)
    if release is None or adapter is None:
        raise Denied(f"entry {case.entry.index}: release: expected one for {unit}/{served_model}, got none")
    clearance = compute_clearance(case.state, release, adapter, case.entry.time)
    if clearance.reasons:
        raise Denied(f"admission of {adapter.name}@{adapter.version} for {unit}", refusals=clearance.reasons)
    return clearance


def apply_admission(case: Case) -> Changes:
    """Record that an adapter was admitted to a slot, after comparing the entry with the current clearance."""
    body = case.of(AdapterAdmitted)
    clearance = admissible(case, body.unit, body.served_model)
    adapter = clearance.adapter
    name = f"{adapter.name}@{adapter.version}"
    case.require(body.adapter == name, "adapter", name, body.adapter)
    case.require(body.manifest == adapter.manifest, "manifest", adapter.manifest, body.manifest)
    case.require(body.policy == case.state.site.policy, "policy", case.state.site.policy, body.policy)
    valid = tuple(r.index for r in list_valid_reviews(case.state, adapter, body.unit, case.entry.time))
    case.require(body.approvals == valid, "approvals", valid, body.approvals)
    case.require(body.head <= case.entry.index, "head", f"at most {case.entry.index}", body.head)
    if reasons := refuse_unwitnessed_log(case.state, case.entry.time):
        raise Denied(f"admission of {name} for {body.unit}", refusals=reasons)
    if body.process is not None:
        row = case.state.processes.get(body.process)
        case.require(row is not None and row.ended is None, "process", "one that runs", body.process)
    key = slot_key(body.unit, body.served_model, body.process)
    before = case.state.slots.get(key)
    if before is not None:
        # A loaded slot is unloaded first, so that the time of its last token is recorded.
        got = f"one that {before.adapter} fills since entry {before.admitted}"
        case.require(before.loaded is None, "slot", "one that is empty, or admitted only", got)
    slot = Slot(
        unit=body.unit,
        served_model=body.served_model,
        adapter=name,
        manifest=adapter.manifest,
        admitted=case.entry.index,
        release=clearance.release.current.index,
        approvals=valid,
        process=body.process,
    )
    return [(case.state.slots, key, slot)]


def apply_admission_refusal(case: Case) -> Changes:
    """Check that the entry names a unit and, if it names an adapter, a sealed one."""
    body = case.of(AdmissionRefused)
    case.require(not is_person(case.state, body.unit), "unit", "no person", body.unit)
    if body.adapter is not None:
        case.require(body.adapter in case.state.adapters, "adapter", "a sealed one", body.adapter)
    return []


def find_slot(case: Case, unit: str, served_model: str, admitted: int) -> Slot:
    """Return the slot that the entry `admitted` filled, or else another one for the unit's served model.

    Raises:
        Denied: no slot is admitted for the served model.
    """
    state = case.state
    slot = state.slots.get(release_key(unit, served_model))
    if slot is None or slot.admitted != admitted:
        for process, _ in state.processes.items():
            other = state.slots.get(slot_key(unit, served_model, process))
            slot = other if other is not None and (slot is None or other.admitted == admitted) else slot
    if slot is None:
        raise Denied(f"entry {case.entry.index}: slot: expected one admitted for {unit}/{served_model}, got none")
    return slot


def answering_slot(case: Case, unit: str, served_model: str, admitted: int) -> tuple[Slot, Clearance, Changes]:
    """Return the slot of the current release, its clearance, and the change that caches a new clearance.

    Raises:
        Denied: there are refusal reasons, or an approval by which the slot was admitted is no longer valid.
    """
    slot = find_slot(case, unit, served_model, admitted)
    clearance, key = admissible(case, unit, served_model), release_key(unit, served_model)
    expected, got = slot.manifest, clearance.adapter.manifest
    case.require(got == expected, "manifest", expected, got)
    if reasons := find_superseded_evidence(clearance, slot):
        raise Denied(f"slot of {slot.adapter} for {unit}", refusals=reasons)
    if clearance is case.state.clearances.get(key):
        return slot, clearance, []
    return slot, clearance, [(case.state.clearances, key, clearance)]


def apply_load(case: Case) -> Changes:
    """Record that an adapter was loaded.

    Release, adapter and approvals must be the same as at the admission, without a refusal reason.
    """
    body = case.of(AdapterLoaded)
    slot, _, changes = answering_slot(case, body.unit, body.served_model, body.admitted)
    case.require(body.admitted == slot.admitted, "admitted", slot.admitted, body.admitted)
    case.require(body.adapter == slot.adapter, "adapter", slot.adapter, body.adapter)
    case.require(slot.loaded is None, "slot", "one that is admitted only", "one that is loaded")
    _check_engine(case, body, slot)
    changed = slot.model_copy(update={"loaded": case.entry.index, "loaded_at": case.entry.time, "engine": body.engine})
    return [*changes, (case.state.slots, slot.key, changed)]


def _check_engine(case: Case, body: AdapterLoaded, slot: Slot) -> None:
    """Check the result of the logit fingerprint, and that the adapter was evaluated on the engine that it runs on."""
    expected = "identical" if body.engine is None else "close"
    case.require(body.logit_fingerprint == expected, "logit_fingerprint", expected, body.logit_fingerprint)
    adapter = case.state.adapters.get(slot.adapter)
    if body.engine is not None and (adapter is None or body.engine not in adapter.engines):
        raise Denied(
            f"entry {case.entry.index}",
            refusals=(explain_not_evaluated(slot.adapter, body.engine),),
            code="not-admitted",
        )


def explain_not_evaluated(adapter: str, engine: str) -> Refusal:
    """Return the refusal reason for an adapter that was not evaluated on this engine."""
    return NOT_EVALUATED_ON_ENGINE(f"adapter:{adapter}", engine=engine)


def apply_unload(case: Case) -> Changes:
    """Record that a slot was emptied, and mark its open requests as cut.

    The last token must have been sent between the load and this entry. The slot's open requests can no longer succeed.
    """
    body = case.of(AdapterUnloaded)
    slot = find_slot(case, body.unit, body.served_model, body.admitted)
    case.require(body.adapter == slot.adapter, "adapter", slot.adapter, body.adapter)
    case.require(body.admitted == slot.admitted, "admitted", slot.admitted, body.admitted)
    if body.last_token is not None:
        since = slot.loaded_at or "a load, of which there was none"
        between = since <= body.last_token <= case.entry.time
        case.require(between, "last token", f"a time from {since} to {case.entry.time}", body.last_token)
    return [(case.state.slots, slot.key, None), *cut_requests(case.state, slot)]


def cut_requests(state: State, slot: Slot) -> Changes:
    """Return the changes that mark every open request of the slot as cut."""
    return [
        (state.requests, request.id, request._replace(is_cut_off=True))
        for request in state.requests.values()
        if request.admitted == slot.admitted
    ]


EVENTS = (
    EventRule(AdapterAdmitted, apply_admission),
    EventRule(AdmissionRefused, apply_admission_refusal),
    EventRule(AdapterLoaded, apply_load),
    EventRule(AdapterUnloaded, apply_unload),
)
