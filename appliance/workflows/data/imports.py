"""A base, a dataset or a validation set is taken in: uploaded bytes, a sandboxed worker that parses them, an entry that
binds them."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import Import
from appliance.domain.core.signatures import Accepted
from appliance.domain.core.state import State
from appliance.domain.data.bases import BaseImported
from appliance.domain.data.datasets import DatasetImported, next_dataset_version
from appliance.domain.data.imports import (
    CancelImport,
    ImportBase,
    ImportDataset,
    ImportFailed,
    ImportRows,
    ImportValidationSet,
)
from appliance.domain.data.standing import base_is
from appliance.domain.data.validation_sets import ValidationSetImported, next_set_version
from appliance.domain.evaluation.judging import CALLED_ROWS
from appliance.domain.rulebook.registry import ORDERS
from appliance.errors import ApplianceError, BadInput, Denied, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import Manifest, ManifestFile, parse_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.timestamp import parse_time
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.effects import Effect, lease_of
from appliance.workflows.core.halt import halt
from appliance.workflows.core.jobs import Jobs
from appliance.workflows.core.record import conceal
from appliance.workflows.core.retry import append_with_retry, state_with_retry
from appliance.workflows.core.workers import Bounds, carry_out, check_walls, worker
from appliance.workflows.data.folders import recording, seal_folder, secret_name
from appliance.workflows.integrity.quarantine import quarantine_base

log = logging.getLogger("appliance")

_MAX_MANIFEST = 1 << 20
HELD_OUT = "held-out"
CANCELLED = "cancelled"
_BASE_STEP, DATASET_STEP = 2 << 30, 4 << 20
"""Bytes for which an import may take as long again. A base is copied and read once more; a row is rendered, and a
compressed one is many times its size."""
_RETRY_FOR_S = 60.0
"""No more for what it imported, which may be what fills the disk; why it failed is recorded once that is gone."""
BLIND_FAILURE = "{subject}: its rows cannot be used; what is wrong is not recorded of a blind set: check the file first"
MEASURED = ("rows", "max_tokens", "mean_tokens", "mean_trained_tokens")
_OF_A_DATASET = ("train_rows", "held_out_rows", "lengths")
_GROUPED = ("clusters", "slices", CALLED_ROWS)
"""Facts of rows, those of a dataset alone, and those of rows whose import named such a column or which have tools."""


def check_base_uploaded(context: Context, order: ImportBase) -> None:
    """The bytes that the order binds were uploaded; NotFound names the digest that was not."""
    context.artifacts.upload(order.source)
    if order.format == "safetensors":
        read_source_manifest(context, order)


def check_rows_uploaded(context: Context, order: ImportRows) -> None:
    """The files that the order binds were uploaded; NotFound names the digest that was not."""
    for digest in order.files:
        context.artifacts.upload(digest)


def read_source_manifest(context: Context, order: ImportBase) -> Manifest:
    """The manifest of an uploaded model folder; every file it lists must have been uploaded."""
    path = context.artifacts.upload(order.source)
    if path.stat().st_size > _MAX_MANIFEST:
        size = path.stat().st_size
        raise BadInput(f"base {order.base}, manifest: expected at most {_MAX_MANIFEST} bytes, got {size}")
    manifest = parse_manifest(path.read_bytes())
    for file in manifest.files:
        context.artifacts.upload(file.digest)
    return manifest


def enqueue(context: Context, digest: str, verb: str) -> None:
    """The import that the order of this digest asked for is carried through when its turn comes."""
    carry = {ImportBase.verb: import_base}.get(verb, import_rows)
    queue_of(context, verb).put(partial(carry, context, digest))


def queue_of(context: Context, verb: str) -> Jobs:
    """Bases and datasets have a queue each: a base takes minutes, a dataset seconds."""
    return context.bases if verb == ImportBase.verb else context.datasets


def bounds_of(context: Context, files: Iterable[Path], step: int) -> Bounds:
    """What the worker may take: the site's settings for a small import, and as much again for each `step` bytes."""
    factor = 1 + sum(path.stat().st_size for path in files) / step
    return Bounds(context.import_s * factor, math.ceil(context.import_cpu_s * factor))


def _check_wanted(context: Context, digest: str) -> None:
    """Once the worker can be found and ended: a cancellation that was recorded before has not found it."""
    record = context.ledger.state.imports.get(digest)
    if record is not None and record.status == "cancelled":
        raise Denied(f"import of {record.subject}: expected an open one, got one that was cancelled", code=CANCELLED)


def _prepare(
    context: Context, digest: str, bounds: Bounds, task: Frame, key: bytes = b"", *, read: tuple[Path, ...], write: Path
) -> tuple[Frame, dict[str, str]]:
    """The preparing worker's result, and what its probes found."""
    module = "appliance.worker.prepare"
    with worker(context, digest, module, read=read, write=(write,), cpu_s=bounds.cpu_s) as started:
        _check_wanted(context, digest)
        walls = check_walls(started)
        result = carry_out(
            started, task, key, bounds=bounds, on_frame=lambda frame: context.progress.publish(digest, frame)
        )
    return result, walls


def import_base(context: Context, digest: str) -> None:
    """Converts the uploaded GGUF file or model folder and records the base, or why not."""

    def work(staging: Path, source: Path) -> dict[str, Any]:
        order: ImportBase = _order(context, digest, ImportBase)
        if order.format == "gguf":
            given = source / "model.gguf"
            context.artifacts.place_upload(order.source, given)
        else:
            given = source
            for file in read_source_manifest(context, order).files:
                (source / file.path).parent.mkdir(parents=True, exist_ok=True)
                context.artifacts.place_upload(file.digest, source / file.path)
        bounds = bounds_of(context, (path for path in source.rglob("*") if path.is_file()), _BASE_STEP)
        task = {"task": "base", "source": str(given), "output": str(staging)}
        result, walls = _prepare(context, digest, bounds, task, read=(source,), write=staging)
        facts = {key: value for key, value in result.items() if key != "frame"}
        manifest = seal_folder(context, staging, order.base, 1)
        body = BaseImported(order=digest, base=order.base, facts=facts, walls=walls)
        with recording(context, digest_bytes(manifest)):
            append_with_retry(context, body, most_s=_RETRY_FOR_S, documents={"manifest": manifest})
        return {"base": order.base, "digest": digest_bytes(manifest), "facts": facts}

    _carry_through(context, digest, work)


def import_rows(context: Context, digest: str) -> None:
    """Parses, splits and renders the uploaded file and records the dataset or validation set, or why not (with the
    line; of a blind set without)."""

    def work(staging: Path, source: Path) -> dict[str, Any]:
        order: ImportRows = _order(context, digest, ImportRows)
        given = source / f"rows.{order.format}"
        for upload, path in zip(order.files, (given, source / HELD_OUT), strict=False):
            context.artifacts.place_upload(upload, path)
        base = checked_base(context, order.base)
        key = secrets.token_bytes(32)
        bounds = bounds_of(context, source.iterdir(), DATASET_STEP)
        task = _rows_task(context, order, given, base, staging)
        result, walls = _prepare(context, digest, bounds, task, key, read=(source, base), write=staging)
        named = _name_rows(context.ledger.state, order)
        facts = _measure(order, result)
        sealed = digest_bytes(manifest := seal_folder(context, staging, *named))
        body = _imported(digest, order, versioned(*named), result["root"], facts, walls)
        with recording(context, sealed):
            # The key is durable before the entry: without it no row could ever be proved to be in the dataset.
            context.keyring.keep_secret(secret_name(sealed), key)
            append_with_retry(context, body, most_s=_RETRY_FOR_S, documents={"manifest": manifest})
        told = {"digest": sealed, "facts": facts}
        if isinstance(order, ImportValidationSet):
            return {"validation_set": versioned(*named), **told}
        return {"dataset": versioned(*named), **told, "labels": result["labels"], "sample": result["sample"]}

    _carry_through(context, digest, work)


def _name_rows(state: State, order: ImportRows) -> tuple[str, int]:
    """Its name and the next version."""
    kind, _, name = order.subjects()[0][0].partition(":")
    following = next_set_version if kind == "validation-set" else next_dataset_version
    return name, following(state, name)


def _measure(order: ImportRows, result: Frame) -> dict[str, Any]:
    """What the entry says of the rows: numbers alone."""
    names = (*MEASURED, *(() if isinstance(order, ImportValidationSet) else _OF_A_DATASET))
    grouped = {name: result[name] for name in _GROUPED if name in result}
    return {"task": order.task, **{name: result[name] for name in names}, "labels": len(result["labels"]), **grouped}


def _imported(
    digest: str, order: ImportRows, name: str, root: str, facts: dict[str, Any], walls: dict[str, str]
) -> DatasetImported | ValidationSetImported:
    said: dict[str, Any] = {"order": digest, "base": order.base, "root": root, "facts": facts, "walls": walls}
    if isinstance(order, ImportValidationSet):
        return ValidationSetImported(validation_set=name, **said)
    return DatasetImported(dataset=name, **said)


def _rows_task(context: Context, order: ImportRows, given: Path, base: Path, staging: Path) -> dict[str, Any]:
    texts = context.ledger.disclosures([order.instruction])
    if order.instruction not in texts:
        raise BadInput(f"{order.subjects()[0][0]}, instruction: expected its text beside the order, got none")
    return {
        "teaches": order.task,
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
    """Which worker's task it is, and which rows are held out."""
    if isinstance(order, ImportValidationSet):
        return {"task": "validation-set", "blind": order.blind}
    if not isinstance(order, ImportDataset):
        raise BadInput(f"import: expected rows of a dataset or a validation set, got {order.verb}")
    if order.held_out_file is not None:
        return {"task": "dataset", "seed": order.seed, "held_out_source": str(given.parent / HELD_OUT)}
    return {"task": "dataset", "seed": order.seed, "held_out": order.held_out}


def checked_base(context: Context, name: str) -> Path:
    """The base's folder, hashed again; when it changed on disk it is quarantined and Tampered raised.

    Denied where the base does not stand.
    """
    state = context.ledger.state
    base = state.bases.get(name)
    if base is None:
        raise Denied(f"base: expected an imported one, got {name}")
    if reasons := base_is(state, name, base.digest):
        raise Denied(reasons[0])
    try:
        context.artifacts.check(base.digest)
    except Unavailable:
        raise  # says nothing of the bytes
    except ApplianceError as error:
        index = quarantine_base(context, base, error.message)
        said = f"base {name}: expected the bytes of its manifest, got a file that differs; entry {index} names it"
        raise Tampered(said) from error
    return context.artifacts.path(base.digest)


def _order(context: Context, digest: str, model: type[Any]) -> Any:
    """The order of an import under way, read again from the ledger."""
    state: State = context.ledger.state
    record = state.imports.get(digest)
    if record is None:
        raise NotFound(f"import: expected one that was ordered, got {digest}")
    order = ORDERS.read_logged(state, context.ledger.documents_of(record.index)["order"], record.index).order
    if not isinstance(order, model):
        raise BadInput(f"import {digest}: expected {model.verb}, got {order.verb}")
    return order


def _carry_through(context: Context, digest: str, work: Callable[[Path, Path], dict[str, Any]]) -> None:
    """Runs an import and leaves an outcome in any case: an entry, a result for the asker, no folder half-made."""
    record = state_with_retry(context).imports.get(digest)
    if record is not None and record.status not in ("requested", "cancelled"):
        return  # taken up twice
    try:
        _check_wanted(context, digest)
        with contain_defects("import"), context.artifacts.staging() as staging, context.artifacts.staging() as source:
            result = work(staging, source)
    except ApplianceError as error:
        _fail(context, digest, error)
    else:
        _discard_uploads(context, digest)
        context.progress.end(digest, result=result)
    with suppress(Unavailable):
        context.processes.disown(lease_of(digest))


def _fail(context: Context, digest: str, error: ApplianceError) -> None:
    """The import's failure as an entry; a cancelled one has its entry already."""
    record = state_with_retry(context).imports.get(digest)
    if record is not None and record.status == "cancelled":
        _discard_uploads(context, digest)
        context.progress.end(digest, error={"code": CANCELLED, "message": f"import of {record.subject} was cancelled"})
        return
    hidden = record is not None and record.blind
    message = conceal(BLIND_FAILURE.format(subject=record.subject) if record and hidden else error.message)
    with suppress(Denied):
        body = ImportFailed(order=digest, code=error.code, message=message.commitment)
        append_with_retry(context, body, disclosures=(message,))
    _discard_uploads(context, digest)
    context.progress.fail(digest, error.code, message)


def _discard_uploads(context: Context, digest: str) -> None:
    """Removes the uploads that the import read, except those that another import still has to read, and those sent
    since it was ordered, for which an order may be about to be signed. The rest is removed at the next start."""
    try:
        # The lock, so that no order has found them and is not recorded yet.
        with contain_defects("uploads"), context.order_lock:
            state = context.ledger.state
            ordered = state.imports.get(digest)
            if ordered is None:
                return
            time = parse_entry(context.ledger.entry_bytes(ordered.index)).time
            sent_by = parse_time(state.site.happened_by(ordered.index, time))
            discard_unwanted(context, _uploads_of(context, ordered), sent_by.timestamp())
    except ApplianceError as error:
        log.warning("uploads of import %s stay until the next start: %s", digest, error.code)


def discard_unwanted(context: Context, uploads: Iterable[str], sent_by: float) -> None:
    """Those of these uploads that no import waits for and that were not sent again since."""
    with context.order_lock:
        waiting = [record for record in context.ledger.state.imports.values() if record.status == "requested"]
        kept = [upload for record in waiting for upload in _uploads_of(context, record)]
        for upload in set(uploads).difference(kept):
            context.artifacts.discard_upload(upload, sent_by)


def _uploads_of(context: Context, record: Import) -> list[str]:
    """The digests of what the import reads, whether its order counts still or not."""
    order = ORDERS.read_recorded(context.ledger.state, context.ledger.documents_of(record.index)["order"]).order
    if isinstance(order, ImportRows):
        return list(order.files)
    if not isinstance(order, ImportBase):
        return []
    files: tuple[ManifestFile, ...] = ()
    if order.format == "safetensors":
        with suppress(ApplianceError):  # a manifest that names no files, or is not there
            files = read_source_manifest(context, order).files
    return [order.source, *(file.digest for file in files)]


def _start(context: Context, accepted: Accepted) -> None:
    enqueue(context, accepted.digest, accepted.order.verb)


def _cancel(context: Context, accepted: Accepted) -> None:
    if isinstance(accepted.order, CancelImport):
        halt(context, accepted.order.order)


EFFECTS = (
    Effect(ImportBase, ready=check_base_uploaded, start=_start, local=True),
    Effect(ImportDataset, ready=check_rows_uploaded, start=_start, local=True),
    Effect(ImportValidationSet, ready=check_rows_uploaded, start=_start, local=True),
    Effect(CancelImport, start=_cancel),
)
