"""The review page as people read it: in its order, on 80 columns, as JSON and as a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.cli.reviews.page import percent
from appliance.domain.evaluation.evidence import Evidence, conclude
from appliance.domain.evaluation.gates import GateSet
from appliance.domain.evaluation.items import Answer, Item, Slices, encode_items, parse_items
from appliance.domain.releases.page.value import Part, ReviewPage
from appliance.formats.core.canonical import encode_canonical
from tests.cli.conftest import Desk, one_line
from tests.client.test_page import GATES
from tests.kit.founded import FILES, JUDGED

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
    for number, row in enumerate(JUDGED):
        label, other = LABELS[number % 20], LABELS[(number + 1) % 20]
        worse = number % 20 == 3 or number % 5 == 4
        rows.append(
            Item(
                adapter=answer(label, other if worse else label),
                base=answer(label, label if number % 20 == 3 else other),
                cluster=None,
                row=row,
                slices=Slices(column=None, label=label, length="short"),
            )
        )
    return encode_items(rows)


def open_judged(desk: Desk, gates: GateSet = GATES) -> None:
    """A second version that was judged by gates, asked for, and found against; the first answers."""
    site, items = desk.site, _items()
    run = site.train({"epochs": 2, "rank": 16}, gates)
    evidence = Evidence({}, {}, {})
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
    open_judged(desk)
    told = desk.as_("rita", "review", "show", "clauses@2")
    assert told.code == 0, told.err
    shown = one_line(told.out)
    order = (
        "Asked: to release clauses@2 to legal asked by: olga, entry",
        "missing: finding",
        "Findings entry",
        "Changed since clauses@1, which answers legal now (entry",
        "recipe: rank: 16, was 8",
        "Gates: passed",
        "better: passed",
        "on held-out: 100 rows; judged on before: 1 run; each p-value counts 6 times",
        "Parts: 1, none shown to be worse; the least gain first",
        "Measured on the held-out rows accuracy: 0.800, its base 0.050",
        "Confusions on held-out: 75 of 100 right, the base 5",
        "Calibration: 0 is best; with 95 % intervals",
        "What it teaches task: classification instruction: Name the clause.",
        "Judged on these rows before: 1 run",
        "What a signature binds: this manifest, and through it every file",
        "Checked here:",
        "The service's word: that no request, finding or decision is left out; tier, what is missing, who could",
        "which version answers now; whether it is revoked or quarantined; and what was judged, tried and",
    )
    places = [shown.find(words) for words in order]
    assert all(place >= 0 for place in places), [words for words, at in zip(order, places, strict=True) if at < 0]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("judged", "found"),
    [
        ({"adjusted": None, "lower": None, "upper": None, "worse": False}, "too few rows"),
        ({"adjusted": "1.0", "lower": "0.1", "upper": "0.9", "worse": False}, ""),
        ({"adjusted": "0.01", "lower": "-0.9", "upper": "-0.1", "worse": True}, "worse"),
    ],
)
def test_a_part_says_what_was_found_and_whether_it_was_judged(judged: dict[str, Any], found: str) -> None:
    part = Part(gate="better", by="label", value="a", items=6, ours="0.5", theirs="0.0", gain="0.5", **judged)
    assert part.found == found


def test_the_page_fits_a_terminal_and_every_digest_is_whole(open_desk: Callable[[str], Desk], terminal: None) -> None:
    desk = open_desk("released")
    open_judged(desk)
    lines = desk.as_("rita", "review", "show", "clauses@2").out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    shown = desk.as_("rita", "review", "show", "clauses@2", "--wide").out
    assert max(map(len, shown.splitlines())) > 80


def test_the_json_is_the_value(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    open_judged(desk)
    told = json.loads(desk.as_("rita", "review", "show", "clauses@2", "--json").out)
    assert told.pop("log_size") > 0 and told.pop("log_vouched_for_by")
    page = ReviewPage.model_validate_json(json.dumps(told))
    assert page.judged is not None and page.judged.passed
    assert [pair.items for pair in page.confusion[0].pairs] == sorted(p.items for p in page.confusion[0].pairs)[::-1]


def test_seventy_seven_labels_are_no_wall(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    open_judged(desk)
    shown = desk.as_("rita", "review", "show", "clauses@2").out
    table = shown[shown.index("Confusions on held-out") : shown.index("Calibration")]
    assert len(table.splitlines()) <= 13


def test_a_report_is_the_same_page_in_a_new_folder(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("released")
    open_judged(desk)
    folder = desk.folder / "review"
    told = desk.as_("rita", "review", "report", "clauses@2", "--folder", str(folder))
    assert told.code == 0, told.err
    assert "review.html" in told.out
    page = json.loads(desk.as_("rita", "review", "show", "clauses@2", "--json").out)
    kept = json.loads((folder / "page.json").read_text())
    assert kept == {name: value for name, value in page.items() if name in kept}
    text = (folder / "review.html").read_text()
    assert "Asked: to release clauses@2 to legal" in text and "held out 1" not in text
    again = desk.as_("rita", "review", "report", "clauses@2", "--folder", str(folder))
    assert again.code == 5 and "expected a name that is free" in again.err


@pytest.mark.parametrize(
    ("value", "said"), [("0.950000000", "95 %"), ("0.991666666", "99.16 %"), ("0.999999999", "99.99 %")]
)
def test_a_level_is_never_rounded_up(value: str, said: str) -> None:
    assert percent(value) == said
