"""Admission of adapters for serving, and the proofs and signature that accompany an exported adapter."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.api.releases import ExportPacket
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.entry import parse_entry, record_refusals
from appliance.domain.core.names import encode_value, versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import release_key
from appliance.domain.core.records.site import Site
from appliance.domain.core.state import State
from appliance.domain.releases.adapters import SIGNATURE_FILES, make_admission_error
from appliance.domain.releases.admission import (
    Admission,
    AdmissionInputs,
    LoggedOrder,
    decide_admission,
    entries_needed,
)
from appliance.domain.releases.approval import find_release_blockers, find_released_adapter
from appliance.domain.releases.exports import (
    EXPORT_NOT_ACTIVE,
    ExportAdapter,
    ExportedEntry,
    Proofs,
)
from appliance.domain.serving.slots import AdapterAdmitted, AdmissionRefused
from appliance.errors import ApplianceError, Denied, NotFound, Unavailable
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.checkpoint import claimed_size
from appliance.store.files.artifacts import Artifacts
from appliance.store.ledger.queue import AppendedEntry
from appliance.workflows.core.context import LedgerContext, ServingContext
from appliance.workflows.core.record import append
from appliance.workflows.integrity import quarantine_adapter
from appliance.workflows.witnesses import list_missing_entries


def export_packet(context: LedgerContext, digest: str) -> ExportPacket:
    """Return the packet of an export by the digest of its order.

    Raises:
        NotFound: There is no such order.
        Denied: The release is no longer active.
    """
    state = context.ledger.state
    index = state.orders.get(digest)
    if index is None or parse_entry(context.ledger.entry_bytes(index)).type != "adapter.exported":
        raise NotFound(f"export: expected one that was ordered, got {digest}")
    documents = context.ledger.documents_of(index)
    order = ORDERS.read_logged(state, documents["order"], index).order
    if not isinstance(order, ExportAdapter):
        raise NotFound(f"export: expected one that was ordered, got {order.action}")
    adapter = _check(context, state, order)
    needed = entries_needed(state, order.unit, adapter, order.served_model, context.now(state))
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    entries = [_prove(context, one, size) for one in sorted({0, index, *needed})]
    proofs = Proofs(exported=index, checkpoint=checkpoint.decode(), entries=tuple(entries))
    return ExportPacket(
        adapter=order.name,
        manifest=order.manifest,
        valid_until=order.valid_until,
        proofs=encode_value(proofs),
        state_rows=documents["state_rows"],
        signatures=read_signatures(context.artifacts, state.site, adapter),
    )


def _check(context: LedgerContext, state: State, order: ExportAdapter) -> Adapter:
    """Return the released adapter. Raise Denied if the release was withdrawn or became invalid since the order."""
    adapter = find_released_adapter(state, order.unit, order.served_model)
    release = state.releases.get(release_key(order.unit, order.served_model))
    if adapter is None or release is None or adapter.manifest != order.manifest:
        refused = (EXPORT_NOT_ACTIVE(f"adapter:{order.name}"),)
        raise Denied(f"export of {order.name} for {order.unit}", refusals=refused, code="not-admitted")
    if reasons := find_release_blockers(state, release, adapter, context.now(state)):
        raise Denied(f"export of {order.name} for {order.unit}", refusals=reasons, code="not-admitted")
    return adapter


def _prove(context: LedgerContext, index: int, size: int) -> ExportedEntry:
    envelope = context.ledger.documents_of(index).get("order")
    return ExportedEntry(
        index=index,
        entry=encode_base64(context.ledger.entry_bytes(index)),
        proof=tuple(encode_base64(step) for step in context.ledger.inclusion_proof(index, size)),
        envelope=None if envelope is None else encode_base64(envelope),
    )


@dataclass(frozen=True)
class AdmittedAdapter:
    """An admitted adapter with the bytes that were checked, and its entry."""

    adapter: Adapter
    files: dict[str, bytes]
    appended: AppendedEntry


@dataclass(frozen=True)
class _Needed:
    """The entries on which the proof rests, in the state at one moment."""

    adapter: Adapter
    entries: tuple[int, ...]
    site: Site


def admit(context: ServingContext, unit: str, served_model: str) -> AdmittedAdapter:
    """Return the adapter that may serve the unit's served model, with the same bytes that were checked.

    A folder that has changed is quarantined. Each outcome is an entry.

    Raises:
        NotFound: No adapter is released to the unit under that name.
        Denied: An adapter is released and may not be served; the error has every reason.
        Unavailable: The disk or the database cannot be read now.
    """
    if context.missing_from_log:
        refused = list_missing_entries(context)
        raise Denied(f"admission for {unit}", refusals=refused, code="not-admitted")
    while True:
        needed = _find_needed(context, unit, served_model)
        files, evidence = _gather(context, needed)
        with context.ledger.lock:
            if _find_needed(context, unit, served_model) != needed:
                continue  # a review, a release or a new log key was appended meanwhile
            state = context.ledger.state
            admission = decide_admission(state, unit, served_model, evidence, context.now(state))
            policy = state.site.policy
        break
    assert admission is not None, "an adapter is released"
    if admission.reasons:
        raise _refuse(context, unit, served_model, needed.adapter, admission)
    body = AdapterAdmitted(
        unit=unit,
        served_model=served_model,
        adapter=versioned(needed.adapter.name, needed.adapter.version),
        manifest=needed.adapter.manifest,
        head=claimed_size(evidence.checkpoint),
        approvals=admission.approvals,
        policy=policy,
        process=context.process,
    )
    return AdmittedAdapter(needed.adapter, files, append(context, body))


def released_adapter(state: State, unit: str, served_model: str) -> Adapter:
    """Return the adapter of today's release, which may be inadmissible.

    Raises:
        NotFound: The unit has no release of that name.
    """
    adapter = find_released_adapter(state, unit, served_model)
    if adapter is None:
        raise NotFound(f"model: expected one released to {unit}, got {served_model!r}", code="model-not-found")
    return adapter


def _find_needed(context: LedgerContext, unit: str, served_model: str) -> _Needed:
    with context.ledger.lock:
        state = context.ledger.state
        adapter = released_adapter(state, unit, served_model)
        entries = entries_needed(state, unit, adapter, served_model, context.now(state))
        return _Needed(adapter, entries, state.site)


def _gather(context: LedgerContext, needed: _Needed) -> tuple[dict[str, bytes], AdmissionInputs]:
    """Return the folder's files and the evidence from the ledger. Entries that fail their checks are left out."""
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
                countersigned=documents.get("countersigned"),
            )
        except Unavailable:
            raise  # the ledger could not be read, so its bytes may be sound
        except ApplianceError:
            continue
    manifest = needed.adapter.manifest
    try:
        files = context.artifacts.read_folder(manifest)
        signatures = read_signatures(context.artifacts, needed.site, needed.adapter)
    except ApplianceError as error:
        # A quarantined folder was moved aside. Any other missing folder is a failure of the disk.
        if isinstance(error, Unavailable) and needed.adapter.quarantined is None:
            raise
        files, signatures = {}, ()
    evidence = AdmissionInputs(files=files, signatures=signatures, logged=logged, checkpoint=checkpoint)
    assert evidence.digests is not None  # computes the hashes here, outside the lock
    return files, evidence


def _refuse(context: ServingContext, unit: str, served_model: str, adapter: Adapter, admission: Admission) -> Denied:
    name = versioned(adapter.name, adapter.version)
    error = make_admission_error(f"adapter {name} for {unit}", admission.reasons)
    record_refusal(context, unit, served_model, name, error)
    if admission.changed and adapter.quarantined is None:
        quarantine_adapter(context, adapter, f"admission for {unit}: refused, its entry admission.refused says why")
    return error


def record_refusal(context: ServingContext, unit: str, served_model: str, adapter: str, error: ApplianceError) -> None:
    """Append the refusal of an admission or a load, unless the last one for this unit and served model was the same.

    A client may repeat such a request any number of times. Its requests are counted as `request.refused`.
    """
    key, refusals = (unit, served_model), record_refusals(error.refusals)
    body = AdmissionRefused(unit=unit, served_model=served_model, adapter=adapter, code=error.code, refusals=refusals)
    if context.refused_admissions.get(key) != body:
        append(context, body)
        context.refused_admissions[key] = body


def read_signatures(artifacts: Artifacts, site: Site, adapter: Adapter) -> tuple[bytes, ...]:
    """Return the signatures that the log requires of the adapter, unverified, in the order of the keys.

    Raises:
        NotFound: one is missing.
    """
    names = SIGNATURE_FILES[: len(site.adapter_keys(adapter.index))]
    return tuple(artifacts.read_beside(adapter.manifest, name) for name in names)
