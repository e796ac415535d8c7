"""An evaluation is judged: its items are checked against the dataset's rows, and the verdict is computed apart.

What is computed here from the sealed folders, `verify_judgement` computes again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.records import Judgement, Run
from appliance.domain.evaluation.evidence import Conclusion, read_evidence
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.evaluation.items import ITEMS_FILE, check_rows, parse_items
from appliance.domain.evaluation.judging import (
    CALIBRATION_FILE,
    GATES_FILE,
    HELD_OUT,
    VERDICT_FILE,
    find_basis,
    list_judged_rows,
)
from appliance.domain.evaluation.verdict import Judged, parse_verdict
from appliance.errors import NotFound, Tampered, Unavailable
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


def judge_run(context: Context, run: Run, items: bytes) -> Findings:
    """Of a run that is trained and was evaluated. `items`: the bytes that its worker wrote, not checked yet.

    BadInput where they are no record of items, Tampered where they are not of exactly the rows that are judged on.
    """
    check_rows(parse_items(items, f"{ITEMS_FILE} of {run.id}"), list_rows(context, run.dataset), ITEMS_FILE)
    gates = None if run.gates is None else context.ledger.documents_of(run.index)["gates"]
    basis = find_basis(context.ledger.state, run)
    others = {name: None if one is None else _read_items(context, one) for name, one in basis.others.items()}
    found = _compute(context, Question(gates, items, others, basis.judged_before), run.id, context.closing.is_set)
    files = {ITEMS_FILE: items}
    if found.calibration is not None:
        files[CALIBRATION_FILE] = found.calibration
    if gates is None or found.verdict is None:
        return Findings(files, {})
    documents = {"gates": gates, "verdict": found.verdict}
    return Findings(files | {GATES_FILE: gates, VERDICT_FILE: found.verdict}, documents)


def list_rows(context: Context, name: str) -> list[str]:
    """The keyed digests of the rows that a run on this dataset is judged on, in the rows' order."""
    dataset = context.ledger.state.datasets.get(name)
    if dataset is None:
        raise NotFound(f"dataset: expected an imported one, got {name}")
    digests = split_digests(context.artifacts.read(dataset.digest, "row_digests.bin"))
    return list_judged_rows(
        context.artifacts.read(dataset.digest, "rows.jsonl"), digests, str(dataset.facts.get("task"))
    )


def verify_judgement(context: Context, judgement: Judgement, cancelled: Callable[[], bool]) -> None:
    """Tampered unless the items are of the dataset's rows, and give verdict and calibration again, byte for byte.

    The entry's documents and the sealed files are one by the rule of `adapter.sealed`.
    """
    what = f"adapter {judgement.adapter}"
    items = _read_items(context, judgement)
    check_rows(
        parse_items(items, f"{what}, {ITEMS_FILE}"), list_rows(context, judgement.dataset), f"{what}, {ITEMS_FILE}"
    )
    gates, documents = None, context.ledger.documents_of(judgement.index)
    others: dict[str, bytes | None] = {}
    judged_before = 0
    if judgement.verdict is not None:
        gates, verdict = documents["gates"], parse_verdict(documents["verdict"])
        records = {one.items: one for one in context.ledger.state.judgements.values()}
        read: dict[str, bytes] = {}

        def keep(one: Judged) -> bytes:
            found = records.get(one.digest)
            if found is None:
                raise Tampered(f"{what}, verdict: expected items that a sealed adapter has, got {one.digest}")
            return read.setdefault(one.model, _read_items(context, found))

        evidence = read_evidence(verdict, parse_gates(gates), keep)
        others = {model: None if found is None else read[model] for (model, _), found in evidence.others.items()}
        judged_before = evidence.judged_before.get(HELD_OUT, 0)
    found = _compute(context, Question(gates, items, others, judged_before), "verification", cancelled)
    _compare(what, "verdict", documents.get("verdict"), found.verdict)
    if found.calibration is not None:
        _compare(what, CALIBRATION_FILE, _read(context, judgement.adapter, CALIBRATION_FILE), found.calibration)


def _compare(what: str, name: str, stored: bytes | None, computed: bytes | None) -> None:
    if stored != computed:
        expected, got = ("none" if data is None else digest_bytes(data) for data in (computed, stored))
        raise Tampered(f"{what}, {name}: expected {expected}, which its items give, got {got}")


def _read_items(context: Context, judgement: Judgement) -> bytes:
    data = _read(context, judgement.adapter, ITEMS_FILE)
    if digest_bytes(data) != judgement.items:
        raise Tampered(
            f"adapter {judgement.adapter}, {ITEMS_FILE}: expected {judgement.items}, got {digest_bytes(data)}"
        )
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
