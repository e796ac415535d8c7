"""Admission's evidence is gathered: bytes read once from the sealed folder, entries and proofs from the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.domain.admission import Admission, Evidence, LoggedOrder, decide_admission, entries_needed
from appliance.domain.approval import released
from appliance.domain.events import AdapterAdmitted, AdmissionRefused
from appliance.domain.names import versioned
from appliance.domain.state import Adapter, State
from appliance.errors import ApplianceError, Denied, NotFound
from appliance.formats.checkpoint import open_checkpoint
from appliance.store.ledger import Appended
from appliance.workflows.context import Context
from appliance.workflows.quarantine import quarantine_adapter
from appliance.workflows.record import append


@dataclass(frozen=True)
class Admitted:
    adapter: Adapter
    files: dict[str, bytes]
    appended: Appended


def admit(context: Context, unit: str, task: str) -> Admitted:
    """The adapter that may answer for the unit's task, with the very bytes that were checked.

    NotFound where nothing is released to the unit under that name; Denied with every reason where something is and may
    not answer. Bytes that changed are quarantined. Each outcome is an entry.
    """
    with context.ledger.lock:
        state = context.ledger.state
        now = context.now(state)
        if context.lost:
            raise Denied(f"admission for {unit}", reasons=tuple(e.message for e in context.lost), code="not-admitted")
        adapter = released(state, unit, task)
        if adapter is None:
            raise NotFound(f"model: expected one released to {unit}, got {task!r}", code="model-not-found")
        files, evidence = _evidence(context, state, adapter, unit, task, now)
        admission = decide_admission(state, unit, task, evidence, now)
    if admission is None or admission.reasons:
        raise _refuse(context, unit, task, adapter, admission)
    body = AdapterAdmitted(
        unit=unit,
        task=task,
        adapter=versioned(adapter.name, adapter.version),
        manifest=adapter.manifest,
        head=open_checkpoint(evidence.checkpoint, state.site.log_key).size,
        approvals=admission.approvals,
        policy=state.site.policy,
    )
    return Admitted(adapter, files, append(context, body))


def _evidence(
    context: Context, state: State, adapter: Adapter, unit: str, task: str, now: str
) -> tuple[dict[str, bytes], Evidence]:
    """What the folder and the ledger hold now; a file that cannot be read is simply not there."""
    checkpoint = context.ledger.checkpoint()
    size = state.size
    logged = {}
    for index in entries_needed(state, unit, adapter, task, now):
        try:
            logged[index] = LoggedOrder(
                entry=context.ledger.entry_bytes(index),
                proof=tuple(context.ledger.inclusion_proof(index, size)),
                envelope=context.ledger.documents_of(index).get("order"),
            )
        except ApplianceError:
            continue
    try:
        files = context.artifacts.read_folder(adapter.manifest)
        signature = context.artifacts.read_beside(adapter.manifest, "signature.json")
    except ApplianceError:
        files, signature = {}, b""
    return files, Evidence(files=files, signature=signature, logged=logged, checkpoint=checkpoint)


def _refuse(context: Context, unit: str, task: str, adapter: Adapter, admission: Admission | None) -> Denied:
    name = versioned(adapter.name, adapter.version)
    reasons = ("release: expected one, got none",) if admission is None else admission.reasons
    body = AdmissionRefused(unit=unit, task=task, adapter=name, reasons=tuple(r[:500] for r in reasons[:32]))
    append(context, body)
    if admission is not None and admission.tampered and adapter.quarantined is None:
        quarantine_adapter(context, adapter, "; ".join(admission.reasons))
    return Denied(f"adapter {name} for {unit}", reasons=reasons, code="not-admitted")
