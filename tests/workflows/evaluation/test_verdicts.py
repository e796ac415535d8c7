"""The service evaluates from bytes: items must be of the dataset, and the program gives what the rules give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event, RLock
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.records.runs import AdapterEvaluation, Run
from appliance.domain.evaluation.items import ITEMS_FILE, EvaluationItem, encode_items
from appliance.domain.evaluation.verdict import VerdictInputs, conclude, parse_verdict
from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.artifacts.rows import row_digest
from appliance.formats.core.canonical import encode_canonical
from appliance.workflows.evaluation.verdicts import AdapterFindings, evaluate_by_gates, list_rows, verify_evaluation
from scripts.kit.item_groups import Group, make_items
from scripts.kit.log_builder import LogBuilder, stage
from tests.domain.evaluation.test_rules import AGAINST_RELEASED, GATES, release
from tests.kit.one_process import one_process

RUN, KEY = "r-000001", bytes(32)
SIDES = ["train", "held-out"] * 60
LINES = [encode_canonical({"split": side, "text": f'"split":"held-out" {n}'}) for n, side in enumerate(SIDES)]
DIGESTS = [row_digest(KEY, index, line) for index, line in enumerate(LINES)]
ROWS = [digest.hex() for digest, side in zip(DIGESTS, SIDES, strict=True) if side == "held-out"]
ITEMS = make_items([Group(30, adapter=True, base=False), Group(30, adapter=True, base=True)], rows=ROWS)


def context_of(site: LogBuilder, logs: Path) -> Any:
    """Over the builder's log; folders are held in `files`, by manifest and path."""
    dataset = site.state.datasets.get("clauses@1")
    assert dataset is not None
    files = {
        (dataset.digest, "rows.jsonl"): b"".join(line + b"\n" for line in LINES),
        (dataset.digest, "row_digests.bin"): b"".join(DIGESTS),
    }

    def documents_of(index: int) -> dict[str, bytes]:
        return {role: site.documents[digest] for role, digest in parse_entry(site.entries[index]).documents.items()}

    return SimpleNamespace(
        **one_process(),
        ledger=SimpleNamespace(state=site.state, documents_of=documents_of, lock=RLock()),
        artifacts=SimpleNamespace(read=lambda digest, path: files[(digest, path)]),
        files=files,
        logs=logs,
        closing=Event(),
    )


def trained(site: LogBuilder, gates: Any = GATES) -> Run:
    row = site.state.runs.get(site.train(gates=gates))
    assert row is not None
    return row


def seal(site: LogBuilder, context: Any, run: Run, found: AdapterFindings, version: int = 1) -> AdapterEvaluation:
    """As the service seals what it found."""
    items = found.files[ITEMS_FILE]
    beside = {path: data for path, data in found.files.items() if path == "calibration.json"}
    site.seal(run.id, version, items=items, verdict=found.documents, files=beside)
    adapter = site.state.adapters.get(f"clauses@{version}")
    assert adapter is not None
    context.files |= {(adapter.manifest, path): data for path, data in found.files.items()}
    evaluation = site.state.evaluations.get(f"clauses@{version}")
    assert evaluation is not None
    return evaluation


def never() -> bool:
    return False


def test_the_rows_of_a_dataset_are_those_that_are_held_out_whatever_their_text_says(tmp_path: Path) -> None:
    assert list_rows(context_of(stage("imported"), tmp_path), "clauses@1") == ROWS


@pytest.mark.thorough
def test_the_program_gives_what_is_computed_here(tmp_path: Path) -> None:
    site = stage("imported").fork()
    run, context = trained(site), context_of(site, tmp_path)
    found = evaluate_by_gates(context, run, {ITEMS_FILE: encode_items(ITEMS)}, {})
    here = conclude(GATES, ITEMS, VerdictInputs({"held-out": ITEMS}, {("released", "held-out"): None}, {"held-out": 0}))
    assert (found.documents["verdict"], found.files["calibration.json"]) == here
    assert found.documents["gates"] == found.files["gates.json"] == encode_value(GATES)
    assert parse_verdict(found.files["verdict.json"]).passed
    verify_evaluation(context, seal(site, context, run, found), never)


@pytest.mark.thorough
def test_without_gates_items_and_calibration_are_sealed_and_hold(tmp_path: Path) -> None:
    site = stage("imported").fork()
    run, context = trained(site, None), context_of(site, tmp_path)
    found = evaluate_by_gates(context, run, {ITEMS_FILE: encode_items(ITEMS)}, {})
    assert found.files.keys() == {ITEMS_FILE, "calibration.json"} and not found.documents
    evaluation = seal(site, context, run, found)
    verify_evaluation(context, evaluation, never)
    context.files[(_manifest(site), "calibration.json")] = b"{}"
    with pytest.raises(Tampered, match=r"calibration.json: expected sha256:"):
        verify_evaluation(context, evaluation, never)


def _manifest(site: LogBuilder, version: int = 1) -> str:
    row = site.state.adapters.get(f"clauses@{version}")
    assert row is not None
    return row.manifest


@pytest.mark.thorough
def test_the_released_version_is_compared_with_from_its_own_folder(tmp_path: Path) -> None:
    site = stage("imported").fork()
    before = make_items([Group(25, adapter=True, base=False), Group(35, adapter=True, base=True)], rows=ROWS)
    release(site, before)
    context = context_of(site, tmp_path)
    context.files[(_manifest(site), ITEMS_FILE)] = encode_items(before)
    run = trained(site, AGAINST_RELEASED)
    found = evaluate_by_gates(context, run, {ITEMS_FILE: encode_items(ITEMS)}, {})
    verdict = parse_verdict(found.documents["verdict"])
    assert [one.model for one in verdict.evaluated] == ["released", "run"]
    assert verdict.evaluated[0].evaluated_before == 1
    evaluation = seal(site, context, run, found, version=2)
    verify_evaluation(context, evaluation, never)
    context.files[(_manifest(site), ITEMS_FILE)] = encode_items(ITEMS[1:])
    for work in (
        lambda: evaluate_by_gates(context, run, {ITEMS_FILE: encode_items(ITEMS)}, {}),
        lambda: verify_evaluation(context, evaluation, never),
    ):
        with pytest.raises(Tampered, match=r"adapter clauses@1, items.jsonl: expected sha256:"):
            work()


def lines() -> list[bytes]:
    return encode_items(ITEMS).splitlines(keepends=True)


def swapped(some: list[bytes]) -> bytes:
    return b"".join([some[1], some[0], *some[2:]])


def in_place_of_one() -> bytes:
    other = ITEMS[0].model_copy(update={"row": "0" * 64})
    return encode_items([other, *ITEMS[1:]])


SPOILT: list[tuple[str, Callable[[], bytes], type[ApplianceError], str]] = [
    ("dropped", lambda: b"".join(lines()[1:]), Tampered, "expected the 60 rows of the set, got 1 of them missing"),
    ("typed-in", in_place_of_one, Tampered, "got 1 of them missing and 1 that are not of the set"),
    (
        "added",
        lambda: encode_items([*ITEMS, ITEMS[0].model_copy(update={"row": "f" * 64})]),
        Tampered,
        "and 1 that are",
    ),
    ("reordered", lambda: swapped(lines()), BadInput, "line 2, row: expected one above"),
    ("twice", lambda: b"".join([lines()[0], *lines()]), BadInput, "got the same row"),
    ("a-row's-text", lambda: lines()[0].replace(b'"row":', b'"question":"my name is","row":'), BadInput, "line 1"),
    ("other-layout", lambda: lines()[0].replace(b":", b": ", 1), BadInput, "expected canonical JSON"),
    ("cut", lambda: encode_items(ITEMS)[:-5], BadInput, "got a last one without its end"),
    ("none", lambda: b"", BadInput, "expected 1 to 100000 items, got 0"),
]


@pytest.mark.parametrize(("name", "spoilt", "kind", "message"), SPOILT, ids=[one[0] for one in SPOILT])
def test_what_a_worker_wrote_is_no_record_unless_it_is_whole(
    name: str, spoilt: Callable[[], bytes], kind: type[ApplianceError], message: str, tmp_path: Path
) -> None:
    site = stage("imported").fork()
    run, context = trained(site), context_of(site, tmp_path)
    with pytest.raises(kind) as refused:
        evaluate_by_gates(context, run, {ITEMS_FILE: spoilt()}, {})
    assert message in refused.value.message


def better(item: EvaluationItem) -> EvaluationItem:
    return item.model_copy(update={"base": item.base.model_copy(update={"right": False, "label": "other"})})


@pytest.mark.thorough
@pytest.mark.parametrize("change", ["items", "verdict", "rows"])
def test_what_was_changed_with_the_disk_and_the_database_is_found(change: str, tmp_path: Path) -> None:
    """An attacker who owns the machine seals other items or another verdict: the recorded entry does not agree."""
    site = stage("imported").fork()
    run, context = trained(site), context_of(site, tmp_path)
    found = evaluate_by_gates(context, run, {ITEMS_FILE: encode_items(ITEMS)}, {})
    files, documents = dict(found.files), dict(found.documents)
    if change == "items":
        files[ITEMS_FILE] = encode_items([better(ITEMS[-1]), *ITEMS[:-1]])
        documents = {**documents, **site.evaluate(run.id, files[ITEMS_FILE])}
        verdict = parse_verdict(documents["verdict"])
        first = verdict.results[0].model_copy(update={"gain": "0.900000000"})
        documents["verdict"] = encode_value(verdict.model_copy(update={"results": (first,)}))
    elif change == "verdict":
        verdict = parse_verdict(documents["verdict"])
        first = verdict.results[0].model_copy(update={"ours": "0.999999999"})
        documents["verdict"] = encode_value(verdict.model_copy(update={"results": (first,)}))
    else:
        files[ITEMS_FILE] = encode_items(make_items([Group(60, adapter=True, base=False)]))
        documents = site.evaluate(run.id, files[ITEMS_FILE])
    evaluation = seal(site, context, run, AdapterFindings(files, documents))
    message = {"rows": "got 60 of them missing and 60 that are not of the set"}.get(change, "verdict: expected sha256:")
    with pytest.raises(Tampered, match=message):
        verify_evaluation(context, evaluation, never)
