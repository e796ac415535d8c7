"""The rules of making: bases, datasets, adapters and their reviews."""

from __future__ import annotations

import base64
from sys import intern
from typing import Any

from appliance.domain.baselines import compare
from appliance.domain.case import Case, Puts
from appliance.domain.events import (
    AdapterQuarantined,
    AdapterSealed,
    ArtifactsChecked,
    BaseImported,
    BaseQuarantined,
    DatasetImported,
    ImportFailed,
)
from appliance.domain.making_invariants import next_dataset_version, next_version
from appliance.domain.methods import METHODS
from appliance.domain.names import split_version, versioned
from appliance.domain.orders import (
    CancelImport,
    ImportBase,
    ImportDataset,
    Review,
    RevokeAdapter,
    RevokeBase,
    RevokeDataset,
)
from appliance.domain.records import Adapter, Base, Dataset, Import, ReviewRecord, Run
from appliance.domain.steps import STEPS_FILE
from appliance.domain.table import Table
from appliance.domain.training import check_inputs, check_walls, move, take_run
from appliance.errors import Denied
from appliance.formats.bundle import verify_model
from appliance.formats.digest import digest_bytes
from appliance.formats.dsse import parse_envelope, verify_envelope
from appliance.formats.manifest import MANIFEST_PATH, parse_manifest
from appliance.formats.statement import parse_statement

SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"


def import_requested(case: Case) -> Puts:
    order: ImportBase | ImportDataset
    if isinstance(case.accepted.order, ImportBase):
        order = case.allowed(ImportBase)
        subject, classification, base, digest = f"base:{order.base}", "", "", ""
    else:
        order = case.allowed(ImportDataset)
        subject, classification = f"dataset:{order.dataset}", order.classification
        base, digest = order.base, order.base_digest
    record = Import(
        order=case.accepted.digest,
        verb=order.verb,
        subject=subject,
        signer=order.signer,
        licence=order.licence,
        classification=classification,
        base=base,
        base_digest=digest,
        index=case.entry.index,
        status="requested",
    )
    return [(case.state.imports, record.order, record)]


def _requested(case: Case, digest: str) -> Import:
    record = case.state.imports.get(digest)
    if record is None or record.status != "requested":
        got = "none" if record is None else record.status
        raise Denied(f"entry {case.entry.index}: import {digest}: expected one under way, got {got}")
    return record


def import_failed(case: Case) -> Puts:
    record = _requested(case, case.of(ImportFailed).order)
    return [(case.state.imports, record.order, record.model_copy(update={"status": "failed"}))]


def import_cancelled(case: Case) -> Puts:
    record = _requested(case, case.allowed(CancelImport).order)
    return [(case.state.imports, record.order, record.model_copy(update={"status": "cancelled"}))]


def _finish(case: Case, digest: str, kind: str, name: str) -> tuple[Import, Puts]:
    record = _requested(case, digest)
    case.require(record.subject == f"{kind}:{name}", "subject", record.subject, f"{kind}:{name}")
    return record, [(case.state.imports, digest, record.model_copy(update={"status": "finished"}))]


def base_imported(case: Case) -> Puts:
    body = case.of(BaseImported)
    record, puts = _finish(case, body.order, "base", body.base)
    parse_manifest(case.documents["manifest"])
    base = Base(
        name=body.base,
        digest=digest_bytes(case.documents["manifest"]),
        licence=record.licence,
        imported_by=record.signer,
        order=record.order,
        index=case.entry.index,
        facts=body.facts,
    )
    return [*puts, (case.state.bases, body.base, base)]


def dataset_imported(case: Case) -> Puts:
    body = case.of(DatasetImported)
    name, version = split_version(body.dataset)
    record, puts = _finish(case, body.order, "dataset", name)
    expected = next_dataset_version(case.state, name)
    case.require(version == expected, "version", expected, version)
    base = case.state.bases.get(body.base)
    if base is None:
        raise Denied(f"entry {case.entry.index}: base: expected an imported one, got {body.base}")
    rendered_for = (base.name, base.digest)
    case.require(rendered_for == (record.base, record.base_digest), "base", record.base, body.base)
    parse_manifest(case.documents["manifest"])
    dataset = Dataset(
        name=name,
        version=version,
        digest=digest_bytes(case.documents["manifest"]),
        root=body.root,
        base=body.base,
        base_digest=base.digest,
        licence=record.licence,
        classification=record.classification,
        imported_by=record.signer,
        order=record.order,
        index=case.entry.index,
        facts=body.facts,
    )
    return [*puts, (case.state.datasets, body.dataset, dataset)]


def adapter_sealed(case: Case) -> Puts:
    """The manifest is signed by the appliance's adapter key, and lists the weights and the steps that the run ended
    with."""
    body = case.of(AdapterSealed)
    run = take_run(case, body.run, "trained")
    check_inputs(case, run)
    check_walls(case, body.walls)
    manifest = parse_manifest(case.documents["manifest"])
    name, version = split_version(body.adapter)
    expected = (run.name, next_version(case.state, run.name))
    case.require((name, version) == expected, "adapter", versioned(*expected), body.adapter)
    case.require((manifest.name, manifest.version) == expected, "manifest", versioned(*expected), manifest.name)
    files = {file.path: file.digest for file in manifest.files}
    weights = files.get(METHODS[run.method].weights)
    case.require(weights == run.weights, "weights", run.weights, weights)
    record = files.get(STEPS_FILE)
    case.require(record == run.record, "steps", run.record, record)
    signed = files | {MANIFEST_PATH: digest_bytes(case.documents["manifest"])}
    verify_model(case.documents["signature"], base64.b64decode(case.state.site.adapter_key), signed)
    check_provenance(case, run)
    measured = body.metrics.get("adapter", {})
    compared = compare(case.state, run, measured)
    case.require(body.metrics.get("baseline") == compared, "metrics, baseline", compared, body.metrics.get("baseline"))
    dataset = case.state.datasets.get(run.dataset)
    if dataset is None:
        raise Denied(f"entry {case.entry.index}: dataset: expected an imported one, got {run.dataset}")
    adapter = Adapter(
        name=name,
        version=version,
        manifest=digest_bytes(case.documents["manifest"]),
        run=run.id,
        ordered_by=run.ordered_by,
        dataset_by=dataset.imported_by,
        base=run.base,
        base_digest=run.base_digest,
        dataset=run.dataset,
        purpose=run.purpose,
        measured=measured,
        index=case.entry.index,
    )
    return [*move(case.state, run, "sealed"), (case.state.adapters, body.adapter, adapter)]


def check_provenance(case: Case, run: Run) -> None:
    """The appliance's adapter key says, in SLSA provenance v1, that this manifest came of the run's own inputs."""
    envelope = parse_envelope(case.documents["provenance"])
    verify_envelope(envelope, base64.b64decode(case.state.site.adapter_key))
    statement = parse_statement(envelope.payload)
    subjects = ((run.name, digest_bytes(case.documents["manifest"])),)
    case.require(statement.predicate_type == SLSA_PROVENANCE, "provenance", SLSA_PROVENANCE, statement.predicate_type)
    case.require(statement.subjects == subjects, "provenance, subjects", subjects, statement.subjects)
    build = statement.predicate.get("buildDefinition")
    found = build.get("resolvedDependencies") if isinstance(build, dict) else None
    for name, digest in (
        (f"base:{run.base}", run.base_digest),
        (f"dataset:{run.dataset}", run.dataset_digest),
        ("order", run.order),
    ):
        needed = {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
        case.require(isinstance(found, list) and needed in found, "provenance, dependencies", needed, "none such")


def adapter_quarantined(case: Case) -> Puts:
    name = case.of(AdapterQuarantined).adapter
    adapter = case.state.adapters.get(name)
    if adapter is None or adapter.quarantined is not None:
        raise Denied(f"entry {case.entry.index}: adapter: expected one not in quarantine, got {name}")
    return [(case.state.adapters, name, adapter.model_copy(update={"quarantined": case.entry.index}))]


def base_quarantined(case: Case) -> Puts:
    name = case.of(BaseQuarantined).base
    base = case.state.bases.get(name)
    if base is None or base.quarantined is not None:
        raise Denied(f"entry {case.entry.index}: base: expected one not in quarantine, got {name}")
    return [(case.state.bases, name, base.model_copy(update={"quarantined": case.entry.index}))]


def artifacts_checked(case: Case) -> Puts:
    """What was found changed is out of use: an adapter or a base is in quarantine before this says so."""
    body = case.of(ArtifactsChecked)
    outcome = "failure" if body.changed else "success"
    case.require(case.entry.outcome == outcome, "outcome", outcome, case.entry.outcome)
    for subject in body.changed:
        kind, _, name = subject.partition(":")
        state = case.state
        rows: dict[str, Table[Any]] = {"adapter": state.adapters, "base": state.bases, "dataset": state.datasets}
        row = rows[kind].get(name) if kind in rows else None
        if row is None:
            raise Denied(f"entry {case.entry.index}: changed: expected what the ledger knows, got {subject}")
        if isinstance(row, Adapter | Base):
            case.require(row.quarantined is not None, subject, "quarantine before", "none")
    return []


def review_recorded(case: Case) -> Puts:
    order = case.allowed(Review)
    adapter = case.state.adapters.get(order.name)
    if adapter is None:
        raise Denied(f"entry {case.entry.index}: adapter: expected a sealed one, got {order.name}")
    record = ReviewRecord(
        index=case.entry.index,
        order=case.accepted.digest,
        reviewer=intern(order.signer),
        keyid=case.accepted.keyid,
        field=intern(order.field),
        unit=intern(order.unit),
        decision=order.decision,
        valid_until=order.valid_until,
    )
    changed = adapter.model_copy(update={"reviews": (*adapter.reviews, record)})
    return [(case.state.adapters, order.name, changed)]


def adapter_revoked(case: Case) -> Puts:
    order = case.allowed(RevokeAdapter)
    adapter = case.state.adapters.get(order.name)
    if adapter is None:
        raise Denied(f"entry {case.entry.index}: adapter: expected a sealed one, got {order.name}")
    return [(case.state.adapters, order.name, adapter.model_copy(update={"revoked": case.entry.index}))]


def base_revoked(case: Case) -> Puts:
    base = case.state.bases.get(case.allowed(RevokeBase).base)
    if base is None:
        raise Denied(f"entry {case.entry.index}: base: expected an imported one, got none")
    return [(case.state.bases, base.name, base.model_copy(update={"revoked": case.entry.index}))]


def dataset_revoked(case: Case) -> Puts:
    name = case.allowed(RevokeDataset).name
    dataset = case.state.datasets.get(name)
    if dataset is None:
        raise Denied(f"entry {case.entry.index}: dataset: expected an imported one, got {name}")
    return [(case.state.datasets, name, dataset.model_copy(update={"revoked": case.entry.index}))]


RULES = {
    "import.requested": import_requested,
    "import.failed": import_failed,
    "import.cancelled": import_cancelled,
    "base.imported": base_imported,
    "dataset.imported": dataset_imported,
    "adapter.sealed": adapter_sealed,
    "adapter.quarantined": adapter_quarantined,
    "base.quarantined": base_quarantined,
    "artifacts.checked": artifacts_checked,
    "review.recorded": review_recorded,
    "adapter.revoked": adapter_revoked,
    "base.revoked": base_revoked,
    "dataset.revoked": dataset_revoked,
}
