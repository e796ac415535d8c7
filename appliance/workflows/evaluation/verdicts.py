"""The evaluation's verdict: items are checked against the dataset's rows, and a separate program computes the verdict.

`verify_evaluation` computes the same again from the sealed folders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.names import split_version
from appliance.domain.core.records.runs import AdapterEvaluation, Run
from appliance.domain.data.kinds import METRIC, SHIPPED, is_local
from appliance.domain.evaluation.basis import ItemsFile, find_basis, find_records, items_path, sets_by_name
from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import check_rows, parse_items
from appliance.domain.evaluation.quality import VLLM
from appliance.domain.evaluation.rules import CALIBRATION_FILE, GATES_FILE, VERDICT_FILE, list_evaluated_rows
from appliance.domain.evaluation.shipped.sets import find_shipped_rows
from appliance.domain.evaluation.verdict import (
    Conclusion,
    EvaluatedSet,
    TrainingOverlap,
    parse_verdict,
    read_verdict_inputs,
)
from appliance.domain.runs.training import Train
from appliance.errors import ApplianceError, Tampered
from appliance.formats.artifacts.manifest import parse_manifest
from appliance.formats.artifacts.rows import split_digests
from appliance.formats.core.digest import digest_bytes
from appliance.workflows.core.context import LedgerContext, WorkerContext
from appliance.workflows.core.retry import check_run_valid
from appliance.workflows.core.workers import ask_program, carry_out, check_sandbox, worker
from appliance.workflows.evaluation.verdict_program import VerdictInput, encode_question

PROGRAM = "appliance.workflows.evaluation.verdict_program"
MOST_BYTES = 16 << 20
"""Most bytes of verdict and calibration together. A document of an entry has at most 4 MiB."""


@dataclass(frozen=True)
class AdapterFindings:
    """The findings about an adapter. `files`: sealed beside the weights. `documents`: bound by the entry."""

    files: Mapping[str, bytes]
    documents: Mapping[str, bytes]


def evaluate_by_gates(
    context: LedgerContext, run: Run, items: Mapping[str, bytes], found_on: Mapping[str, Mapping[str, Any]]
) -> AdapterFindings:
    """Return the findings about a run that was trained and evaluated.

    `items`: the unchecked bytes of the worker's files by path. `found_on`: by set, the counts that the worker reports.

    Raises:
        BadInput: The bytes are no record of items.
        Tampered: The items do not belong to exactly the rows of their sets.
    """
    gates = None if run.gates is None else context.ledger.documents_of(run.index)["gates"]
    with context.ledger.lock:
        basis = find_basis(context.ledger.state, run, None if gates is None else parse_gates(gates))
    paths = {items_path(name, released=released): name for name in basis.sets for released in (False, True)}
    for path, data in items.items():
        _check_items(data, list_rows_of(context, run, paths[path]), f"{path} of {run.id}")
    others = {key: None if one is None else _read_record(context, one, items) for key, one in basis.others.items()}
    question = VerdictInput(
        gates,
        {name: items[items_path(name)] for name in basis.sets},
        others,
        basis.evaluated_before,
        basis.named_before,
        {
            name: TrainingOverlap(found["duplicates"], found["near_duplicates"])
            for name, found in found_on.items()
            if "duplicates" in found
        },
    )
    found = _compute(context, question, run.id, context.closing.is_set)
    files = dict(items)
    if found.calibration is not None:
        files[CALIBRATION_FILE] = found.calibration
    if gates is None or found.verdict is None:
        return AdapterFindings(files, {})
    documents = {"gates": gates, "verdict": found.verdict}
    return AdapterFindings(files | {GATES_FILE: gates, VERDICT_FILE: found.verdict}, documents)


def _check_items(data: bytes, rows: Sequence[str] | None, what: str) -> None:
    items = parse_items(data, what)
    if rows is not None:
        check_rows(items, rows, what)


def list_rows_of(context: LedgerContext, run: Run, name: str) -> Sequence[str] | None:
    """Return the keyed digests of a set's rows on which the run is evaluated, or None if only the set's files define
    them.
    """
    if name == HELD_OUT or name.startswith(METRIC):
        return list_rows(context, run.dataset)
    if is_local(name):
        bound = next(one for one in run.local_sets if one.set == name)
        return find_shipped_rows(bound) if name in SHIPPED else None
    found = context.ledger.state.validation_sets.require(sets_by_name(run)[name])
    return _list_rows(context, found.digest, found.dataset_kind)


def list_rows(context: LedgerContext, name: str) -> list[str]:
    """Return the keyed digests of the dataset's rows on which a run is evaluated, in the rows' order."""
    dataset = context.ledger.state.datasets.require(name)
    return _list_rows(context, dataset.digest, str(dataset.facts.get("dataset_kind")))


def _list_rows(context: LedgerContext, digest: str, dataset_kind: str) -> list[str]:
    digests = split_digests(context.artifacts.read(digest, "row_digests.bin"))
    return list_evaluated_rows(context.artifacts.read(digest, "rows.jsonl"), digests, dataset_kind)


def verify_evaluation(context: LedgerContext, evaluation: AdapterEvaluation, cancelled: Callable[[], bool]) -> None:
    """Check that the items belong to the rows of their sets and give the same verdict and calibration, byte for byte.

    The rule of `adapter.sealed` already ensures that the entry's documents equal the sealed files.

    Raises:
        Tampered: They do not.
    """
    what, run = f"adapter {evaluation.adapter}", context.ledger.state.runs.require(evaluation.run)
    own = {HELD_OUT: evaluation.items} | {split_version(one.validation_set)[0]: one.items for one in evaluation.sets}
    own |= {one.set: one.items for one in evaluation.local_sets}
    items = {name: _read_items(context, evaluation.adapter, items_path(name), digest) for name, digest in own.items()}
    for name, data in items.items():
        _check_items(data, list_rows_of(context, run, name), f"{what}, {items_path(name)}")
    question, documents = VerdictInput(None, items), context.ledger.documents_of(evaluation.index)
    if evaluation.verdict is not None:
        question = _restore_question(context, evaluation, documents, items)
    found = _compute(context, question, "verification", cancelled)
    _compare(what, "verdict", documents.get("verdict"), found.verdict)
    if found.calibration is not None:
        _compare(what, CALIBRATION_FILE, _read(context, evaluation.adapter, CALIBRATION_FILE), found.calibration)


def _restore_question(
    context: LedgerContext, evaluation: AdapterEvaluation, documents: Mapping[str, bytes], items: Mapping[str, bytes]
) -> VerdictInput:
    """Return the question of the stored verdict, with the records that it names."""
    verdict, gates = parse_verdict(documents["verdict"]), parse_gates(documents["gates"])
    places = find_records(context.ledger.state)
    listed = {file.path: file.digest for file in parse_manifest(documents["manifest"]).files}
    read: dict[tuple[str, str], bytes] = {}

    def read_once(one: EvaluatedSet) -> bytes:
        path = items_path(one.set, released=one.model == "released")
        found = (evaluation.adapter, path) if listed.get(path) == one.digest else places.get(one.digest)
        if found is None:
            message = f"expected items that a sealed adapter has, got {one.digest}"
            raise Tampered(f"adapter {evaluation.adapter}, verdict: {message}")
        return read.setdefault((one.model, one.set), _read_items(context, *found, one.digest))

    evidence = read_verdict_inputs(verdict, gates, read_once)
    others = {key: None if found is None else read[key] for key, found in evidence.others.items()}
    return VerdictInput(
        documents["gates"], items, others, evidence.evaluated_before, evidence.named_before, evidence.overlaps
    )


def _compare(what: str, name: str, stored: bytes | None, computed: bytes | None) -> None:
    if stored != computed:
        expected, got = ("none" if data is None else digest_bytes(data) for data in (computed, stored))
        raise Tampered(f"{what}, {name}: expected {expected}, which its items give, got {got}")


def _read_record(context: LedgerContext, record: ItemsFile, own: Mapping[str, bytes]) -> bytes:
    """Return the items of another adapter's sealed folder, or of this run's own evaluation."""
    if record.adapter is None or record.digest is None:
        if record.path not in own:
            raise Tampered(f"evaluation, {record.path}: expected items of the released version, got none")
        return own[record.path]
    return _read_items(context, record.adapter, record.path, record.digest)


def _read_items(context: LedgerContext, adapter: str, path: str, digest: str) -> bytes:
    data = _read(context, adapter, path)
    if digest_bytes(data) != digest:
        raise Tampered(f"adapter {adapter}, {path}: expected {digest}, got {digest_bytes(data)}")
    return data


def _read(context: LedgerContext, name: str, path: str) -> bytes:
    adapter = context.ledger.state.adapters.require(name)
    return context.artifacts.read(adapter.manifest, path)


def _compute(context: LedgerContext, question: VerdictInput, key: str, cancelled: Callable[[], bool]) -> Conclusion:
    """Compute the conclusion in the separate program, and raise the failure that it reports."""
    log = context.logs / f"{key}-evaluation.log"
    lines = encode_question(question)
    return ask_program(
        PROGRAM, "verdict", lines, _parse_conclusion, log=log, most_bytes=MOST_BYTES, cancelled=cancelled
    )


def _parse_conclusion(reply: dict[str, Any]) -> Conclusion:
    return Conclusion(*(None if reply[name] is None else reply[name].encode() for name in Conclusion._fields))


log = logging.getLogger("appliance")


def evaluate_on_vllm(
    context: WorkerContext,
    run: Run,
    order: Train,
    base: Path,
    dataset: Path,
    adapter: Path,
    fingerprint: dict[str, Any],
) -> dict[str, Any]:
    """Return what the site's other engine measures for the adapter on the held-out rows, or the code of its refusal.

    The result is by engine, and empty if the site uses the appliance's own engine. The run continues after a refusal,
    but the adapter cannot be served at this site.

    Raises:
        Denied: With the code `cancelled`, if the run was cancelled, or with `revoked` or `quarantined`, if an input of
            the run was withdrawn.
        Unavailable: The service ends; it has ended the worker. The next start continues the run.
    """
    if context.vllm is None:
        return {}
    task = {
        "base": str(base),
        "dataset": str(dataset),
        "adapter": str(adapter),
        "logit_fingerprint": fingerprint,
        "quantisation": order.recipe.quantisation,
        "compute_dtype": order.recipe.compute_dtype,
        "packages": str(context.vllm),
    }
    publish = partial(context.progress.publish, run.id)
    try:
        with worker(
            context,
            f"{run.id}:evaluate-vllm",
            "appliance.worker.evaluate_vllm",
            read=(base, dataset, adapter),
            libraries=(context.vllm,),
            gpu=context.device == "cuda",
        ) as started:
            check_sandbox(started)
            check_run_valid(context, run)
            result = carry_out(started, task, on_frame=lambda frame: publish({**frame, "stage": "evaluate on vllm"}))
    except ApplianceError as error:
        # The end of a worker that was stopped says nothing about the adapter.
        check_run_valid(context, run)
        if context.closing.is_set():
            raise
        log.warning("run %s: vLLM does not serve what it trained: %s", run.id, error.code)
        return {VLLM: {"refused": error.code}}
    return {VLLM: result["evaluated"]}
