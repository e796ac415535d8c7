"""items.jsonl of every kind: one line a evaluated row, which agrees with the metrics and holds no text of a row."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from appliance.domain.data.kinds import DatasetKind
from appliance.domain.evaluation import rules as evaluation_rules
from appliance.domain.evaluation.items import SCALE, check_rows, parse_items
from appliance.formats.artifacts.rows import split_digests
from appliance.ml.data import rows as data
from appliance.ml.evaluation import evaluation
from appliance.ml.evaluation.sets import write_items
from appliance.ml.model.base import LoadedBase
from tests.ml.evaluation.test_evaluation import RECORDS, _rows

KINDS = {
    "preference": {"right", "loss", "margin"},
    "classification": {"right", "confidence", "loss"},
    "question-answering": {"right", "loss", "token_f1"},
    "summarisation": {"loss", "rouge_l"},
}
METRICS = {"preference": "margin", "question-answering": "token_f1", "summarisation": "rouge_l"}


@pytest.mark.parametrize("dataset_kind", RECORDS)
def test_every_evaluated_row_has_its_line(
    dataset_kind: DatasetKind, base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_rules, "MOST_ANSWERS", 3)
    rows, samples, about = _rows(dataset_kind, base)
    every = [data.RenderedRow(n, "train", "", "", ()) for n in range(max(row.index for row in rows) + 1)]
    data.write_rows(every, about, tmp_path, bytes(32))
    found = evaluation.evaluate(base, None, about, rows, samples, lambda more, tokens: None)
    lines = write_items(tmp_path, about, rows, samples, found.answers, found.answers)
    items = parse_items(lines)
    digests = split_digests((tmp_path / "row_digests.bin").read_bytes())
    expected = [digests[row.index].hex() for row in evaluation_rules.choose_evaluated(dataset_kind, rows)]
    check_rows(items, expected)
    assert len(items) == (3 if dataset_kind in evaluation_rules.GENERATED_KINDS else len(rows))
    kinds = KINDS.get(dataset_kind, {"loss"})
    for item in items:
        answer = item.adapter
        assert {name for name in ("right", "confidence") if getattr(answer, name) is not None} | set(
            answer.scores
        ) == kinds
        assert item.slices.length in ("short", "medium") and item.cluster is None
        assert (item.slices.label is not None) == (dataset_kind == "classification") == (answer.label is not None)
    for row in rows:
        assert row.text.encode() not in lines, "a row's text"
    _agrees(dataset_kind, found.metrics, items)


def _agrees(dataset_kind: DatasetKind, metrics: dict[str, object], items: tuple[object, ...]) -> None:
    """Check that the lines' mean is the metric."""
    answers = [item.adapter for item in items]  # type: ignore[attr-defined]
    if dataset_kind == "classification":
        share = Fraction(sum(answer.right for answer in answers), len(answers))
        assert float(share) == pytest.approx(float(str(metrics["accuracy"])), abs=1e-6)
        assert all(
            answer.right == (answer.label == item.slices.label) for answer, item in zip(answers, items, strict=True)
        )  # type: ignore[attr-defined]
    elif dataset_kind in METRICS:
        mean = sum(answer.scores[METRICS[dataset_kind]] for answer in answers) / len(answers) / SCALE
        assert mean == pytest.approx(float(str(metrics[METRICS[dataset_kind]])), abs=1e-5)


def test_of_many_rows_so_many_are_answered_and_they_are_spread_over_all() -> None:
    rows = list(range(1000))
    chosen = evaluation_rules.choose_evaluated("summarisation", rows)
    assert len(chosen) == evaluation_rules.MOST_ANSWERS and chosen[0] == 0 and chosen == sorted(set(chosen))
    assert max(chosen) > 950
    assert evaluation_rules.choose_evaluated("classification", rows) == rows
    assert evaluation_rules.count_items({"dataset_kind": "summarisation", "held_out_rows": 1000}) == len(chosen)
    assert evaluation_rules.count_items({"dataset_kind": "classification", "held_out_rows": 1000}) == 1000
    assert evaluation_rules.count_items({"dataset_kind": "classification"}) is None
