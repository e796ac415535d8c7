"""Sets beside the held-out rows: labels of the dataset, errors without words of a blind row, and a noise floor of
nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.data.kinds import DatasetDescription, DatasetKind, map_columns
from appliance.domain.evaluation.items import Answer, parse_items
from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.rows import tokenize_rows
from appliance.ml.data.sources import parse_source
from appliance.ml.evaluation import evaluation, sets
from appliance.ml.evaluation.sets import blur
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.machine import has_independent_rows
from tests.ml.evaluation.test_evaluation import RECORDS, _rows


def _evaluated(dataset_kind: DatasetKind, base: LoadedBase, folder: Path, **changes: Any) -> sets.EvaluatedRows:
    rows, samples, about = _rows(dataset_kind, base)
    every = [data.RenderedRow(n, "held-out", "", "", ()) for n in range(max(row.index for row in rows) + 1)]
    data.write_rows(every, about, folder, bytes(32))
    return replace(sets.EvaluatedRows("exam", folder, True, about, rows, samples), **changes)


def quiet(more: int, tokens: int) -> None:
    pass


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_an_answer_is_the_same_in_another_order_and_in_other_batches(
    dataset_kind: DatasetKind, apart: bool, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "appliance.ml.model.base.has_independent_rows", lambda device: apart and has_independent_rows(device)
    )
    evaluated = _evaluated(dataset_kind, base, tmp_path)
    found = evaluated.evaluate(base, None, quiet)
    noise = sets.measure_noise(base, None, evaluated, found.answers, seed=7)
    assert (noise["different"], noise["largest"]) == (0, 0) and noise["rows"] >= 1


def test_an_answer_outside_the_sample_limits_the_sample_s_answers_as_well(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample's own longest answer has fewer tokens, so the answers were cut earlier: `batch-dependent`."""
    monkeypatch.setattr(sets, "NOISE_ANSWERS", 4)
    monkeypatch.setattr(
        evaluation, "draw_tokens", lambda base, *given: base.chat.encode("pay " * given[-1])[: given[-1]]
    )
    answers = ["invoice and invoice in clause 0", "!?!?!?!?!?!?!?!?!?!?", *["pay"] * 14]
    lines = b"".join(
        json.dumps({"context": "c", "question": f"{number}?", "answer": answer}).encode() + b"\n"
        for number, answer in enumerate(answers)
    )
    sources = parse_source(lines, "jsonl", "question-answering", map_columns("question-answering", {}))
    sides = data.hold_out_sources(sources)
    rows = data.render_rows(sides, base.chat, "question-answering", instruction="", is_validation_set=True)
    by_length = sorted(range(len(rows)), key=lambda place: len(base.chat.encode(answers[place])))
    assert by_length[-1] == 1 and len(answers[0]) > len(answers[1]), "the most tokens, and the most characters"
    samples = tokenize_rows(rows, base.chat, max_length=256)
    evaluated = sets.EvaluatedRows("exam", tmp_path, False, DatasetDescription("question-answering", ()), rows, samples)
    noise = sets.measure_noise(base, None, evaluated, evaluated.evaluate(base, None, quiet).answers, seed=7)
    assert noise == {"rows": 4, "different": 0, "largest": 0}


def test_an_answer_that_depends_on_its_neighbours_fails_the_evaluation(base: LoadedBase, tmp_path: Path) -> None:
    evaluated = _evaluated("classification", base, tmp_path)
    answers = evaluated.evaluate(base, None, quiet).answers
    other = answers[0].model_copy(update={"scores": {"loss": answers[0].scores["loss"] + 1}})
    with pytest.raises(BadInput, match=r"noise floor: expected the same answers to .* got 1 others") as caught:
        sets.measure_noise(base, None, evaluated, [other, *answers[1:]], seed=7)
    assert caught.value.code == "batch-dependent"


def test_on_a_gpu_a_small_difference_is_shown_and_another_answer_is_refused(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, evaluate = _evaluated("classification", base, tmp_path), evaluation.evaluate
    answers = evaluated.evaluate(base, None, quiet).answers
    monkeypatch.setattr(evaluation, "evaluate", lambda _, *given: evaluate(base, *given))
    gpu = replace(base, device="cuda")
    near = answers[0].model_copy(update={"scores": {"loss": answers[0].scores["loss"] - 7}})
    noise = sets.measure_noise(gpu, None, evaluated, [near, *answers[1:]], seed=7)
    assert (noise["different"], noise["largest"]) == (1, 7)
    wrong = answers[0].model_copy(update={"right": not answers[0].right})
    with pytest.raises(BadInput, match="got 1 others"):
        sets.measure_noise(gpu, None, evaluated, [wrong, *answers[1:]], seed=7)


@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_the_items_of_a_blind_set_are_coarse_and_its_metrics_too(
    dataset_kind: DatasetKind, base: LoadedBase, tmp_path: Path
) -> None:
    evaluated = _evaluated(dataset_kind, base, tmp_path)
    found = evaluated.evaluate(base, None, quiet)
    evaluated.write(tmp_path, found.answers, found.answers)
    items = parse_items((tmp_path / "items-exam.jsonl").read_bytes())
    for item in items:
        assert item.adapter.label is None and item.adapter.confidence is None
        assert all(score % 50_000 == 0 for score in item.adapter.scores.values())
    told = evaluated.disclose(found.metrics)
    assert told and all(len(value.partition(".")[2]) == 2 for value in told.values())
    assert "perplexity" not in told and replace(evaluated, blind=False).disclose(found.metrics) == found.metrics


def test_a_blurred_score_is_the_nearest_of_its_steps() -> None:
    answer = Answer(confidence=900_000, label="x", right=True, scores={"loss": 1_234_567, "token_f1": 24_999})
    assert blur(answer).scores == {"loss": 1_250_000, "token_f1": 0} and blur(answer).right is True


@pytest.mark.parametrize(("blind", "got"), [(False, "1 others"), (True, "others")])
def test_labels_that_the_dataset_does_not_have_are_not_named_and_those_of_a_blind_set_not_counted(
    base: LoadedBase, tmp_path: Path, blind: bool, got: str
) -> None:
    rows, _, about = _rows("classification", base)
    data.write_rows(rows, about, tmp_path, bytes(32))
    with pytest.raises(BadInput) as caught:
        sets.load_set("exam", tmp_path, base, DatasetDescription("classification", about.labels[1:]), blind=blind)
    assert caught.value.message == f"validation set exam: expected labels of the dataset alone, got {got}"


@pytest.mark.parametrize("blind", [True, False])
def test_an_error_about_a_row_says_its_code_alone_where_the_set_is_blind(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    def fail(*given: Any) -> Any:
        raise BadInput("dataset, row 3: got 'a secret text'", code="answer-altered")

    evaluated = _evaluated("classification", base, tmp_path, blind=blind)
    monkeypatch.setattr(evaluation, "evaluate", fail)
    with pytest.raises(BadInput) as caught:
        evaluated.evaluate(base, None, quiet)
    assert caught.value.code == "answer-altered" and ("secret" in caught.value.message) is not blind
    assert not blind or caught.value.__suppress_context__
