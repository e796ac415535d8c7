"""Gathers the evidence for an admission: bytes read once from the sealed folder, entries and proofs from the ledger.

Files are read and hashed, and entries read, without a lock. Under the ledger's lock only the decision is made, over a
state that still needs the same entries. Its time grows with the approvals and the logarithm of the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.domain.core.names import versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.state import State
from appliance.domain.releases.admission import (
    Admission,
    AdmissionInputs,
    LoggedOrder,
    decide_admission,
    entries_needed,
)
from appliance.domain.releases.approval import released
from appliance.domain.serving.slots import AdapterAdmitted, AdmissionRefused
from appliance.errors import ApplianceError, Denied, NotFound, Unavailable
from appliance.formats.log.checkpoint import claimed_size
from appliance.store.ledger.queue import Appended
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append
from appliance.workflows.integrity.quarantine import quarantine_adapter


@dataclass(frozen=True)
class Admitted:
    adapter: Adapter
    files: dict[str, bytes]
    appended: Appended


@dataclass(frozen=True)
class _Needed:
    """What the proof rests on, in the state at the time of the question."""

    adapter: Adapter
    entries: tuple[int, ...]
    log_key: str


def admit(context: Context, unit: str, task: str) -> Admitted:
    """The adapter that may answer for the unit's task, with the very bytes that were checked.

    NotFound where nothing is released to the unit under that name; Denied with every reason where something is and may
    not answer; Unavailable where disk or database cannot be read now. Bytes that changed are quarantined. Each outcome
    is an entry.
    """
    if context.missing_from_log:
        raise Denied(
            f"admission for {unit}", reasons=tuple(e.message for e in context.missing_from_log), code="not-admitted"
        )
    while True:
        needed = _needed(context, unit, task)
        files, evidence = _gather(context, needed)
        with context.ledger.lock:
            if _needed(context, unit, task) != needed:
                continue  # a review, a release or another key of the log was appended meanwhile
            state = context.ledger.state
            admission = decide_admission(state, unit, task, evidence, context.now(state))
            policy = state.site.policy
        break
    if admission is None or admission.reasons:
        raise _refuse(context, unit, task, needed.adapter, admission)
    body = AdapterAdmitted(
        unit=unit,
        task=task,
        adapter=versioned(needed.adapter.name, needed.adapter.version),
        manifest=needed.adapter.manifest,
        head=claimed_size(evidence.checkpoint),
        approvals=admission.approvals,
        policy=policy,
        process=context.process,
    )
    return Admitted(needed.adapter, files, append(context, body))


def released_adapter(state: State, unit: str, task: str) -> Adapter:
    """That of today's release, admissible or not; NotFound where the unit has none of that name."""
    adapter = released(state, unit, task)
    if adapter is None:
        raise NotFound(f"model: expected one released to {unit}, got {task!r}", code="model-not-found")
    return adapter


def _needed(context: Context, unit: str, task: str) -> _Needed:
    with context.ledger.lock:
        state = context.ledger.state
        adapter = released_adapter(state, unit, task)
        entries = entries_needed(state, unit, adapter, task, context.now(state))
        return _Needed(adapter, entries, state.site.log_key)


def _gather(context: Context, needed: _Needed) -> tuple[dict[str, bytes], AdmissionInputs]:
    """What the folder and the ledger hold now; a file that does not hold is simply not there."""
    ledger = context.ledger
    checkpoint = ledger.checkpoint()
    size = claimed_size(checkpoint)
    logged = {}
    for index in needed.entries:
        try:
            documents = ledger.documents_of(index)
            logged[index] = LoggedOrder(
                entry=ledger.entry_bytes(index),
                proof=tuple(ledger.inclusion_proof(index, size)),
                envelope=documents.get("order"),
                endorsed=documents.get("endorsed"),
            )
        except Unavailable:
            raise  # says nothing of the bytes
        except ApplianceError:
            continue
    manifest = needed.adapter.manifest
    try:
        files = context.artifacts.read_folder(manifest)
        signature = context.artifacts.read_beside(manifest, "signature.json")
    except Unavailable:
        raise
    except ApplianceError:
        files, signature = {}, b""
    evidence = AdmissionInputs(files=files, signature=signature, logged=logged, checkpoint=checkpoint)
    assert evidence.digests is not None  # hashed here, not under the lock
    return files, evidence


def _refuse(context: Context, unit: str, task: str, adapter: Adapter, admission: Admission | None) -> Denied:
    name = versioned(adapter.name, adapter.version)
    reasons = ("release: expected one, got none",) if admission is None else admission.reasons
    body = AdmissionRefused(unit=unit, task=task, adapter=name, reasons=tuple(r[:500] for r in reasons[:32]))
    refused = append(context, body)
    if admission is not None and admission.changed and adapter.quarantined is None:
        quarantine_adapter(context, adapter, f"admission for {unit}: refused, entry {refused.entry.index} says why")
    return Denied(f"adapter {name} for {unit}", reasons=reasons, code="not-admitted")
