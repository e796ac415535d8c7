"""An evaluation is judged: its items are checked against the dataset's rows, and the verdict is computed apart.

What is computed here from the sealed folders, `verify_judgement` computes again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.names import split_version
from appliance.domain.core.records.adapters import Judgement
from appliance.domain.core.records.runs import Run
from appliance.domain.data.local_sets import METRIC, SHIPPED, is_local
from appliance.domain.evaluation.basis import Record, find_basis, find_records, items_path, sets_by_name
from appliance.domain.evaluation.evidence import Conclusion, read_evidence
from appliance.domain.evaluation.gates import HELD_OUT, parse_gates
from appliance.domain.evaluation.items import check_rows, parse_items
from appliance.domain.evaluation.judging import CALIBRATION_FILE, GATES_FILE, VERDICT_FILE, list_judged_rows
from appliance.domain.evaluation.shipped.sets import find_shipped_rows
from appliance.domain.evaluation.verdict import Judged, Overlap, parse_verdict
from appliance.errors import NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import parse_manifest
from appliance.formats.artifacts.rows import split_digests
from appliance.formats.core.digest import digest_bytes
from appliance.runners.program import run_program
from appliance.workflows.core.context import Context
from appliance.workflows.core.workers import failure
from appliance.workflows.evaluation.judging_program import Question, encode_question

PROGRAM = "appliance.workflows.evaluation.judging_program"
MOST_BYTES = 16 << 20
"""Of verdict and calibration together; an entry's document has 4 MiB at most."""


@dataclass(frozen=True)
class Findings:
    """`files`: what is sealed beside the weights. `documents`: what the entry binds of it."""

    files: Mapping[str, bytes]
    documents: Mapping[str, bytes]


def judge_run(
    context: Context, run: Run, items: Mapping[str, bytes], found_on: Mapping[str, Mapping[str, Any]]
) -> Findings:
    """Of a run that is trained and was evaluated. `items`: the bytes of the files that its worker wrote, by path, not
    checked yet; `found_on`: by set, what it counted there.

    BadInput where they are no record of items, Tampered where they are not of exactly the rows that are judged on.
    """
    gates = None if run.gates is None else context.ledger.documents_of(run.index)["gates"]
    with context.ledger.lock:
        basis = find_basis(context.ledger.state, run, None if gates is None else parse_gates(gates))
    paths = {items_path(name, released=released): name for name in basis.sets for released in (False, True)}
    for path, data in items.items():
        _check_items(data, list_rows_of(context, run, paths[path]), f"{path} of {run.id}")
    others = {key: None if one is None else _read_record(context, one, items) for key, one in basis.others.items()}
    question = Question(
        gates,
        {name: items[items_path(name)] for name in basis.sets},
        others,
        basis.judged_before,
        basis.named_before,
        {
            name: Overlap(found["duplicates"], found["near_duplicates"])
            for name, found in found_on.items()
            if "duplicates" in found
        },
    )
    found = _compute(context, question, run.id, context.closing.is_set)
    files = dict(items)
    if found.calibration is not None:
        files[CALIBRATION_FILE] = found.calibration
    if gates is None or found.verdict is None:
        return Findings(files, {})
    documents = {"gates": gates, "verdict": found.verdict}
    return Findings(files | {GATES_FILE: gates, VERDICT_FILE: found.verdict}, documents)


def _check_items(data: bytes, rows: Sequence[str] | None, what: str) -> None:
    items = parse_items(data, what)
    if rows is not None:
        check_rows(items, rows, what)


def list_rows_of(context: Context, run: Run, name: str) -> Sequence[str] | None:
    """The keyed digests of the rows of a set that the run is judged on; None where only its files say what they are."""
    if name == HELD_OUT or name.startswith(METRIC):
        return list_rows(context, run.dataset)
    if is_local(name):
        bound = next(one for one in run.local_sets if one.set == name)
        return find_shipped_rows(bound) if name in SHIPPED else None
    version = sets_by_name(run)[name]
    found = context.ledger.state.validation_sets.get(version)
    if found is None:
        raise NotFound(f"validation set: expected an imported one, got {version}")
    return _list_rows(context, found.digest, found.task)


def list_rows(context: Context, name: str) -> list[str]:
    """The keyed digests of the rows that a run on this dataset is judged on, in the rows' order."""
    dataset = context.ledger.state.datasets.get(name)
    if dataset is None:
        raise NotFound(f"dataset: expected an imported one, got {name}")
    return _list_rows(context, dataset.digest, str(dataset.facts.get("task")))


def _list_rows(context: Context, digest: str, task: str) -> list[str]:
    digests = split_digests(context.artifacts.read(digest, "row_digests.bin"))
    return list_judged_rows(context.artifacts.read(digest, "rows.jsonl"), digests, task)


def verify_judgement(context: Context, judgement: Judgement, cancelled: Callable[[], bool]) -> None:
    """Tampered unless the items are of the rows of their sets, and give verdict and calibration again, byte for byte.

    The entry's documents and the sealed files are one by the rule of `adapter.sealed`.
    """
    what, run = f"adapter {judgement.adapter}", context.ledger.state.runs.get(judgement.run)
    if run is None:
        raise NotFound(f"run: expected {judgement.run}, got none")
    own = {HELD_OUT: judgement.items} | {split_version(one.validation_set)[0]: one.items for one in judgement.sets}
    own |= {one.set: one.items for one in judgement.local_sets}
    items = {name: _read_items(context, judgement.adapter, items_path(name), digest) for name, digest in own.items()}
    for name, data in items.items():
        _check_items(data, list_rows_of(context, run, name), f"{what}, {items_path(name)}")
    question, documents = Question(None, items), context.ledger.documents_of(judgement.index)
    if judgement.verdict is not None:
        question = _ask_again(context, judgement, documents, items)
    found = _compute(context, question, "verification", cancelled)
    _compare(what, "verdict", documents.get("verdict"), found.verdict)
    if found.calibration is not None:
        _compare(what, CALIBRATION_FILE, _read(context, judgement.adapter, CALIBRATION_FILE), found.calibration)


def _ask_again(
    context: Context, judgement: Judgement, documents: Mapping[str, bytes], items: Mapping[str, bytes]
) -> Question:
    """By the records that the stored verdict names."""
    verdict, gates = parse_verdict(documents["verdict"]), parse_gates(documents["gates"])
    places = find_records(context.ledger.state)
    listed = {file.path: file.digest for file in parse_manifest(documents["manifest"]).files}
    read: dict[tuple[str, str], bytes] = {}

    def keep(one: Judged) -> bytes:
        path = items_path(one.set, released=one.model == "released")
        found = (judgement.adapter, path) if listed.get(path) == one.digest else places.get(one.digest)
        if found is None:
            said = f"expected items that a sealed adapter has, got {one.digest}"
            raise Tampered(f"adapter {judgement.adapter}, verdict: {said}")
        return read.setdefault((one.model, one.set), _read_items(context, *found, one.digest))

    evidence = read_evidence(verdict, gates, keep)
    others = {key: None if found is None else read[key] for key, found in evidence.others.items()}
    return Question(documents["gates"], items, others, evidence.judged_before, evidence.named_before, evidence.overlaps)


def _compare(what: str, name: str, stored: bytes | None, computed: bytes | None) -> None:
    if stored != computed:
        expected, got = ("none" if data is None else digest_bytes(data) for data in (computed, stored))
        raise Tampered(f"{what}, {name}: expected {expected}, which its items give, got {got}")


def _read_record(context: Context, record: Record, own: Mapping[str, bytes]) -> bytes:
    """Of another adapter's sealed folder, or of what this run's evaluation wrote."""
    if record.adapter is None or record.digest is None:
        if record.path not in own:
            raise Tampered(f"evaluation, {record.path}: expected items of the released version, got none")
        return own[record.path]
    return _read_items(context, record.adapter, record.path, record.digest)


def _read_items(context: Context, adapter: str, path: str, digest: str) -> bytes:
    data = _read(context, adapter, path)
    if digest_bytes(data) != digest:
        raise Tampered(f"adapter {adapter}, {path}: expected {digest}, got {digest_bytes(data)}")
    return data


def _read(context: Context, name: str, path: str) -> bytes:
    adapter = context.ledger.state.adapters.get(name)
    if adapter is None:
        raise NotFound(f"adapter: expected a sealed one, got {name}")
    return context.artifacts.read(adapter.manifest, path)


def _compute(context: Context, question: Question, key: str, cancelled: Callable[[], bool]) -> Conclusion:
    """By the program; its failure is raised as what it names."""
    log = context.logs / f"{key}-judging.log"
    said = run_program(PROGRAM, encode_question(question), log=log, most_bytes=MOST_BYTES, cancelled=cancelled)
    try:
        value: dict[str, Any] = json.loads(said)
        if "failure" not in value:
            return Conclusion(*(None if value[name] is None else value[name].encode() for name in Conclusion._fields))
    except (ValueError, KeyError, AttributeError) as error:
        raise Unavailable(f"verdict: expected a whole one, got {type(error).__name__}", code="program-ended") from None
    raise failure(value["failure"])
