"""Imports of bases, datasets and validation sets: a sandboxed worker parses uploaded bytes, and an entry binds the
result.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from appliance.api.runs import WorkError
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import Import
from appliance.domain.core.state import State, Table, next_version
from appliance.domain.data.artifacts import BaseImported, DatasetImported, ValidationSetImported
from appliance.domain.data.imports import (
    CancelImport,
    ImportBase,
    ImportDataset,
    ImportFailed,
    ImportRows,
    ImportValidationSet,
)
from appliance.domain.data.validity import refuse_invalid_base
from appliance.domain.evaluation.rules import CALLED_ROWS
from appliance.errors import ApplianceError, BadInput, Denied, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import Manifest, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import parse_time
from appliance.store.files.artifacts import UploadKey
from appliance.workflows.core.context import Frame, LedgerContext, RunContext, WorkerContext
from appliance.workflows.core.jobs import Jobs, contain_defects
from appliance.workflows.core.record import Effect, conceal, lease_of
from appliance.workflows.core.retry import append_with_retry, state_with_retry, stop_run_workers
from appliance.workflows.core.workers import Bounds, carry_out, check_sandbox, worker
from appliance.workflows.data.folders import recording, seal_folder, secret_name
from appliance.workflows.integrity import quarantine_base

log = logging.getLogger("appliance")

_MAX_MANIFEST = 1 << 18
"""Most bytes of a model folder's manifest."""
_MOST_FILES = 512
"""Most files of a model folder."""
HELD_OUT = "held-out"
"""Name of the uploaded file of held-out rows in the worker's folder."""
CANCELLED = "cancelled"
_BASE_STEP, DATASET_STEP = 2 << 30, 4 << 20
"""Bytes for which an import may take as long again as a small one. A base is copied and read once more. A row is
rendered, and a compressed row is many times its size.
"""
_RETRY_FOR_S = 60.0
"""Seconds that an import waits for its append. Its result may be what fills the disk, so it is then removed and the
failure recorded.
"""
BLIND_FAILURE = "{subject}: its rows cannot be used; what is wrong is not recorded of a blind set: check the file first"
MEASURED = ("rows", "max_tokens", "mean_tokens", "mean_trained_tokens")
"""Facts of rows of datasets and validation sets."""
_OF_A_DATASET = ("train_rows", "held_out_rows", "near_held_out_rows", "lengths")
"""Facts of the rows of datasets alone."""
_GROUPED = ("clusters", "slices", CALLED_ROWS)
"""Facts that exist only for rows whose import named such a column or that have tools."""


def check_base_uploaded(context: LedgerContext, order: ImportBase, digest: str) -> None:
    """Check that the order's signer has uploaded all bytes that the order binds, and keep them for the import.

    Raises:
        BadInput: The manifest is too large, malformed or names too many files.
        NotFound: A file is missing.
    """
    _check_uploaded(context, digest, _list_base_uploads(context, order))


def check_rows_uploaded(context: LedgerContext, order: ImportRows, digest: str) -> None:
    """Check that the order's signer has uploaded all files that the order binds, and keep them for the import.

    Raises:
        NotFound: A file is missing.
    """
    _check_uploaded(context, digest, [UploadKey(order.signer, file) for file in order.files])


def _check_uploaded(context: LedgerContext, digest: str, uploads: list[UploadKey]) -> None:
    # Names come first: an upload that is found after it was named is not removed before the order is decided.
    context.uploads.name(digest, uploads)
    for upload in uploads:
        context.artifacts.upload(*upload)


def _list_base_uploads(context: LedgerContext, order: ImportBase) -> list[UploadKey]:
    """Return the source of a base and the files that its manifest names, each once."""
    files = read_source_manifest(context, order).files if order.format == "safetensors" else ()
    digests = dict.fromkeys((order.source, *(file.digest for file in files)))
    return [UploadKey(order.signer, digest) for digest in digests]


def read_source_manifest(context: LedgerContext, order: ImportBase) -> Manifest:
    """Return the manifest of a model folder.

    Raises:
        BadInput: The manifest is too large, malformed or names too many files.
        NotFound: The order's signer has not uploaded the manifest.
    """
    path = context.artifacts.upload(order.signer, order.source)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_MANIFEST + 1)
    except FileNotFoundError:
        raise NotFound(f"upload {order.source}: expected bytes sent before, got none") from None
    if len(data) > _MAX_MANIFEST:
        raise BadInput(f"base {order.base}, manifest: expected at most {_MAX_MANIFEST} bytes, got more")
    manifest = _parse_source_manifest(data)
    if len(manifest.files) > _MOST_FILES:
        got = len(manifest.files)
        raise BadInput(
            f"base {order.base}, manifest: expected at most {_MOST_FILES} files, got {got}; "
            "leave out the files that the base does not need"
        )
    return manifest


@lru_cache(maxsize=16)
def _parse_source_manifest(data: bytes) -> Manifest:
    """Return the parsed manifest. The last ones are kept, since many orders can name the same manifest."""
    return parse_manifest(data)


def enqueue(context: RunContext, digest: str, action: str, signer: str) -> None:
    """Queue the import that the order of this digest requests. The signers of waiting imports take turns."""
    carry = {ImportBase.action: import_base}.get(action, import_rows)
    queue_of(context, action).put(partial(carry, context, digest), signer)


def queue_of(context: RunContext, action: str) -> Jobs:
    """Return the queue of the order's kind. Bases, which take minutes, and datasets, which take seconds, have separate
    queues.
    """
    return context.bases if action == ImportBase.action else context.datasets


def bounds_of(context: RunContext, files: Iterable[Path], step: int) -> Bounds:
    """Return the worker's limits: the settings of a small import, plus as much again for every `step` bytes."""
    factor = 1 + sum(path.stat().st_size for path in files) / step
    return Bounds(context.import_s * factor, math.ceil(context.import_cpu_s * factor))


def _check_not_cancelled(context: LedgerContext, digest: str) -> None:
    """Raise Denied if the import was cancelled.

    It is called after the worker is registered, because a cancellation from before that could not end the worker.
    """
    record = context.ledger.state.imports.get(digest)
    if record is not None and record.status == "cancelled":
        raise Denied(f"import of {record.subject}: expected an open one, got one that was cancelled", code=CANCELLED)


def _prepare(
    context: WorkerContext,
    digest: str,
    bounds: Bounds,
    task: Frame,
    key: bytes = b"",
    *,
    read: tuple[Path, ...],
    write: Path,
) -> tuple[Frame, dict[str, str]]:
    """Return the result of the preparing worker and the results of its sandbox probes."""
    module = "appliance.worker.prepare"
    with worker(context, digest, module, read=read, write=(write,), cpu_s=bounds.cpu_s) as started:
        _check_not_cancelled(context, digest)
        probes = check_sandbox(started)
        result = carry_out(
            started, task, key, bounds=bounds, on_frame=lambda frame: context.progress.publish(digest, frame)
        )
    return result, probes


def import_base(context: RunContext, digest: str) -> None:
    """Convert the uploaded GGUF file or model folder, and record the base or the failure."""

    def work(staging: Path, source: Path) -> dict[str, Any]:
        order: ImportBase = _read_order(context, digest, ImportBase)
        if order.format == "gguf":
            given = source / "model.gguf"
            context.artifacts.place_upload(order.signer, order.source, given)
        else:
            given = source
            for file in read_source_manifest(context, order).files:
                (source / file.path).parent.mkdir(parents=True, exist_ok=True)
                context.artifacts.place_upload(order.signer, file.digest, source / file.path)
        bounds = bounds_of(context, (path for path in source.rglob("*") if path.is_file()), _BASE_STEP)
        task = {"task": "base", "source": str(given), "output": str(staging)}
        result, probes = _prepare(context, digest, bounds, task, read=(source,), write=staging)
        facts = {key: value for key, value in result.items() if key != "frame"}
        manifest = seal_folder(context, staging, order.base, 1)
        body = BaseImported(order=digest, base=order.base, facts=facts, sandbox_probes=probes)
        with recording(context, digest_bytes(manifest)):
            append_with_retry(context, body, most_s=_RETRY_FOR_S, documents={"manifest": manifest})
        return {"base": order.base, "digest": digest_bytes(manifest), "facts": facts}

    _run_import(context, digest, work)


def import_rows(context: RunContext, digest: str) -> None:
    """Parse, split and render the uploaded file, and record the dataset or validation set, or the failure.

    The failure names the line, except for a blind set.
    """

    def work(staging: Path, source: Path) -> dict[str, Any]:
        order: ImportRows = _read_order(context, digest, ImportRows)
        given = source / f"rows.{order.format}"
        for upload, path in zip(order.files, (given, source / HELD_OUT), strict=False):
            context.artifacts.place_upload(order.signer, upload, path)
        base = checked_base(context, order.base)
        key = secrets.token_bytes(32)
        bounds = bounds_of(context, source.iterdir(), DATASET_STEP)
        task = _rows_task(context, order, given, base, staging)
        result, probes = _prepare(context, digest, bounds, task, key, read=(source, base), write=staging)
        named = _name_next_version(context.ledger.state, order)
        facts = _measure(order, result)
        sealed = digest_bytes(manifest := seal_folder(context, staging, *named))
        body = _make_event(digest, order, versioned(*named), result["root"], facts, probes)
        with recording(context, sealed):
            # The key must be durable before the entry. Without it no row could ever be proved to be in the dataset.
            context.keyring.keep_secret(secret_name(sealed), key)
            append_with_retry(context, body, most_s=_RETRY_FOR_S, documents={"manifest": manifest})
        result_fields = {"digest": sealed, "facts": facts}
        if isinstance(order, ImportValidationSet):
            return {"validation_set": versioned(*named), **result_fields}
        return {"dataset": versioned(*named), **result_fields, "labels": result["labels"], "sample": result["sample"]}

    _run_import(context, digest, work)


def _name_next_version(state: State, order: ImportRows) -> tuple[str, int]:
    """Return the name of the dataset or validation set and its next version."""
    kind, _, name = order.subjects()[0][0].partition(":")
    rows: Table[Any] = state.validation_sets if kind == "validation-set" else state.datasets
    return name, next_version(rows, name)


def _measure(order: ImportRows, result: Frame) -> dict[str, Any]:
    """Return the facts of the rows for the entry. They contain only numbers and the dataset kind."""
    names = (*MEASURED, *(() if isinstance(order, ImportValidationSet) else _OF_A_DATASET))
    grouped = {name: result[name] for name in _GROUPED if name in result}
    return {
        "dataset_kind": order.dataset_kind,
        **{name: result[name] for name in names},
        "labels": len(result["labels"]),
        **grouped,
    }


def _make_event(
    digest: str, order: ImportRows, name: str, root: str, facts: dict[str, Any], sandbox_probes: dict[str, str]
) -> DatasetImported | ValidationSetImported:
    fields: dict[str, Any] = {
        "order": digest,
        "base": order.base,
        "root": root,
        "facts": facts,
        "sandbox_probes": sandbox_probes,
    }
    if isinstance(order, ImportValidationSet):
        return ValidationSetImported(validation_set=name, **fields)
    return DatasetImported(dataset=name, **fields)


def _rows_task(context: LedgerContext, order: ImportRows, given: Path, base: Path, staging: Path) -> dict[str, Any]:
    texts = context.ledger.disclosures([order.instruction])
    if order.instruction not in texts:
        raise BadInput(f"{order.subjects()[0][0]}, instruction: expected its text beside the order, got none")
    return {
        "dataset_kind": order.dataset_kind,
        "source": str(given),
        "format": order.format,
        "columns": order.columns,
        "labels": list(order.labels),
        "instruction": texts[order.instruction].text,
        "base": str(base),
        "output": str(staging),
        **_divide(order, given),
    }


def _divide(order: ImportRows, given: Path) -> dict[str, Any]:
    """Return the fields of the worker's task that depend on the kind of the order and on how rows are held out."""
    if isinstance(order, ImportValidationSet):
        return {"task": "validation-set", "blind": order.blind}
    if not isinstance(order, ImportDataset):
        raise BadInput(f"import: expected rows of a dataset or a validation set, got {order.action}")
    if order.held_out_file is not None:
        return {"task": "dataset", "seed": order.seed, "held_out_source": str(given.parent / HELD_OUT)}
    return {"task": "dataset", "seed": order.seed, "held_out": order.held_out}


def checked_base(context: WorkerContext, name: str) -> Path:
    """Return the base's folder after hashing it again. A base that has changed on disk is quarantined.

    Raises:
        Denied: The base is unknown, revoked or quarantined.
        Tampered: The base has changed on disk.
    """
    state = context.ledger.state
    base = state.bases.get(name)
    if base is None:
        raise Denied(f"base: expected an imported one, got {name}")
    if reasons := refuse_invalid_base(state, name, base.digest):
        raise Denied(f"base {name}", refusals=reasons)
    try:
        context.artifacts.check(base.digest)
    except Unavailable:
        raise  # the disk failed; the bytes may be unchanged
    except ApplianceError as error:
        index = quarantine_base(context, base, error.message)
        message = f"base {name}: expected the bytes of its manifest, got a file that differs; entry {index} names it"
        raise Tampered(message) from error
    return context.artifacts.path(base.digest)


def _read_order(context: LedgerContext, digest: str, model: type[Any]) -> Any:
    """Return the order of a running import, read again from the ledger."""
    state: State = context.ledger.state
    record = state.imports.require(digest)
    order = ORDERS.read_logged(state, context.ledger.documents_of(record.index)["order"], record.index).order
    if not isinstance(order, model):
        raise BadInput(f"import {digest}: expected {model.action}, got {order.action}")
    return order


def _run_import(context: RunContext, digest: str, work: Callable[[Path, Path], dict[str, Any]]) -> None:
    """Run an import to an outcome in any case: an entry, a result for its followers, and no incomplete folder."""
    record = state_with_retry(context).imports.get(digest)
    if record is not None and record.status not in ("requested", "cancelled"):
        return  # another job has run it
    if not context.items_in_progress.take(digest):
        return
    try:
        _compute_import(context, digest, work)
    finally:
        context.items_in_progress.leave(digest)
    with suppress(Unavailable):
        context.processes.release_lease(lease_of(digest))


def _compute_import(context: RunContext, digest: str, work: Callable[[Path, Path], dict[str, Any]]) -> None:
    try:
        _check_not_cancelled(context, digest)
        if context.closing.is_set():
            raise make_interruption()
        with contain_defects("import"), context.artifacts.staging() as staging, context.artifacts.staging() as source:
            result = work(staging, source)
    except ApplianceError as error:
        _fail(context, digest, error)
    else:
        _discard_uploads(context, digest)
        context.progress.end(digest, result=result)


def make_interruption() -> Unavailable:
    """Return the error of an import that the end of the service interrupted."""
    return Unavailable("the service ended while it imported; import it again", code="interrupted")


def _fail(context: WorkerContext, digest: str, error: ApplianceError) -> None:
    """Record the failure of the import. A cancelled import has its entry already.

    The end of the service ends the workers, so an error from then on is recorded as the interruption.
    """
    record = state_with_retry(context).imports.get(digest)
    if record is not None and record.status == "cancelled":
        _discard_uploads(context, digest)
        context.progress.end(
            digest, error=WorkError(code=CANCELLED, message=f"import of {record.subject} was cancelled")
        )
        return
    is_ending = context.closing.is_set()
    error = make_interruption() if is_ending else error
    hidden = record is not None and record.blind and not is_ending
    message = conceal(BLIND_FAILURE.format(subject=record.subject) if record and hidden else error.message)
    with suppress(Denied):
        body = ImportFailed(order=digest, code=error.code, message=message.commitment)
        append_with_retry(context, body, disclosures=(message,))
    _discard_uploads(context, digest)
    context.progress.fail(digest, error.code, message)


def _discard_uploads(context: LedgerContext, digest: str) -> None:
    """Remove the uploads that the import read.

    Uploads that another import still has to read are kept. Uploads sent again since the order are kept, too, because an
    order may be about to be signed for them. The next start removes what this could not.
    """
    try:
        with contain_defects("uploads"):
            state = context.ledger.state
            ordered = state.imports.get(digest)
            if ordered is None:
                return
            uploads = context.uploads.named(digest) or _uploads_of(context, ordered)
            time = parse_entry(context.ledger.entry_bytes(ordered.index)).time
            sent_by = parse_time(state.site.happened_by(ordered.index, time))
            discard_unwanted(context, uploads, sent_by.timestamp())
    except ApplianceError as error:
        log.warning("uploads of import %s stay until the next start: %s", digest, error.code)


def discard_unwanted(context: LedgerContext, uploads: Iterable[UploadKey], sent_by: float) -> None:
    """Remove the given uploads that no import waits for, that no submitted order names, and that were not sent again
    since.

    The files and manifests are read and removed without the lock of orders, so that no order waits for the disk.
    """
    for record in context.ledger.state.imports.values():
        if record.status != "requested":
            context.uploads.forget(record.order)
        elif not context.uploads.named(record.order):
            context.uploads.name(record.order, _uploads_of(context, record))
    for upload in set(uploads):
        context.uploads.discard(context.artifacts, upload, sent_by)


def _uploads_of(context: LedgerContext, record: Import) -> list[UploadKey]:
    """Return the uploads that an import reads. Its order may have become invalid since."""
    order = ORDERS.read_recorded(context.ledger.state, context.ledger.documents_of(record.index)["order"]).order
    if isinstance(order, ImportRows):
        return [UploadKey(order.signer, digest) for digest in order.files]
    if not isinstance(order, ImportBase):
        return []
    try:
        return _list_base_uploads(context, order)
    except ApplianceError:  # the manifest is missing or names no files
        return [UploadKey(order.signer, order.source)]


def _start(context: RunContext, order: ImportBase | ImportRows, digest: str) -> None:
    enqueue(context, digest, order.action, order.signer)


EFFECTS = (
    Effect(ImportBase, ready=check_base_uploaded, start=_start, local=True),
    Effect(ImportDataset, ready=check_rows_uploaded, start=_start, local=True),
    Effect(ImportValidationSet, ready=check_rows_uploaded, start=_start, local=True),
    Effect(CancelImport, start=lambda context, order, _: stop_run_workers(context, order.order)),
)


KEPT_S = 86_400
"""Seconds that an upload is kept without an import."""


def sweep_uploads(context: LedgerContext) -> None:
    """Remove uploads that are older than a day and that no import waits for.

    A failure is logged, and the next sweep tries again.
    """
    sent_by = context.clock().timestamp() - KEPT_S
    old = [key for key, one in context.artifacts.uploads().items() if one.sent_at <= sent_by]
    if not old:
        return
    try:
        discard_unwanted(context, old, sent_by)
    except ApplianceError as error:
        log.warning("%d uploads that nobody imported stay: %s", len(old), error.code)
