"""`run plan`: what is read before anything is signed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cli.conftest import Desk

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
    for text in ("RTX 3060 (not measured)", "Advised: "):
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
    assert "fits this machine:  no: plan, memory: expected at most 600 MB, which this machine has, got" in told.out
    assert "Advised: none of these methods" in told.out
