"""A sweep of runs: from one signature at its start to the table at its end, and how to go on with it in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.runs.plans import promise, summarise_together
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import command, signs
from appliance.cli.support.following import Display
from appliance.cli.support.output import print_facts, print_json, print_table, say
from appliance.cli.support.signing import sign_all, sign_and_submit
from appliance.errors import ApplianceError, Conflict, Denied

if TYPE_CHECKING:
    from appliance.client.sweeps import Candidate, Row, Sweep
    from appliance.domain.rulebook.proposals import Proposal

_STOPS = (
    "A run whose validation loss is not among the better half is cancelled in your name while this command runs. Each "
    "one that ends is judged, and counts as a try."
)


def train_sweep(
    caller: Caller, path: Path, folder: Path, gates: str | None, tier: str | None, on: str | None, nodes: int = 1
) -> None:
    """Orders every combination, follows them, cancels those that fall behind, and writes what came of it."""
    from appliance.client.evaluation.gates import choose_gates
    from appliance.client.planning import plan_run
    from appliance.client.runs import propose_run
    from appliance.client.support.program import new_folder
    from appliance.client.sweeps import Candidate, Sweep, load_sweep, name_sweep

    if folder.exists():
        raise Conflict(
            f"sweep, {folder}: expected a new folder to write to, got one that is there; to go on with a sweep, type: "
            f"appliance run sweep NAME --folder {folder}"
        )
    door = caller.reading()
    combinations = load_sweep(door, path, caller.signer)
    name, recipes = name_sweep(combinations[0].recipe), [one.recipe for one in combinations]
    chosen = choose_gates(door, gates, recipes[0].purpose)
    proposals = [
        propose_run(door, caller.anchor, caller.signer, recipe, str(path), chosen, tier, name, on, nodes)
        for recipe in recipes
    ]
    costs = summarise_together([plan_run(door, recipe, str(path)) for recipe in recipes])
    planned = [f"  {label}: {value}" for label, value in [*costs, *promise(door, chosen, recipes[0]).lines]]
    notes = [
        "Planned for all of them:",
        *planned,
        "",
        f"Sweep {name}: {len(proposals)} runs, one after another. {_STOPS}",
    ]
    new_folder(folder, "sweep")
    try:
        receipts = sign_all(caller, proposals, notes, show=show_orders)
    except BaseException:
        folder.rmdir()
        if caller.signed:
            say(f"some runs of sweep {name} were ordered; go on with them: {_go_on(name, folder)}")
        raise
    runs = [str(receipt.result["run"]) for receipt in receipts]
    candidates = [Candidate(run, one.values) for run, one in zip(runs, combinations, strict=True)]
    _follow(caller, Sweep(name, f"Sweep {name} of {path.name}", folder, candidates))


@command("sweep", example="appliance run sweep clauses-1f0c22aa --folder chosen\nappliance run sweep NAME --cancel")
@click.argument("name", metavar="SWEEP")
@click.option(
    "--folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The folder that the sweep was started with, or a new one.",
)
@click.option("--cancel/--no-cancel", default=False, help="Cancel its runs that have not ended, and do nothing else.")
@signs
@click.pass_obj
def sweep(caller: Caller, name: str, folder: Path | None, cancel: bool) -> None:
    """Go on with a sweep after its command ended early; or cancel what is left of it.

    SWEEP is the name that `run start --sweep` printed. Runs that fall behind are cancelled as before, and the table and
    plot are written at the end. The folder of the start has the losses of the runs that were cancelled; with another
    folder these have none, and count for nothing.
    """
    from appliance.client.sweeps import find_sweep, list_left
    from appliance.errors import BadInput

    if cancel == (folder is not None):
        raise BadInput(
            "run sweep: expected --folder FOLDER to go on, or --cancel, got " + ("both" if cancel else "none")
        )
    door = caller.reading()
    if folder is None:
        _cancel_all(caller, name, [row["id"] for row in list_left(door, name)])
        return
    strangers = sorted({row["ordered_by"] for row in list_left(door, name)} - {caller.signer})
    if strangers:
        raise Denied(
            f"sweep {name}: expected one that you ordered, since its runs are cancelled in your name, got one of "
            f"{', '.join(strangers)}; follow one of its runs with: appliance run show RUN --follow"
        )
    found = find_sweep(door, caller.anchor, name, folder)
    say(f"Sweep {name}: {len(found.candidates)} runs. {_STOPS}")
    caller.confirm("Go on?")
    _ = caller.unlock("to cancel runs that fall behind")
    _follow(caller, found)


def _cancel_all(caller: Caller, name: str, runs: Sequence[str]) -> None:
    from appliance.client.runs import propose_cancel

    if not runs:
        say(f"sweep {name}: all its runs have ended; nothing was signed.")
        return
    # The last first: otherwise each would begin as the one before it ends.
    proposals = [propose_cancel(caller.about, caller.signer, run) for run in reversed(runs)]
    sign_all(caller, proposals, show=show_orders) if len(runs) > 1 else sign_and_submit(caller, proposals[0])
    if caller.json:
        print_json([{"run": run, "status": "cancelled"} for run in runs])
    else:
        print_table(("run", "status"), [(run, "cancelled") for run in runs])


def show_orders(proposals: Sequence[Proposal]) -> None:
    """On stderr: what all orders say once, and of each what it alone says. No value is left out."""
    from appliance.domain.rulebook.registry import VERBS
    from appliance.domain.rulebook.showing import describe

    told = [describe(proposal) for proposal in proposals]
    common = [line for line in told[0] if all(line in lines for lines in told)]
    say("", f"You are about to sign {len(proposals)} orders. All of them say:", "")
    print_facts([(f"  {label}", value) for label, value in common], err=True)
    say("", "Each of them says beside it:", "")
    own = [", ".join(f"{label} {value}" for label, value in lines if (label, value) not in common) for lines in told]
    print_facts([(f"  order {number}", text) for number, text in enumerate(own, start=1)], err=True)
    first = proposals[0].order
    say("", f"  What it means: {VERBS[first.verb].means(first)}", "")


def _go_on(name: str, folder: Path) -> str:
    return f"appliance run sweep {name} --folder {folder}"


def _follow(caller: Caller, sweep: Sweep) -> None:
    shown, told = (
        _Shown(),
        f"its runs go on, and none is stopped any more; go on with: {_go_on(sweep.name, sweep.folder)}",
    )
    caller.go_on = f"sweep {sweep.name}: {told}"
    try:
        sweep.write()
        sweep.follow(caller.reading(), shown.take, lambda behind: _cancel(caller, behind))
    except ApplianceError:
        shown.close()
        say(caller.go_on)
        raise
    finally:
        shown.close()
    caller.go_on = f"sweep {sweep.name}: all its runs have ended; its table: {_go_on(sweep.name, sweep.folder)}"
    _tell(caller, sweep)


class _Shown:
    """One display a run, each closed before the next."""

    def __init__(self) -> None:
        self._display: Display | None = None

    def take(self, run: str, status: str, frames: list[dict[str, Any]]) -> None:
        if self._display is None or self._display.run != run:
            self.close()
            self._display = Display(run)
        self._display.take(status, frames)

    def close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None


def _cancel(caller: Caller, behind: Candidate) -> None:
    """With the key that was unlocked for the sweep."""
    from appliance.client.runs import propose_cancel
    from appliance.client.support import orders

    assert behind.behind is not None
    loss, best = behind.behind
    proposal = propose_cancel(
        caller.about, caller.signer, behind.run, reason=f"behind in its sweep: validation loss {loss} above {best}"
    )
    signed = orders.sign(proposal, caller.unlock("to sign this"))
    orders.submit(caller.door, signed, caller.anchor.log_key)
    say(f"{behind.run}: falls behind, {loss} where the better half is at {best} or below; cancelled.")


def _tell(caller: Caller, sweep: Sweep) -> None:
    """The table first: it is there even where the plot cannot be drawn."""
    from appliance.client.sweeps import list_rows

    rows = list_rows(sweep.candidates)
    if caller.json:
        print_json([row.model_dump(mode="json") for row in rows])
    else:
        swept = list(rows[0].values)
        print_table(
            ("run", *swept, "best loss", "steps", "ended", "adapter"),
            [(row.run, *row.values.values(), row.best, row.step, _ended(row), row.adapter) for row in rows],
            least=("steps", "ended"),
        )
    sweep.draw()
    say(f"written to: {sweep.folder}")
    _advise(rows)


def _ended(row: Row) -> str:
    return row.status if row.behind is None else "stopped, behind"


def _advise(rows: list[Row]) -> None:
    best = next((row for row in rows if row.adapter is not None), None)
    if best is None:
        say("no run was sealed; read why with: appliance run show RUN")
        return
    say(
        f"next: see whether its gates passed: appliance gate explain {best.adapter}",
        f"then a reviewer types: appliance review show {best.adapter}",
        "its gates count every run that was judged on these rows",
    )
