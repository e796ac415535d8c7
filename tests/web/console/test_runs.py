"""A run's page: what can be done with the run, who ended it, and the form that starts it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from appliance.domain.core.names import encode_value
from appliance.domain.recipe.recipe import Recipe, ResolvedRecipe
from appliance.domain.runs.training import RunFailed, Train
from appliance.formats.core.digest import digest_bytes
from appliance.web.console.operators import runs
from appliance.web.console.operators.records import form_values, read_order
from appliance.web.console.signing.forms import read_draft
from appliance.workflows.proposals import propose
from scripts.kit.log_builder import RECIPE
from tests.domain.evaluation.test_rules import gates_file, one_gate
from tests.kit.console import Browser, Console, console

PRIVATE = {"privacy": {"noise": "1.1", "clip": "1.0", "epsilon": "3.2", "delta": "0.0001"}, "max_grad_norm": "0.0"}


def _page(browser: Browser, run: str) -> Any:
    return browser.get(f"/runs/{run}.json").json()


def _actions(desk: Console, name: str, run: str) -> list[str]:
    return [one["title"] for one in _page(desk.signed_in(name), run)["actions"]]


def _fail(desk: Console, run: str, *, checkpoint: bool) -> None:
    desk.site.add(desk.site.started(run))
    if checkpoint:
        desk.site.add(desk.site.checkpointed(run))
    desk.site.add(RunFailed(run=run, code="worker-ended", message=desk.site.text("It was killed.")))


AGAIN = "Start again with these values"


def test_a_run_can_be_cancelled_by_who_ordered_it_and_by_administrators_while_it_continues(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        run = desk.site.request_run()
        assert _actions(desk, "olga", run) == ["Cancel", AGAIN]
        assert _actions(desk, "anna", run) == ["Cancel"]
        assert _actions(desk, "ines", run) == [AGAIN] and _actions(desk, "rita", run) == []
        browser = desk.signed_in("olga")
        (cancel, _) = _page(browser, run)["actions"]
        assert cancel["path"] == f"/sign/cancel?given=run%3A{run}"
        assert f'value="{run}"' in browser.get(cancel["path"]).text or f">{run}" in browser.get(cancel["path"]).text


def test_a_failed_run_can_be_resumed_from_its_checkpoint_and_says_why_it_failed(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        first, second = desk.site.request_run(), desk.site.request_run()
        _fail(desk, first, checkpoint=True)
        _fail(desk, second, checkpoint=False)
        entry = desk.site.state.size - 1
        assert _actions(desk, "olga", first) == ["Resume", AGAIN]
        assert _actions(desk, "anna", first) == ["Resume"] and _actions(desk, "ines", first) == [AGAIN]
        assert _actions(desk, "olga", second) == [AGAIN]
        end = _page(desk.signed_in("olga"), second)["end"]
        assert (end["code"], end["text"], end["entry"]) == ("worker-ended", "It was killed.", entry)
        text = desk.signed_in("olga").get(f"/runs/{second}").text
        assert "worker-ended: It was killed." in text and "It never started." not in text


def test_only_a_failed_run_is_offered_by_the_form_that_resumes_one(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        failed, cancelled = desk.site.request_run(), desk.site.request_run()
        _fail(desk, failed, checkpoint=True)
        desk.site.cancel_run(cancelled)
        page = desk.signed_in("olga").get("/sign/resume").text
        assert f'value="{failed}"' in page and f'value="{cancelled}"' not in page
        assert "<h1>Resume a run</h1>" in page


def test_a_sealed_run_says_whether_its_gates_passed_and_what_evaluated_it(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        state, browser = desk.context.ledger.state, desk.signed_in("olga")
        assert "No gate decides on it." in browser.get("/runs/r-000001").text
        desk.site.import_set()
        ordered = desk.site.request_run(gates=gates_file(gates=[one_gate(set="exam")]))
        page = browser.get(f"/runs/{ordered}").text
        assert "<dd>tried <code" in page and 'href="/validation-sets/exam@1"' in page
        run, bound = state.runs.get("r-000001"), state.runs.get(ordered)
        evaluation = state.evaluations.get("clauses@1")
        assert run is not None and bound is not None and evaluation is not None
        state.runs.set("r-000001", run.model_copy(update={"gates": bound.gates}))
        for passed, words in ((True, "It passed its gates"), (False, "It did not pass its gates")):
            state.evaluations.set("clauses@1", evaluation.model_copy(update={"passed": passed}))
            assert words in browser.get("/runs/r-000001").text


def test_results_are_compared_with_four_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with console("imported", tmp_path / "h") as desk:
        first, second = desk.site.request_run(), desk.site.request_run()
        found = iter([{"adapter": {"loss": "3.184665"}}, {"adapter": {"loss": "4.082299"}}] * 2)
        monkeypatch.setattr(runs.records, "read_metrics", lambda context, adapter: next(found))
        address = f"run={first}&run={second}"
        page = desk.signed_in("olga").get(f"/compare?{address}").text
        assert ">3.185<" in page and "3.184665" not in page
        values = desk.signed_in("olga").get(f"/compare.json?{address}").json()["results"]
        assert ["3.184665", "4.082299"] in [one["values"] for one in values]


def test_a_cancelled_run_says_who_cancelled_it_and_when_and_shows_no_empty_plot(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        run = desk.site.request_run()
        browser = desk.signed_in("olga")
        assert "data-curves hidden" in browser.get(f"/runs/{run}").text, "they are shown with the first step"
        entry = desk.site.cancel_run(run, "anna", reason="The rows hold names.")
        end = _page(browser, run)["end"]
        assert end == {
            "entry": entry.index,
            "time": entry.time,
            "by": "anna",
            "code": None,
            "text": "The rows hold names.",
        }
        text = browser.get(f"/runs/{run}").text
        assert "Cancelled by anna at" in text and "The rows hold names." in text and "It never started." in text
        assert "data-plot" not in text and "Tokens a second" not in text
        assert _actions(desk, "olga", run) == [AGAIN]


def test_an_auditor_trains_a_run_again_from_its_page(tmp_path: Path) -> None:
    with console("trained", tmp_path / "h") as desk:
        assert "Train it again to compare" not in _actions(desk, "olga", "r-000001")
        browser = desk.signed_in("audrey")
        (replay,) = _page(browser, "r-000001")["actions"]
        values = browser.filled(replay["path"])
        assert (values["run"], values["from_step"], values["to_step"]) == ("r-000001", "0", "100")


def test_a_run_without_a_step_shows_the_plans_number_of_steps(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        run = desk.site.request_run()
        value = _page(desk.signed_in("olga"), run)
        planned = next(one["planned"] for one in value["costs"] if one["name"] == "steps")
        assert not value["began"] and value["step"] is None and str(value["steps"]) == planned
        assert f'data-show="steps">{planned}<' in desk.signed_in("olga").get(f"/runs/{run}").text


def test_the_form_to_start_a_run_again_orders_the_same_recipe(tmp_path: Path) -> None:
    with console("trained", tmp_path / "h") as desk:
        browser = desk.signed_in("olga")
        path = next(one["path"] for one in _page(browser, "r-000001")["actions"] if one["title"] == AGAIN)
        row = desk.context.ledger.state.runs.get("r-000001")
        assert row is not None
        draft, problems = read_draft("train", browser.filled(path), desk.context.clock())
        assert problems == {}
        order = propose(desk.context, "olga", "train", draft).order
        assert isinstance(order, Train)
        assert order.recipe == read_order(desk.context, row).recipe


@pytest.mark.parametrize("modules", [("q_proj",), ("q_proj", "v_proj")])
def test_a_run_is_started_again_with_the_same_target_modules(tmp_path: Path, modules: tuple[str, ...]) -> None:
    with console("imported", tmp_path / "h") as desk:
        run = desk.site.request_run(recipe={"target_modules": modules})
        browser = desk.signed_in("olga")
        (path,) = (one["path"] for one in _page(browser, run)["actions"] if one["title"] == AGAIN)
        draft, problems = read_draft("train", browser.filled(path), desk.context.clock())
        assert problems == {} and draft.values["recipe"]["target_modules"] == list(modules)
        order = propose(desk.context, "olga", "train", draft).order
        assert isinstance(order, Train) and order.recipe.target_modules == modules


def test_values_that_a_method_does_not_use_are_left_to_their_defaults() -> None:
    full = ResolvedRecipe(**RECIPE | {"rank": 0, "alpha": 0, "target_modules": (), "eval_steps": 0})
    assert not {"recipe.rank", "recipe.alpha", "recipe.target_modules", "recipe.eval_steps"} & form_values(full).keys()
    private = form_values(ResolvedRecipe(**RECIPE | PRIVATE))
    assert private["recipe.privacy"] == "{noise: 1.1, clip: 1.0, delta: 0.0001}"
    written = form_values(
        Recipe.model_validate({"name": "a", "base": "b", "dataset": "c@1", "privacy": {"epsilon": "3.0"}})
    )
    assert written == {
        "recipe.name": "a",
        "recipe.base": "b",
        "recipe.dataset": "c@1",
        "recipe.privacy": "{epsilon: 3.0}",
    }


def test_the_address_to_start_again_names_the_tier_and_the_place(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        run = desk.site.request_run(tier="low")
        (_, again) = _page(desk.signed_in("olga"), run)["actions"]
        given = parse_qs(urlsplit(again["path"]).query)["given"]
        assert {"tier:low", "on:local", "recipe.name:clauses"} <= set(given)
        assert not any(one.startswith(("nodes:", "gates:")) for one in given)


def test_a_run_with_gates_is_started_again_with_them(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        gates = gates_file(gates=[one_gate()])
        run = desk.site.request_run(gates=gates)
        browser = desk.signed_in("olga")
        (_, again) = _page(browser, run)["actions"]
        assert browser.filled(again["path"])["gates"] == digest_bytes(encode_value(gates))
        assert f">{gates.name}, as for {run}</option>" in browser.get(again["path"]).text
