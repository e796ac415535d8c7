"""Output about reviews: dates, decisions, and their effect."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest

from appliance.domain.governance.people import Grant, RoleGranted
from tests.cli.conftest import Desk, one_line

_DECISIONS = ["reject", "approve", "approve"]


def test_a_rejection_has_no_date_and_its_meaning_says_so(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    words = ("review", "reject", "clauses@1", "--unit", "legal", "--meaning", "I read it.", "--yes")
    dated = desk.as_("raul", *words, "--valid-until", "2027-01-01")
    assert dated.code == 2 and "No such option '--valid-until'" in dated.err
    told = desk.as_("raul", *words)
    assert told.code == 0, told.err
    assert "Your rejection of exactly this version, for this unit. It is valid until you decide again." in told.err
    assert "valid until:      you replace it" in told.out
    row = desk.site.state.adapters.get("clauses@1")
    assert row is not None and [(r.decision, r.valid_until) for r in row.reviews] == [("reject", None)]


@pytest.mark.thorough
def test_every_reader_says_what_each_review_decided_and_what_it_counts_for(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    unit = ("clauses@1", "--unit", "legal", "--meaning", "I read it.", "--yes")
    assert desk.as_("rita", "review", "reject", *unit).code == 0
    first = desk.as_("rita", "review", "approve", *unit)
    assert "Your rejection of clauses@1 for legal is already valid (entry" in first.err
    again = desk.as_("rita", "review", "approve", *unit, "--valid-until", "9d")
    assert again.code == 0 and "Your approval of clauses@1 for legal is already valid until 20" in again.err
    row = desk.site.state.adapters.get("clauses@1")
    assert row is not None
    one, two, three = (review.index for review in row.reviews)
    states = [f"superseded by entry {two}", f"superseded by entry {three}", "valid"]
    log = ("ledger", "log", "--type", "review.recorded")
    table = desk.as_("audrey", *log, "--wide").out.splitlines()[1:]
    decisions = [f"{how} for legal, privacy: {state}" for how, state in zip(_DECISIONS, states, strict=True)]
    assert [f"{decision}: " in line for line, decision in zip(table, decisions, strict=True)] == [True] * 3
    read = list(csv.DictReader(io.StringIO(desk.as_("audrey", *log, "--csv").out)))
    assert [line["decision"] for line in read] == _DECISIONS
    assert [(line["state"], line["superseded_by"]) for line in read] == [
        ("superseded", str(two)),
        ("superseded", str(three)),
        ("valid", ""),
    ]
    rows = [json.loads(line)["review"] for line in desk.as_("audrey", *log, "--json").out.splitlines()]
    assert [(line["index"], line["state"]) for line in rows] == [
        (one, "superseded"),
        (two, "superseded"),
        (three, "valid"),
    ]
    listed = desk.as_("rita", "review", "list", "--wide").out
    assert f"by rita (privacy, legal): superseded by entry {two}" in listed and "rita (privacy, legal)" in listed
    shown = desk.as_("rita", "review", "show", "clauses@1").out
    assert all(state in one_line(shown) for state in (*states[:2], "; valid (reported)"))
    answer = json.loads(desk.as_("audrey", "ledger", "effective-access", "legal", "--json").out)
    (candidate,) = answer["others"]
    assert [(r["status"]["state"], r["status"]["superseded_by"]) for r in candidate["reviews"]] == [
        (r["state"], r["superseded_by"]) for r in rows
    ]


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"--unit": "lgal"}, 2, "unit: expected one of legal, sales, got 'lgal'; did you mean legal?"),
        ({"--valid-until": "2020-01-01"}, 2, "valid until: expected a time after 20"),
        ({"--valid-until": "9000d"}, 3, "and, by policy, not after"),
        ({"--reason": " "}, 2, "reason: expected --reason TEXT with why you decide so, got none"),
        ({"--review-function": "privcy"}, 3, "privcy is not your review function. Choose privacy; the roles of rita"),
    ],
)
def test_what_would_be_refused_is_refused_before_the_evidence_is_printed(
    open_desk: Callable[[str], Desk], changed: dict[str, str], code: int, said: str
) -> None:
    options = {"--unit": "legal", "--meaning": "I read it.", **changed}
    words = [word for pair in options.items() for word in pair]
    told = open_desk("sealed").as_("rita", "review", "approve", "clauses@1", *words, "--yes")
    assert told.code == code and said in told.err
    assert "manifest" not in told.err


def test_owner_and_labels_are_shown(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    shown = one_line(desk.as_("rita", "dataset", "show", "clauses@1").out)
    assert "owner:" in shown and "label A: 50, 0 to train on, 50 held out" in shown
    assert "label B: 55, 5 to train on, 50 held out" in shown
    value = json.loads(desk.as_("rita", "dataset", "show", "clauses@1", "--json").out)
    assert value["labels"]["B"] == {"train": 5, "held-out": 50}
    review = json.loads(desk.as_("rita", "review", "show", "clauses@1", "--json").out)
    assert value["owner"] == review["training_data"]["owner"] is not None
    assert f"owner: {value['owner']}" in shown
    assert f"Owner: {value['owner']}" in one_line(desk.as_("rita", "review", "show", "clauses@1").out)


def test_who_is_no_reviewer_is_told_so_and_who_has_two_functions_names_one(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("sealed")
    words = ("review", "approve", "clauses@1", "--unit", "legal", "--meaning", "I read it.", "--yes")
    told = desk.as_("olga", *words)
    assert told.code == 3
    assert "A decision needs a role such as reviewer:privacy; the roles of olga" in told.err
    grant = desk.site.order(Grant, "anna", principal="rita", role="reviewer:safety")
    desk.site.two(RoleGranted(policy=desk.site.in_force), grant)
    told = desk.as_("rita", *words)
    assert told.code == 2 and "expected --review-function with one of privacy, safety, got none" in told.err
