"""`run start --sweep`: one signature for all runs, cancelled runs, and the table of results."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.api.runs import Frame
from appliance.cli.runs import sweeps as cli_sweeps
from appliance.cli.runs.sweeps import show_orders
from appliance.client import sweeps
from appliance.client.runs import RunEnd
from appliance.domain.actions.proposals import Proposal
from appliance.domain.actions.showing import describe
from appliance.domain.core.records.runs import Run
from appliance.errors import Unavailable
from scripts.kit.log_builder import policy_set
from tests.cli.conftest import Desk, one_line

RECIPE = "name: clauses\nbase: smollm2\ndataset: clauses@1\nrank: [4, 8, 16]\nlearning_rate: 0.001\n"
LOSSES = {"r-000001": [2.0, 1.5], "r-000002": [2.5], "r-000003": [1.9, 1.2]}
"""Of each run's validation readings: the second is worse than the first at the first rung."""


def _recipe(desk: Desk, text: str = RECIPE) -> str:
    path = desk.folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def _frame(step: int, loss: float) -> Frame:
    return Frame(
        frame="step",
        step=step,
        steps=20,
        loss="3.0",
        validation_loss=f"{loss:.6f}",
        tokens=100 * step,
        seconds=f"{step}.000",
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the service's progress of runs, since no worker runs."""

    def follow(connection: Any, run: str, told: Callable[[str, list[dict[str, Any]]], None]) -> RunEnd:
        for place, loss in enumerate(LOSSES[run], start=1):
            told("running", [_frame(10 * place, loss)])
        if connection.get(f"/v1/runs/{run}", Run).status == "cancelled":
            return RunEnd(run, "cancelled", None, f"run {run} was cancelled")
        return RunEnd(run, "sealed", f"clauses@{run[-1]}", None)

    monkeypatch.setattr(sweeps, "follow", follow)


@pytest.mark.thorough
def test_every_combination_is_signed_at_once_and_one_that_falls_behind_is_cancelled(
    open_desk: Callable[[str], Desk], trained: None
) -> None:
    desk = open_desk("imported")
    folder = desk.folder / "chosen"
    told = desk.as_("olga", "run", "start", _recipe(desk), "--sweep", "--folder", str(folder), "--yes")
    assert told.code == 0, told.err
    said = one_line(told.err)
    shown = said[: said.index("Planned for all of them")]
    assert said.index("You are about to sign 3 orders. All of them say") < said.index("signed:")
    assert shown.count("learning rate: 0.001") == 1 and "order 2: rank 8, alpha 16 (auto), expires" in shown
    assert [shown.count(f"rank {rank}, ") for rank in (4, 8, 16)] == [1, 1, 1]
    assert "runs: 3 on smollm2 with clauses@1, of" in said and "less where runs are stopped" in said
    assert "3 runs, one after another. A run whose validation loss is not among the better half is cancelled" in said
    assert "r-000002: falls behind, 2.500000 where the better half is at 2.000000 or below; cancelled." in said
    assert [line.split() for line in told.out.splitlines()[1:]] == [
        ["r-000003", "16", "1.200000", "20", "sealed", "clauses@3"],
        ["r-000001", "4", "1.500000", "20", "sealed", "clauses@1"],
        ["r-000002", "8", "2.500000", "10", "stopped,", "behind", "-"],
    ]
    assert "then a reviewer types: appliance review show clauses@3" in said
    runs = desk.site.state.runs.values()
    (sweep,) = {run.sweep for run in runs}
    assert sweep is not None and sweep.startswith("clauses-")
    assert [run.status for run in runs] == ["queued", "cancelled", "queued"]
    assert [run.eval_steps for run in runs] == [runs[0].eval_steps] * 3 and runs[0].eval_steps > 0
    written = json.loads((folder / "sweep.json").read_text())
    assert [one["run"] for one in written["runs"]] == ["r-000003", "r-000001", "r-000002"]
    assert written["runs"][2]["note"] == "stopped: 2.500000 was above 2.000000, the worst of the better half"
    svg = (folder / "sweep.svg").read_text()
    assert "<!-- r-000003: rank 16 -->" in svg and (folder / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (RECIPE.replace("[4, 8, 16]", "8"), (), "expected a list for one of method, rank, learning_rate, epochs"),
        (RECIPE.replace("[4, 8, 16]", "[4, 1000]"), (), "rank: expected at most 512 or 'auto', got 1000"),
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


def test_no_value_that_is_signed_is_left_out_of_what_is_shown_together(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = open_desk("imported").site
    orders = [site.train_order(recipe={"name": name, "rank": rank}) for name, rank in (("first", 4), ("second", 8))]
    proposals = [Proposal(order=order, reported=frozenset({"recipe.alpha"})) for order in orders]
    show_orders(proposals)
    told = one_line(capsys.readouterr().err)
    for proposal in proposals:
        for label, value in describe(proposal):
            assert f"{label}: {one_line(value)}" in told or f"{label} {one_line(value)}" in told, label


@pytest.mark.parametrize("words", [("plan",), ("start", "--yes")])
def test_a_recipe_with_lists_is_no_recipe_of_one_run_and_the_refusal_says_how_to_sweep(
    open_desk: Callable[[str], Desk], words: tuple[str, ...]
) -> None:
    desk = open_desk("imported")
    path = _recipe(desk)
    told = desk.as_("olga", "run", words[0], path, *words[1:])
    assert told.code == 2, told.err
    assert "recipe, rank: expected one value, got a list" in one_line(told.err)
    assert f"appliance run start {path} --sweep --folder FOLDER" in one_line(told.err)


@pytest.fixture
def left_early(monkeypatch: pytest.MonkeyPatch, trained: None) -> Callable[[], None]:
    """Ctrl-C as the third run begins; what it returns lets it train."""
    follow = sweeps.follow

    def leave(connection: Any, run: str, told: Callable[[str, list[dict[str, Any]]], None]) -> RunEnd:
        if run == "r-000003":
            raise KeyboardInterrupt
        return follow(connection, run, told)

    monkeypatch.setattr(sweeps, "follow", leave)
    return lambda: monkeypatch.setattr(sweeps, "follow", follow)


def _leave(desk: Desk, text: str = RECIPE) -> tuple[str, str]:
    """Start a sweep and leave it. Return its name and its folder."""
    folder = str(desk.folder / "chosen")
    told = desk.as_("olga", "run", "start", _recipe(desk, text), "--sweep", "--folder", folder, "--yes")
    assert told.code == 130, told.err
    (name,) = {str(run.sweep) for run in desk.site.state.runs.values()}
    assert f"continue the sweep with: appliance run sweep {name} --folder {folder}" in one_line(told.err)
    return name, folder


@pytest.mark.thorough
def test_a_sweep_that_was_left_continues_with_the_losses_that_it_had(
    open_desk: Callable[[str], Desk], left_early: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("imported")
    name, folder = _leave(desk)
    left_early()
    ends = sweeps.follow

    def end(connection: Any, run: str, told: Callable[[str, list[dict[str, Any]]], None]) -> RunEnd:
        if run == "r-000002":  # of a cancelled run the service tells nothing
            return RunEnd(run, "cancelled", None, f"run {run} was cancelled")
        return ends(connection, run, told)

    monkeypatch.setattr(sweeps, "follow", end)
    told = desk.as_("olga", "run", "sweep", name, "--folder", folder, "--yes")
    assert told.code == 0, told.err
    assert [line.split()[:3] for line in told.out.splitlines()[1:]] == [
        ["r-000003", "16", "1.200000"],
        ["r-000001", "4", "1.500000"],
        ["r-000002", "8", "2.500000"],
    ]
    assert (desk.folder / "chosen" / "sweep.svg").is_file()

    elsewhere = desk.as_("olga", "run", "sweep", name, "--folder", str(desk.folder / "other"), "--yes")
    assert elsewhere.code == 0, elsewhere.err
    assert [line.split()[:3] for line in elsewhere.out.splitlines()[1:]][-1] == ["r-000002", "8", "-"]


@pytest.mark.thorough
def test_a_service_that_restarts_ends_the_command_which_says_how_to_go_on(
    open_desk: Callable[[str], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("imported")

    def gone(connection: Any, run: str, told: Callable[[str, list[dict[str, Any]]], None]) -> RunEnd:
        raise Unavailable("service: expected it to answer, got nothing")

    monkeypatch.setattr(sweeps, "follow", gone)
    folder = str(desk.folder / "chosen")
    told = desk.as_("olga", "run", "start", _recipe(desk), "--sweep", "--folder", folder, "--yes")
    assert told.code == Unavailable.exit_code, told.err
    (name,) = {str(run.sweep) for run in desk.site.state.runs.values()}
    assert f"continue the sweep with: appliance run sweep {name} --folder {folder}" in one_line(told.err)
    assert len(json.loads((desk.folder / "chosen" / "sweep.json").read_text())["runs"]) == 3


@pytest.mark.thorough
def test_a_run_that_was_to_be_stopped_before_the_power_went_is_evaluated_again(
    open_desk: Callable[[str], Desk], left_early: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk("imported")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_sweeps, "_cancel", die)
    name, folder = _leave(desk)
    assert json.loads((desk.folder / "chosen" / "sweep.json").read_text())["runs"][1]["behind"] == [
        "2.500000",
        "2.000000",
    ]
    monkeypatch.undo()
    found = sweeps.Result.model_validate_json((desk.folder / "chosen" / "sweep.json").read_bytes())
    assert [sweeps._restore_run(row, "running").behind for row in found.runs] == [None] * 3
    assert name == found.sweep and folder.endswith("chosen")


def test_runs_are_followed_as_they_train_and_one_that_was_resumed_trains_last() -> None:
    def row(number: int, status: str, queued: int, sweep: str | None = "clauses-1") -> Any:
        return SimpleNamespace(id=f"r-{number}", status=status, queued=queued, sweep=sweep)

    rows = [
        row(1, "queued", 90),
        row(2, "running", 12),
        row(3, "sealed", 13),
        row(4, "queued", 14),
        row(5, "queued", 1, None),
    ]
    connection: Any = SimpleNamespace(get=lambda path, model: rows)
    assert [one.id for one in sweeps.list_runs(connection, "clauses-1")] == ["r-3", "r-2", "r-4", "r-1"]
    assert [one.id for one in sweeps.list_left(connection, "clauses-1")] == ["r-2", "r-4", "r-1"]


@pytest.mark.thorough
def test_what_is_left_of_a_sweep_is_cancelled_at_once(
    open_desk: Callable[[str], Desk], left_early: Callable[[], None]
) -> None:
    desk = open_desk("imported")
    name, _ = _leave(desk)
    told = desk.as_("olga", "run", "sweep", name, "--cancel", "--yes")
    assert told.code == 0, told.err
    assert {run.status for run in desk.site.state.runs.values()} == {"cancelled"}
    again = desk.as_("olga", "run", "sweep", name, "--cancel", "--yes")
    assert again.code == 0 and "all its runs have ended; nothing was signed" in again.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("clauses-0", "--cancel"), 4, "sweep: expected one of none so far, got clauses-0"),
        (("clauses-0",), 2, "expected --folder FOLDER to continue, or --cancel, got none"),
        (("clauses-0", "--cancel", "--folder", "chosen"), 2, "or --cancel, got both"),
    ],
)
def test_what_is_no_sweep_is_not_gone_on_with(
    open_desk: Callable[[str], Desk], words: tuple[str, ...], code: int, said: str
) -> None:
    told = open_desk("imported").as_("olga", "run", "sweep", *words, "--yes")
    assert told.code == code and said in one_line(told.err)


@pytest.mark.thorough
@pytest.mark.parametrize("text", [None, "{}", '{"sweep": "other-1", "title": "", "runs": []}'])
def test_a_sweep_does_not_go_on_in_the_folder_of_something_else(
    open_desk: Callable[[str], Desk], left_early: Callable[[], None], text: str | None
) -> None:
    desk = open_desk("imported")
    name, _ = _leave(desk)
    folder = desk.folder / "else"
    folder.mkdir()
    if text is not None:
        (folder / "sweep.json").write_text(text)
    told = desk.as_("olga", "run", "sweep", name, "--folder", str(folder), "--yes")
    assert told.code in (2, 5), told.err
    assert "sweep.json" in told.err or "got that of other-1" in one_line(told.err)
    assert sorted(path.name for path in folder.iterdir()) == ([] if text is None else ["sweep.json"])


def test_a_folder_that_cannot_be_made_is_named_before_anybody_signs(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    told = desk.as_(
        "olga", "run", "start", _recipe(desk), "--sweep", "--folder", str(desk.folder / "no" / "x"), "--yes"
    )
    assert told.code != 0 and "no/x" in told.err
    assert desk.ordered() == 0


def test_more_combinations_than_policy_lets_a_sweep_order_are_refused_whole(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("imported")
    desk.site.adopt(policy_set(most_sweep_runs=2))
    before = desk.ordered()
    told = desk.as_("olga", "run", "start", _recipe(desk), "--sweep", "--folder", str(desk.folder / "chosen"), "--yes")
    assert told.code == 2, told.err
    assert "expected at most 2 combinations (policy, most_sweep_runs), got 3" in one_line(told.err)
    assert desk.ordered() == before


@pytest.mark.thorough
def test_a_second_sweep_waits_for_the_first_where_both_are_more_than_policy_allows(
    open_desk: Callable[[str], Desk], left_early: Callable[[], None]
) -> None:
    desk = open_desk("imported")
    text = RECIPE.replace("[4, 8, 16]", "[1, 2, 3, 4, 5, 6, 7, 8, 9]")
    name, _ = _leave(desk, text)
    before = desk.ordered()
    told = desk.as_(
        "olga", "run", "start", _recipe(desk, text), "--sweep", "--folder", str(desk.folder / "more"), "--yes"
    )
    assert told.code == 5, told.err
    assert f"got 9 and 8 of {name}; continue that sweep, or cancel it: appliance run sweep {name} --cancel" in one_line(
        told.err
    )
    assert desk.ordered() == before and not (desk.folder / "more").exists()


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
