"""Validation sets on the command line: their output, and what an order to train binds of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.evaluation.items import encode_items
from appliance.formats.core.digest import digest_bytes
from scripts.kit.item_groups import Group, make_items
from tests.cli.conftest import Desk, one_line
from tests.cli.test_gates import gate_file, recipe_file
from tests.domain.evaluation.test_rules import one_gate
from tests.domain.evaluation.test_sets import ON_EXAM
from tests.kit.founded import EVALUATED, FILES

ITEMS = FILES["items.jsonl"]
COUNTED = {"sets": {"exam": {"rows": 100, "duplicates": 0, "near_duplicates": 7}}}


def evaluated(desk: Desk, version: int = 1, items: bytes = ITEMS, **counts: Any) -> None:
    """Seal an adapter that was evaluated on exam@1."""
    run = desk.site.train(gates=ON_EXAM)
    metrics = {"sets": {"exam": COUNTED["sets"]["exam"] | counts}}
    desk.site.seal(run, version, sets={"items-exam.jsonl": items}, metrics=metrics)


def test_sets_are_listed_and_shown_with_who_was_evaluated_on_them(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    desk.site.import_set(blind=True)
    evaluated(desk, duplicates="few", near_duplicates="few")
    assert "set exam: 100 items; few of the rows are trained on" in one_line(
        desk.as_("rita", "gate", "explain", "clauses@1").out
    )
    told = one_line(desk.as_("olga", "validation-set", "list", "--wide").out)
    assert "exam@1 classification 100 smollm2 yes no vera" in told
    (row,) = json.loads(desk.as_("olga", "validation-set", "list", "--json").out)
    assert (row["name"], row["blind"], row["final"], row["revoked"]) == ("exam", True, False, None)
    told = one_line(desk.as_("rita", "validation-set", "show", "exam@1").out)
    assert "adapters evaluated on it: clauses@1" in told and "blind: True" in told.replace("yes", "True")
    assert json.loads(desk.as_("rita", "validation-set", "show", "exam@1", "--json").out)["evaluated"] == ["clauses@1"]
    assert desk.as_("rita", "validation-set", "show", "exam@2").code == 4


@pytest.mark.thorough
def test_a_plan_and_an_order_say_what_the_sets_can_show_and_bind_their_newest_versions(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("imported")
    desk.site.import_set()
    desk.site.import_set(2, file=digest_bytes(b"second"), final=True)
    recipe, gates = str(recipe_file(tmp_path)), str(gate_file(tmp_path, gates=[one_gate(set="exam")]))
    planned = desk.as_("olga", "run", "plan", recipe, "--gates", gates)
    told = one_line(planned.out)
    assert planned.code == 0, planned.err
    assert "set exam@2: 100 rows, final; evaluated on it before: 0 runs" in told
    assert "the smallest gain that accuracy can show is" in told
    value = json.loads(desk.as_("olga", "run", "plan", recipe, "--gates", gates, "--json").out)["gates"]
    assert value["validation_sets"] == [{"name": "exam", "version": 2, "evaluated_before": 0}]
    assert value["can_show"][0]["items"] == 100
    told = desk.as_("olga", "run", "start", recipe, "--gates", gates, "--yes")
    assert told.code == 0, told.err
    run = desk.site.state.runs.get("r-000001")
    assert run is not None and [one.validation_set for one in run.sets] == ["exam@2"]


def test_gates_on_a_set_that_does_not_stand_are_refused_before_anything_is_signed(
    open_desk: Callable[[str], Desk], tmp_path: Path
) -> None:
    desk = open_desk("imported")
    desk.site.import_set()
    desk.site.revoke_set()
    recipe, gates = str(recipe_file(tmp_path)), str(gate_file(tmp_path, gates=[one_gate(set="exam")]))
    told = desk.as_("olga", "run", "start", recipe, "--gates", gates, "--yes")
    assert told.code == 4 and "gates, set exam: this base model has no valid validation set of" in one_line(told.err)
    assert "Name one of these: held-out." in one_line(told.err)
    assert desk.site.state.runs.values() == ()


def test_a_verdict_on_a_set_is_computed_again_and_explained_with_its_overlap(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    desk.site.import_set()
    evaluated(desk)
    told = desk.as_("rita", "gate", "check", "clauses@1")
    assert told.code == 0, told.err
    told = one_line(desk.as_("rita", "gate", "explain", "clauses@1").out)
    assert "set exam: 100 items; 0 of the rows are trained on, 7 nearly" in told
    assert "exam: corrected for 0 earlier evaluations, p-values are multiplied by 2" in told
    evaluated(desk, 2, duplicates=3)
    told = desk.as_("rita", "gate", "check", "clauses@2")
    assert told.code == 9 and "3 of 100 rows of exam are trained on" in one_line(told.out)


def test_items_of_a_set_that_were_changed_are_found(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    desk.site.import_set()
    evaluated(desk)
    other = encode_items(make_items([Group(100, adapter=True, base=True)], rows=EVALUATED))
    manifest = desk.site.state.adapters.get("clauses@1")
    assert manifest is not None
    path = desk.site.home / "artifacts" / manifest.manifest.removeprefix("sha256:") / "items-exam.jsonl"
    for place in (path.parent, path):
        place.chmod(0o700)
    path.write_bytes(other)
    told = desk.as_("rita", "gate", "check", "clauses@1")
    assert told.code == 6 and "items of run on exam: expected sha256:" in one_line(told.err)


@pytest.mark.parametrize(("name", "code"), [("rita", 0), ("olga", 3)])
def test_a_reviewer_revokes_a_set_and_an_operator_does_not(
    open_desk: Callable[[str], Desk], name: str, code: int
) -> None:
    desk = open_desk("imported")
    desk.site.import_set()
    told = desk.as_(name, "validation-set", "revoke", "exam@1", "--reason", "Two labels are wrong.", "--yes")
    assert told.code == code, told.err
    found = desk.site.state.validation_sets.get("exam@1")
    assert found is not None and (found.revoked is not None) is (code == 0)


def test_an_import_that_would_be_refused_sends_nothing(open_desk: Callable[[str], Desk], tmp_path: Path) -> None:
    desk = open_desk("imported")
    rows = tmp_path / "exam.csv"
    rows.write_text("text,label\none,A\n")
    terms = ("--base", "smollm2", "--owner", "Legal", "--licence", "CC0-1.0", "--classification", "internal")
    told = desk.as_("olga", "validation-set", "import", str(rows), "--name", "exam", *terms, "--yes")
    assert told.code == 3 and "olga is operator. This action needs validator." in one_line(told.err)
    desk.site.enrol("vera", "validator")
    told = desk.as_(
        "vera", "validation-set", "import", str(rows), "--name", "held-out", *terms, "--label", "A", "--yes"
    )
    assert told.code == 3 and "The name held-out is reserved for other sets." in one_line(told.err)
    told = desk.as_(
        "vera", "validation-set", "import", str(rows), "--name", "exam", *terms, "--column", "hue=x", "--yes"
    )
    assert told.code == 2 and "expected one of text, label, cluster, slice for classification" in one_line(told.err)
    assert desk.ordered() == 0 or not desk.site.state.imports.values()[-1].subject.startswith("validation-set:")
    assert not any(path.is_file() for path in (desk.site.home / "uploads").rglob("*"))
