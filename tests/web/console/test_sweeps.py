"""Sweeps in the console: planned, each run signed by its form, followed and compared."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.domain.runs.training import Train
from appliance.web.console.operators import sweeps
from appliance.web.console.signing.forms import read_draft
from appliance.workflows.proposals import propose
from scripts.kit.authenticator import new_passkey
from tests.domain.runs.test_sweeps import VALIDATING
from tests.kit.console import Browser, Console, console
from tests.kit.founded import policy_set
from tests.web.console.test_signing import HERE, hidden, signed

BASIS = {"sweep": "tried-1", "name": "tried", "base": "smollm2", "dataset": "clauses@1"}


def _plan(browser: Browser, **values: str) -> Any:
    answer = browser.get(f"/start-sweep.json?{urlencode(BASIS | values)}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def _order(desk: Console, path: str) -> Train:
    """Return the order of the filled form."""
    draft, problems = read_draft("train", desk.signed_in("olga").filled(path), desk.context.clock())
    assert problems == {}
    order = propose(desk.context, "olga", "train", draft).order
    assert isinstance(order, Train)
    return order


def test_a_plan_has_one_run_for_each_combination_and_its_form_orders_it(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        found = _plan(desk.signed_in("olga"), rank="8, 16", learning_rate="0.0001 0.0003", epochs="2")
        assert (found["problem"], found["keys"]) == (None, ["rank", "learning_rate"])
        assert [one["values"] for one in found["runs"]] == [
            ["8", "0.0001"],
            ["8", "0.0003"],
            ["16", "0.0001"],
            ["16", "0.0003"],
        ]
        assert all(one["plan"]["steps"] and one["run"] is None for one in found["runs"])
        orders = [_order(desk, one["path"]) for one in found["runs"]]
        assert {order.sweep for order in orders} == {"tried-1"}
        assert [(order.recipe.rank, order.recipe.learning_rate) for order in orders] == [
            (8, "0.0001"),
            (8, "0.0003"),
            (16, "0.0001"),
            (16, "0.0003"),
        ]
        assert len({order.recipe.eval_steps for order in orders}) == 1 and orders[0].recipe.eval_steps > 0
        assert {order.recipe.epochs for order in orders} == {2}


def test_the_gates_of_a_sweep_are_those_of_each_form(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        browser = desk.signed_in("olga")
        digest, title = next(one for one in _plan(browser, rank="8, 16")["gates"] if one[1] == "classification")
        runs = _plan(browser, rank="8, 16", gates=digest)["runs"]
        assert [browser.filled(one["path"])["gates"] for one in runs] == [digest, digest]
        assert f'value="{digest}" selected>{title}<' in browser.get(f"/start-sweep?gates={digest}").text


def test_the_plans_address_says_which_runs_were_ordered(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        values = {"rank": "8, 16"}
        recipe = _order(desk, _plan(desk.signed_in("olga"), **values)["runs"][1]["path"]).recipe
        run = desk.site.request_run(recipe=recipe.model_dump(), sweep="tried-1")
        first, second = _plan(desk.signed_in("olga"), **values)["runs"]
        assert first["run"] is None and (second["run"], second["status"]) == (run, "queued")
        page = desk.signed_in("olga").get(f"/start-sweep?{urlencode(BASIS | values)}").text
        assert f'href="/runs/{run}"' in page and 'href="/sweeps/tried-1"' in page
        assert page.count('aria-label="Sign run ') == 1


@pytest.mark.thorough
def test_the_signature_of_a_run_leads_back_to_the_plan(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.adopt(policy_set(passkeys_on_localhost=True))
        passkey = desk.site.enrol_passkey("olga", new_passkey(**HERE))
        browser = desk.signed_in("olga")
        path = _plan(browser, rank="8, 16")["runs"][0]["path"]
        fields = browser.filled(path) | {"back": hidden(browser.get(path), "back")}
        page = browser.fill("train", fields)
        answer = signed(browser, page, passkey, draft=hidden(page, "draft"))
        plan = browser.get(answer.headers["location"])
        assert plan.status_code == 200 and plan.text.count('aria-label="Sign run ') == 1
        index = desk.context.ledger.state.runs.get("r-000001").index
        assert "Open sweep tried-1" in browser.get(f"/signed/{index}").text


def test_a_form_leads_to_no_other_address(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        browser = desk.signed_in("olga")
        for address in ("//bank.example", "/start-sweep?\n", "https://bank.example/start-sweep?"):
            answer = browser.fill("train", {"recipe.name": "a", "back": address})
            assert answer.status_code == 400 and "the address of the plan of a sweep" in html.unescape(answer.text)
            assert browser.get(f"/sign/train?{urlencode({'back': address})}").status_code == 400


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rank": "8"}, "Give two or more values"),
        ({"rank": "8, 8"}, "expected a list of different values"),
        ({"rank": "8, 16", "base": "nothing"}, "nothing"),
        ({"rank": "8, x"}, "rank"),
        ({"rank": "4 8 16 32 64", "epochs": "1 2 3 4"}, "These are 20 runs. Policy (most_sweep_runs) allows 16"),
    ],
)
def test_values_that_make_no_sweep_are_explained_beside_the_form(
    values: dict[str, str], problem: str, tmp_path: Path
) -> None:
    with console("imported", tmp_path / "h") as desk:
        browser = desk.signed_in("olga")
        found = _plan(browser, **values)
        assert problem in found["problem"] and found["runs"] == []
        page = browser.get(f"/start-sweep?{urlencode(BASIS | values)}").text
        assert f'name="rank" value="{values["rank"]}"' in page, "what was typed stays"


def test_an_empty_plan_has_a_new_name_each_time(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        browser = desk.signed_in("olga")
        first, second = (browser.get("/start-sweep.json").json() for _ in range(2))
        assert first["problem"] is None and first["runs"] == [] and first["sweep"] != second["sweep"]
        assert "smollm2" in first["bases"] and "clauses@1" in first["datasets"]
        assert desk.signed_in("rita").get("/start-sweep").status_code == 403


def test_a_sweep_shows_its_runs_the_best_first_and_which_fall_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with console("imported", tmp_path / "h") as desk:
        runs = [desk.site.request_run(recipe=VALIDATING | {"rank": rank}, sweep="tried-1") for rank in (4, 8, 16)]
        losses = dict(zip(runs, ([1.5, 1.4], [0.9, 0.8], [2.5, 2.4]), strict=True))
        monkeypatch.setattr(
            sweeps,
            "_read_losses",
            lambda context, run: [(step, f"{loss:.6f}") for step, loss in enumerate(losses[run], start=1)],
        )
        value = desk.signed_in("olga").get("/sweeps/tried-1.json").json()
        assert value["keys"] == ["rank"] and [one["id"] for one in value["runs"]] == [runs[1], runs[0], runs[2]]
        assert [(one["values"], one["best"], one["step"]) for one in value["runs"]] == [
            (["8"], "0.800000", 2),
            (["4"], "1.400000", 2),
            (["16"], "2.400000", 2),
        ]
        assert [one["behind"] is not None for one in value["runs"]] == [False, False, True]
        assert value["runs"][2]["cancel"] == f"/sign/cancel?given=run%3A{runs[2]}"
        assert value["compare"] == f"/compare?run={runs[1]}&run={runs[0]}&run={runs[2]}"
        page = desk.signed_in("rita").get("/sweeps/tried-1")
        assert page.status_code == 200 and "/sign/cancel" not in page.text
        (listed,) = desk.signed_in("rita").get("/sweeps.json").json()["rows"]
        assert (listed["name"], listed["runs"], listed["statuses"]) == ("tried-1", 3, {"queued": 3})
        assert desk.signed_in("rita").get("/sweeps/other").status_code == 404
        assert 'href="/sweeps/tried-1"' in desk.signed_in("rita").get(f"/runs/{runs[0]}").text
