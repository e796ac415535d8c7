"""The pages of a base, a dataset and a validation set: what uses each, and what can be done with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.records.runs import SetEvaluation
from appliance.domain.evaluation.gates import parse_gates
from appliance.formats.core.digest import digest_bytes
from appliance.web.console.operators import data
from appliance.workflows.queries.gates import read_gates
from tests.domain.evaluation.test_rules import gates_file, one_gate
from tests.kit.console import Console, console

ON_EXAM = gates_file(gates=[one_gate(set="exam")])


def _page(desk: Console, viewer: str, path: str) -> Any:
    answer = desk.signed_in(viewer).get(f"{path}.json")
    assert answer.status_code == 200, answer.text
    return answer.json()


def _actions(desk: Console, viewer: str, path: str) -> dict[str, str]:
    return {one["title"]: one["path"] for one in _page(desk, viewer, path)["actions"]}


def _gates_field(desk: Console, form: str) -> str:
    found = re.search(r'<select id="f-gates".*?</select>', desk.signed_in("olga").get(form).text, re.S)
    assert found is not None
    return found[0]


@pytest.mark.thorough
def test_a_dataset_is_trained_on_replaced_revoked_and_held_on_its_page(tmp_path: Path) -> None:
    with console("trained", tmp_path / "h") as desk:
        path = "/datasets/clauses@1"
        assert list(_actions(desk, "olga", path)) == ["Start training", "Import another version"]
        assert list(_actions(desk, "rita", path)) == ["Revoke it"]
        assert list(_actions(desk, "anna", path)) == ["Revoke it", "Place a legal hold"]
        assert list(_actions(desk, "audrey", path)) == ["Place a legal hold"]
        values = desk.signed_in("olga").filled(_actions(desk, "olga", path)["Start training"])
        assert (values["recipe.base"], values["recipe.dataset"]) == ("smollm2", "clauses@1")
        values = desk.signed_in("olga").filled(_actions(desk, "olga", path)["Import another version"])
        assert (values["dataset"], values["base"], values["classification"]) == ("clauses", "smollm2", "internal")
        values = desk.signed_in("rita").filled(_actions(desk, "rita", path)["Revoke it"])
        assert values["dataset"] == "clauses@1"
        values = desk.signed_in("audrey").filled(_actions(desk, "audrey", path)["Place a legal hold"])
        assert values["subject"] == "dataset:clauses@1"
        desk.site.hold("dataset:clauses@1")
        assert "Lift the legal hold" in _actions(desk, "anna", path) and _actions(desk, "audrey", path) == {}
        desk.site.revoke_dataset()
        assert list(_actions(desk, "olga", path)) == ["Import another version"]
        assert "Revoke it" not in _actions(desk, "anna", path)
        assert "Revoked by entry" in desk.signed_in("olga").get(path).text


def test_an_import_is_cancelled_on_the_page_of_imports_while_it_waits(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        entry = desk.site.request_import()

        def cancels(viewer: str) -> list[str]:
            imports = desk.signed_in(viewer).get("/imports.json").json()["rows"]
            return [one["cancel"] for one in imports if one["cancel"]]

        (path,) = cancels("ines")
        assert cancels("anna") == [path] and cancels("olga") == []
        assert desk.signed_in("ines").filled(path)["order"] == entry.subjects[0].removeprefix("order:")
        desk.site.cancel_import(entry)
        assert cancels("ines") == []


def test_an_import_leads_to_what_it_made(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.import_set()
        browser = desk.signed_in("olga")
        paths = {one["path"] for one in browser.get("/imports.json").json()["rows"]}
        assert {"/bases/smollm2", "/datasets/clauses@1", "/validation-sets/exam@1"} <= paths
        assert [browser.get(path).status_code for path in paths if path] == [200] * len(paths - {None})
        page = browser.get("/imports").text
        assert '<h2><a href="/validation-sets/exam@1">exam@1</a></h2>' in page and "Import validation set, by" in page
        state = desk.context.ledger.state
        index = next(one.index for one in state.imports.values() if one.subject == "dataset:clauses")
        done = browser.get(f"/signed/{index}").text
        assert 'href="/datasets/clauses@1">Open dataset clauses@1' in done and "It is recorded and in effect." in done


def test_a_base_of_less_than_a_million_parameters_says_how_many() -> None:
    assert data._parameters({"parameters": 94_528}) == "94,528 parameters"
    assert data._parameters({"parameters": 134_515_008}) == "135 million parameters"


def test_what_a_role_imports_is_offered_above_the_lists(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.import_set()
        for path in ("/data", "/imports"):
            assert "/sign/import-dataset" in desk.signed_in("olga").get(path).text
            assert "/sign/import-validation-set" in desk.signed_in("vera").get(path).text
            assert "/sign/import" not in desk.signed_in("rita").get(path).text


@pytest.mark.thorough
def test_a_base_lists_what_was_rendered_for_it_and_its_runs(tmp_path: Path) -> None:
    with console("trained", tmp_path / "h") as desk:
        desk.site.import_set()
        value = _page(desk, "olga", "/bases/smollm2")
        assert (value["datasets"], value["validation_sets"]) == (["clauses@1"], ["exam@1"])
        assert [one["id"] for one in value["runs"]] == ["r-000001"]
        text = desk.signed_in("olga").get("/bases/smollm2").text
        assert 'href="/datasets/clauses@1"' in text and 'href="/validation-sets/exam@1"' in text
        assert list(_actions(desk, "olga", "/bases/smollm2")) == ["Start training", "Import a dataset for it"]
        assert list(_actions(desk, "vera", "/bases/smollm2")) == ["Import a validation set for it"]
        values = desk.signed_in("anna").filled(_actions(desk, "anna", "/bases/smollm2")["Revoke it"])
        assert values["base"] == "smollm2"
        assert desk.signed_in("olga").get("/bases/nothing").status_code == 404
        state = desk.context.ledger.state
        row = state.bases.get("smollm2")
        assert row is not None
        state.bases.set("smollm2", row.model_copy(update={"quarantined": 9}))
        text = desk.signed_in("olga").get("/bases/smollm2").text
        assert "In quarantine by entry 9" in text and "appliance ledger verify" in text and "Start training" not in text
        state.bases.set("smollm2", row)
        listed = desk.signed_in("olga").get("/data").text
        assert 'href="/bases/smollm2"' in listed and 'href="/validation-sets/exam@1"' in listed


@pytest.mark.thorough
def test_a_validation_set_says_how_it_is_used_and_what_was_evaluated_on_it(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        desk.site.import_set(blind=True, final=True)
        path, state = "/validation-sets/exam@1", desk.context.ledger.state
        value = _page(desk, "vera", path)
        assert value["properties"] == ["Rows hidden from everyone", "Evaluates each adapter name once"]
        assert (value["used"], value["evaluated"], value["waiting"]) == ("exam@1", [], [])
        text = desk.signed_in("vera").get(path).text
        assert "is evaluated on this version" in text and "No adapter was evaluated on it yet." in text
        assert "classification-on-exam" in text
        row = state.validation_sets.get("exam@1")
        assert row is not None
        for rows, words in ((199, "ask for 200 rows, and this version has 199: no run can pass them"), (200, "")):
            state.validation_sets.set("exam@1", row.model_copy(update={"facts": {**row.facts, "rows": rows}}))
            shown = desk.signed_in("vera").get(path).text
            assert words in shown and ("no run can pass them" in shown) == bool(words)
        state.validation_sets.set("exam@1", row)
        form = _actions(desk, "olga", path)["Start training"]
        chosen = re.search(r'<option value="([^"]+)" selected>([^<]+)</option>', _gates_field(desk, form))
        assert chosen is not None and chosen[2] == "classification-on-exam"
        on_exam = parse_gates(read_gates(desk.context, chosen[1]))
        assert on_exam.validation_sets == ("exam",) and {one.set for one in on_exam.gates} == {"exam"}
        run = desk.site.request_run(gates=ON_EXAM)
        assert [one["id"] for one in _page(desk, "vera", path)["waiting"]] == [run]
        row = state.evaluations.get("clauses@1")
        assert row is not None
        on_exam = (SetEvaluation(validation_set="exam@1", items=digest_bytes(b"items")),)
        state.evaluations.set("clauses@1", row.model_copy(update={"sets": on_exam, "passed": False}))
        (one,) = _page(desk, "vera", path)["evaluated"]
        assert (one["adapter"], one["run"], one["passed"]) == ("clauses@1", "r-000001", False)
        assert "/adapters/clauses@1?tab=quality" in desk.signed_in("vera").get(path).text


def test_an_earlier_version_of_a_validation_set_says_which_one_is_used(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.import_set()
        desk.site.import_set(2)
        assert _page(desk, "vera", "/validation-sets/exam@1")["used"] == "exam@2"
        desk.site.revoke_set(version=2)
        assert _page(desk, "vera", "/validation-sets/exam@1")["used"] == "exam@1"
        desk.site.revoke_set()
        value = _page(desk, "vera", "/validation-sets/exam@1")
        assert value["used"] is None and value["ended"].startswith("revoked by entry")
        assert "is evaluated on it any more" in desk.signed_in("vera").get("/validation-sets/exam@1").text


def test_a_validation_set_is_replaced_and_revoked_on_its_page(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.import_set(blind=True)
        path = "/validation-sets/exam@1"
        assert list(_actions(desk, "vera", path)) == ["Import another version", "Revoke it"]
        assert list(_actions(desk, "olga", path)) == ["Start training"]
        assert list(_actions(desk, "rita", path)) == ["Revoke it"]
        values = desk.signed_in("vera").filled(_actions(desk, "vera", path)["Revoke it"])
        assert values["validation_set"] == "exam@1"
        values = desk.signed_in("vera").filled(_actions(desk, "vera", path)["Import another version"])
        assert (values["validation_set"], values["blind"], values["final"]) == ("exam", "yes", "")
