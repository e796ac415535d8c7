"""The review page in a terminal: its order, on 80 columns, as JSON and as a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.domain.evaluation.comparison import SliceResult
from appliance.domain.evaluation.gates import GatesFile
from appliance.domain.evaluation.items import Answer, EvaluationItem, Slices, encode_items, parse_items
from appliance.domain.evaluation.verdict import VerdictInputs, conclude
from appliance.domain.queries.review.values import ReviewPage, Subgroup
from appliance.formats.core.canonical import encode_canonical
from appliance.reports import templates
from appliance.reports.review.words import show_percent
from tests.cli.conftest import Desk, one_line
from tests.client.test_page import GATES
from tests.kit.founded import EVALUATED, FILES

LABELS = [f"label number {number:02d} of the clauses" for number in range(20)]
METRICS = {
    "adapter": {"accuracy": "0.800000", "loss": "0.300000", "rows": 100},
    "base": {"accuracy": "0.050000", "loss": "2.100000", "rows": 100},
    "majority": {"accuracy": "0.050000", "rows": 100},
}


def _items() -> bytes:
    """Wrong in every fifth row, and there the base is right."""

    def answer(expected: str, chosen: str) -> Answer:
        return Answer(confidence=650_000, label=chosen, right=expected == chosen, scores={"loss": 300_000})

    rows = []
    for number, row in enumerate(EVALUATED):
        label, other = LABELS[number % 20], LABELS[(number + 1) % 20]
        worse = number % 20 == 3 or number % 5 == 4
        rows.append(
            EvaluationItem(
                adapter=answer(label, other if worse else label),
                base=answer(label, label if number % 20 == 3 else other),
                cluster=None,
                row=row,
                slices=Slices(column=None, label=label, length="short"),
            )
        )
    return encode_items(rows)


def open_evaluated(desk: Desk, gates: GatesFile = GATES) -> None:
    """Seal a second version with gates, a release request and a finding, beside the active first one."""
    site, items = desk.site, _items()
    run = site.train({"epochs": 2, "rank": 16}, gates)
    evidence = VerdictInputs({}, {}, {})
    calibration = conclude(None, parse_items(items), evidence).calibration
    assert calibration is not None
    files = {
        **FILES,
        "items.jsonl": items,
        "recipe.json": encode_canonical({"base": "smollm2", "dataset": "clauses@1", "rank": 16, "seed": 1}),
        "base.json": encode_canonical({"base": "smollm2", "quantisation": "nf4", "compute_dtype": "bfloat16"}),
        "metrics.json": encode_canonical(METRICS),
        "calibration.json": calibration,
    }
    site.seal(run, 2, files=files, items=items, metrics=METRICS)
    site.request_release(version=2, verdict=site.state.adapters.get("clauses@2").verdict)  # type: ignore[union-attr]
    site.find(version=2)


def test_the_page_is_read_in_its_order(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    open_evaluated(desk)
    told = desk.as_("rita", "review", "show", "clauses@2")
    assert told.code == 0, told.err
    shown = one_line(told.out)
    order = (
        "Release clauses@2 to legal: 0 of 2 approvals (reported) Tier low, 1 of 3. Only the organisation sees",
        "Intended use:",
        "Requested by: olga, entry",
        "Gain, gate better: +0.7000 accuracy 0.7500 against 0.0500, 100 rows.",
        "For and against - Passed 1 of 1 gate.",
        "- Differs from clauses@1, which is active for legal, in measures, recipe, base, gates. (reported)",
        "blocks the release.",
        "Decisions (reported) - Nobody has decided yet.",
        "What is missing (reported) - Needs 2 approvals, from different review functions. These people can give one:",
        "Adapter clauses@2 State (reported): sealed",
        ": high issue: open, blocks (reported) Found: ",
        "Changes since clauses@1 clauses@1 is active for legal, released by entry",
        "measures: accuracy: 0.800, was 0.900",
        "recipe: rank: 16, was 8",
        "Gates: passed",
        "better: passed",
        "Subgroups No significant regression in 1 subgroup.",
        "Confusions on held-out 75 of 100 rows right, the base 5.",
        "Calibration The expected calibration error",
        "Measures on the held-out rows Accuracy: 0.800, its base 0.050",
        "Training data Instruction: Name the clause. Dataset kind: classification",
        "Evaluated sets held-out: 100 rows; evaluated before: 1 run; p-values are multiplied by 6",
        "Previous runs (reported)",
        "Evaluated on the same rows before: 1 run (reported)",
        "Signed content A signature binds this manifest, and through it every file.",
        "Verification Log: a log of",
        "Proved here: each file by its digest",
        "The service also reports that no request, finding or decision is left out.",
    )
    places = [shown.find(words) for words in order]
    assert all(place >= 0 for place in places), [words for words, at in zip(order, places, strict=True) if at < 0]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("evaluated", "found"),
    [
        ({"adjusted": None, "lower": None, "upper": None, "worse": False}, "too few rows"),
        ({"adjusted": "1.0", "lower": "0.1", "upper": "0.9", "worse": False}, ""),
        ({"adjusted": "0.01", "lower": "-0.9", "upper": "-0.1", "worse": True}, "worse"),
    ],
)
def test_a_part_says_what_was_found_and_whether_it_was_evaluated(evaluated: dict[str, Any], found: str) -> None:
    values = {"by": "label", "value": "a", "items": 6, "ours": "0.5", "theirs": "0.0", "gain": "0.5", "p": None}
    subgroup = Subgroup.model_construct(gate="better", result=SliceResult.model_construct(**values | evaluated))
    assert subgroup.found == found


@pytest.mark.thorough
def test_the_page_fits_a_terminal_and_every_digest_is_whole(open_desk: Callable[[str], Desk], terminal: None) -> None:
    desk = open_desk("released")
    open_evaluated(desk)
    lines = desk.as_("rita", "review", "show", "clauses@2").out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    shown = desk.as_("rita", "review", "show", "clauses@2", "--wide").out
    assert max(map(len, shown.splitlines())) > 80


def test_the_json_is_the_value(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    open_evaluated(desk)
    told = json.loads(desk.as_("rita", "review", "show", "clauses@2", "--json").out)
    assert told.pop("log_size") > 0 and told.pop("log_vouched_for_by")
    page = ReviewPage.model_validate_json(json.dumps(told))
    assert page.evaluation is not None and page.evaluation.verdict.passed
    assert [pair.items for pair in page.confusion[0].pairs] == sorted(p.items for p in page.confusion[0].pairs)[::-1]


def test_seventy_seven_labels_are_no_wall_of_names_of_names(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    open_evaluated(desk)
    shown = desk.as_("rita", "review", "show", "clauses@2").out
    table = shown[shown.index("Confusions on held-out") : shown.index("Calibration")]
    assert len(table.splitlines()) <= 13


@pytest.mark.thorough
def test_a_report_is_the_same_page_in_a_new_folder(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    open_evaluated(desk)
    folder = desk.folder / "review"
    told = desk.as_("rita", "review", "report", "clauses@2", "--folder", str(folder))
    assert told.code == 0, told.err
    assert "review.html" in told.out
    page = json.loads(desk.as_("rita", "review", "show", "clauses@2", "--json").out)
    kept = json.loads((folder / "page.json").read_text())
    assert kept == {name: value for name, value in page.items() if name in kept}
    text = (folder / "review.html").read_text()
    assert "Release clauses@2 to legal" in text and "held out 1" not in text
    again = desk.as_("rita", "review", "report", "clauses@2", "--folder", str(folder))
    assert again.code == 5 and "expected a new folder, got an existing one" in again.err


def test_a_report_whose_last_file_cannot_be_written_leaves_no_folder(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("sealed")
    folder = desk.folder / "review"
    monkeypatch.setattr(templates, "VALUES", "missing/page.json")
    told = desk.as_("rita", "review", "report", "clauses@1", "--folder", str(folder))
    assert told.code == 7 and f"report, {folder}: expected to write there, got No such file" in told.err
    assert not any("review" in path.name for path in desk.folder.iterdir())


@pytest.mark.parametrize(
    ("value", "said"), [("0.950000000", "95 %"), ("0.991666666", "99.16 %"), ("0.999999999", "99.99 %")]
)
def test_a_level_is_never_rounded_up(value: str, said: str) -> None:
    assert show_percent(value) == said
