"""`run plan`: the output that is read before an order is signed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.cli.conftest import Desk, one_line

RECIPE = "name: clauses\nbase: smollm2\ndataset: clauses@1\nrank: 8\n"


def _recipe(desk: Desk, text: str = RECIPE) -> str:
    path = desk.folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_a_plan_says_what_fits_what_it_costs_and_what_is_advised(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    told = desk.as_("olga", "run", "plan", _recipe(desk))
    assert told.code == 0, told.err
    assert "fits this machine:  yes, with a margin of 10%" in told.out
    parts = ("weights", "adapter", "optimiser", "gradients", "activations", "logits", "context", "reserve")
    assert set(parts) <= {line.partition(" ")[0] for line in told.out.splitlines()}
    for text in ("RTX 3060 *", "Advised: "):
        assert text in told.out
    assert desk.ordered() == 0, "nothing was signed"


def test_a_plan_as_json_has_every_phase_and_part(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    plan = json.loads(desk.as_("olga", "run", "plan", _recipe(desk), "--json").out)
    assert set(plan["memory"]) == {"load", "train", "save", "evaluate"}
    for phase, parts in plan["memory"].items():
        assert plan["reserve"][phase] == pytest.approx(0.1 * sum(parts.values()), abs=1)
    assert plan["recipe"]["rank"] == 8 and plan["duration"]["measured"] is False
    assert [offer["measured"] for offer in plan["offers"]] == [False] * 8


@pytest.mark.thorough
def test_a_learning_rate_far_from_usual_is_warned_of_before_anybody_signs(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    path = _recipe(desk, RECIPE + "learning_rate: 50\n")
    said = "learning rate 50.0 is far above what qlora is usually trained with, 0.00001 to 0.01"
    assert said in one_line(desk.as_("olga", "run", "plan", path).out)
    assert said in json.loads(desk.as_("olga", "run", "plan", path, "--json").out)["warnings"][0]
    told = desk.as_("olga", "run", "start", path, "--yes").err
    assert told.index(said) < told.index("signed:")


@pytest.mark.thorough
def test_a_private_run_says_its_epsilon_and_noise_before_anybody_signs(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    path = _recipe(desk, RECIPE + "privacy: {epsilon: 8, clip: 0.5}\n")
    told = one_line(desk.as_("olga", "run", "plan", path).out)
    assert re.search(r"privacy: epsilon 7\.9\d+ at delta 0\.\d+ for one training row, by noise [\d.]+ times", told)
    plan = json.loads(desk.as_("olga", "run", "plan", path, "--json").out)
    noise = plan["recipe"]["privacy"]["noise"]
    told = desk.as_("olga", "run", "start", path, "--yes").err
    assert told.index(f"noise = {noise}") < told.index("signed:")
    vague = _recipe(desk, RECIPE + "privacy: {noise: 1, epsilon: 8}\n")
    assert "privacy: expected noise or epsilon, got both" in desk.as_("olga", "run", "plan", vague).err


def test_every_problem_of_a_recipe_stands_on_its_own_line(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    told = desk.as_("olga", "run", "plan", _recipe(desk, RECIPE + "rnak: 3\nlearning_rat: 1\nseed: x\n"))
    assert told.code == 2
    lines = told.err.splitlines()
    assert lines[0].startswith("error: ") and "recipe: 3 problems [bad-input]" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [
        "recipe, key 'rnak'", "recipe, key 'learning_rat'", "recipe, seed",
    ]  # fmt: skip


def test_a_new_recipe_is_one_that_can_be_planned(
    open_desk: Callable[[str], Desk], capsys: pytest.CaptureFixture[str]
) -> None:
    desk = open_desk("imported")
    path = desk.folder / "new.yaml"
    words = ("recipe", "new", "--output", str(path), "--base", "smollm2", "--dataset", "clauses@1")
    assert desk.type(*words).code == 0
    assert desk.as_("olga", "run", "plan", str(path)).code == 0
    assert desk.type(*words).code == 5, "an existing file is left alone"
    assert "# learning_rate: auto" in desk.type("recipe", "new").out
    assert desk.type("recipe", "new", "--name", "Big One").code == 2


def test_what_does_not_fit_is_said_before_anybody_signs(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("imported")
    desk.service.bend["/v1/recipes/facts"] = lambda answer: {
        **answer,
        "machine": {**answer["machine"], "memory_bytes": 600_000_000},
    }
    told = desk.as_("olga", "run", "plan", _recipe(desk))
    assert told.code == 0, told.err
    assert "fits this machine: no: plan, memory: expected at most 600 MB, which this machine has, got" in one_line(
        told.out
    )
    assert "Advised: none of these methods" in told.out
