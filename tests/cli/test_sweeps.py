"""`run start --sweep`: one signature for all runs, those behind are cancelled, and the table says what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.client import sweeps
from appliance.client.runs import Ended
from scripts.kit.log_builder import policy_set
from tests.cli.conftest import Desk, one_line

RECIPE = "name: clauses\nbase: smollm2\ndataset: clauses@1\nrank: [4, 8, 16]\nlearning_rate: 0.001\n"
LOSSES = {"r-000001": [2.0, 1.5], "r-000002": [2.5], "r-000003": [1.9, 1.2]}
"""Of each run's validation readings: the second is worse than the first at the first rung."""


def _recipe(desk: Desk, text: str = RECIPE) -> str:
    path = desk.folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def _frame(step: int, loss: float) -> dict[str, Any]:
    return {
        "frame": "step", "step": step, "steps": 20, "loss": "3.0", "validation_loss": f"{loss:.6f}",
        "tokens": 100 * step, "seconds": f"{step}.000",
    }  # fmt: skip


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the service would tell of each run, were there a worker."""

    def follow(door: Any, run: str, told: Callable[[str, list[dict[str, Any]]], None]) -> Ended:
        for place, loss in enumerate(LOSSES[run], start=1):
            told("running", [_frame(10 * place, loss)])
        if door.get(f"/v1/runs/{run}")["status"] == "cancelled":
            return Ended(run, "cancelled", None, f"run {run} was cancelled")
        return Ended(run, "sealed", f"clauses@{run[-1]}", None)

    monkeypatch.setattr(sweeps, "follow", follow)


def test_every_combination_is_signed_at_once_and_one_that_falls_behind_is_cancelled(
    open_desk: Callable[[str], Desk], trained: None
) -> None:
    desk = open_desk("imported")
    folder = desk.folder / "chosen"
    told = desk.as_("olga", "run", "start", _recipe(desk), "--sweep", "--folder", str(folder), "--yes")
    assert told.code == 0, told.err
    assert told.err.rindex("You are about to sign") < told.err.index("signed:")
    said = one_line(told.err)
    assert "3 runs, one after another. A run whose validation loss is not among the better half is cancelled" in said
    assert "r-000002: falls behind, 2.500000 where the better half is at 2.000000 or below; cancelled." in said
    assert [line.split() for line in told.out.splitlines()[1:]] == [
        ["r-000003", "16", "1.200000", "20", "sealed", "clauses@3"],
        ["r-000001", "4", "1.500000", "20", "sealed", "clauses@1"],
        ["r-000002", "8", "2.500000", "10", "cancelled", "-"],
    ]
    assert "next: a reviewer types: appliance review show clauses@3" in said
    runs = desk.site.state.runs.values()
    (sweep,) = {run.sweep for run in runs}
    assert sweep is not None and sweep.startswith("clauses-")
    assert [run.status for run in runs] == ["queued", "cancelled", "queued"]
    assert [run.validate_every for run in runs] == [runs[0].validate_every] * 3 and runs[0].validate_every > 0
    written = json.loads((folder / "sweep.json").read_text())
    assert [one["run"] for one in written["runs"]] == ["r-000003", "r-000001", "r-000002"]
    assert written["runs"][2]["told"] == "stopped: 2.500000 was above 2.000000, the worst of the better half"
    svg = (folder / "sweep.svg").read_text()
    assert "<!-- r-000003: rank 16 -->" in svg and (folder / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (RECIPE.replace("[4, 8, 16]", "8"), (), "expected a list for one of method, rank, learning_rate, epochs"),
        (RECIPE.replace("[4, 8, 16]", "[4, 1000]"), (), "rank: expected at most 512 or auto, got 1000"),
        (RECIPE, ("recipe.yaml",), "expected one recipe with --sweep, got 2"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anybody_signs(
    open_desk: Callable[[str], Desk], text: str, words: tuple[str, ...], said: str
) -> None:
    desk = open_desk("imported")
    path = _recipe(desk, text)
    more = [path for _ in words]
    told = desk.as_("olga", "run", "start", path, *more, "--sweep", "--folder", str(desk.folder / "chosen"), "--yes")
    assert told.code == 2 and said in one_line(told.err)
    assert desk.ordered() == 0 and not (desk.folder / "chosen").exists()


def test_more_combinations_than_policy_lets_a_sweep_order_are_refused_whole(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    desk.site.adopt(policy_set(most_sweep_runs=2))
    before = desk.ordered()
    told = desk.as_("olga", "run", "start", _recipe(desk), "--sweep", "--folder", str(desk.folder / "chosen"), "--yes")
    assert told.code == 2, told.err
    assert "expected at most 2 combinations (policy, most_sweep_runs), got 3" in one_line(told.err)
    assert desk.ordered() == before


def test_a_folder_that_is_there_is_not_written_to(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    told = desk.as_("olga", "run", "start", _recipe(desk), "--sweep", "--folder", str(desk.folder), "--yes")
    assert told.code == 5 and "expected a new folder to write to, got one that is there" in one_line(told.err)
    assert desk.ordered() == 0


@pytest.mark.parametrize("words", [("--sweep",), ("--folder", "chosen")])
def test_a_sweep_has_a_folder_and_nothing_else_has(open_desk: Callable[[str], Desk], words: tuple[str, ...]) -> None:
    desk = open_desk("imported")
    told = desk.as_("olga", "run", "start", _recipe(desk, RECIPE.replace("[4, 8, 16]", "8")), *words, "--yes")
    assert told.code == 2 and "expected --sweep and --folder together" in one_line(told.err)
    assert desk.ordered() == 0
