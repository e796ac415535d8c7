"""Sweeps of runs, from one signature at the start to the table at the end, and how to continue one."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.runs.plans import list_detectable_effects, propose_run, summarise_together
from appliance.cli.support.caller import Caller
from appliance.cli.support.command import PATH, with_signing_options
from appliance.cli.support.groups import run
from appliance.cli.support.output import print_facts, print_json, print_table, say
from appliance.cli.support.progress import Display
from appliance.cli.support.signing import sign_all, sign_and_submit
from appliance.errors import ApplianceError, Conflict, Denied

if TYPE_CHECKING:
    from appliance.api.runs import Frame
    from appliance.client.sweeps import Sweep, SweepResultRow, SweepRun
    from appliance.domain.actions.proposals import Proposal

_STOPS = (
    "A run whose validation loss is not among the better half is cancelled in your name while this command runs. Each "
    "one that ends is evaluated, and counts as a try."
)


def train_sweep(
    caller: Caller, path: Path, folder: Path, gates: str | None, tier: str | None, on: str | None, nodes: int = 1
) -> None:
    """Order every combination, follow the runs, cancel the worse ones, and write the table and plot."""
    from appliance.client.gates import choose_gates
    from appliance.client.runs import plan_run
    from appliance.client.support.service_process import new_folder
    from appliance.client.sweeps import Sweep, SweepRun, load_sweep
    from appliance.domain.recipe.sweep import make_sweep_name

    if folder.exists():
        raise Conflict(
            f"sweep, {folder}: expected a new folder to write to, got one that is there; to continue a sweep, type: "
            f"appliance run sweep NAME --folder {folder}"
        )
    connection = caller.reading()
    combinations = load_sweep(connection, path, caller.signer)
    recipes = [one.recipe for one in combinations]
    name = make_sweep_name(recipes[0].name, secrets.token_hex(4))
    chosen = choose_gates(connection, gates, recipes[0].purpose)
    values = {"tier": tier, "sweep": name, "on": on, "nodes": nodes}
    proposals = [propose_run(caller, recipe, str(path), chosen, values) for recipe in recipes]
    costs = summarise_together([plan_run(connection, recipe, str(path)) for recipe in recipes])
    planned = [
        f"  {label}: {value}"
        for label, value in [*costs, *list_detectable_effects(connection, chosen, recipes[0]).lines]
    ]
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
            say(f"some runs of sweep {name} were ordered; continue with: {_continue_command(name, folder)}")
        raise
    runs = [str(receipt.result["run"]) for receipt in receipts]
    candidates = [SweepRun(run, one.values) for run, one in zip(runs, combinations, strict=True)]
    _follow(caller, Sweep(name, f"Sweep {name} of {path.name}", folder, candidates))


@run.command("sweep", example="appliance run sweep clauses-1f0c22aa --folder chosen\nappliance run sweep NAME --cancel")
@click.argument("name", metavar="SWEEP")
@click.option(
    "--folder",
    metavar="FOLDER",
    type=PATH,
    help="The folder that the sweep was started with, or a new one.",
)
@click.option("--cancel/--no-cancel", default=False, help="Cancel its runs that have not ended, and do nothing else.")
@with_signing_options
def sweep(caller: Caller, name: str, folder: Path | None, cancel: bool) -> None:
    """Continue a sweep after its command ended early, or cancel the rest of it.

    SWEEP is the name that `run start --sweep` printed. Worse runs are cancelled as before, and the table and plot are
    written at the end. The folder of the start has the losses of the cancelled runs. With another folder their losses
    are missing and do not count.
    """
    from appliance.client.sweeps import find_sweep, list_left
    from appliance.errors import BadInput

    if cancel == (folder is not None):
        raise BadInput(
            "run sweep: expected --folder FOLDER to continue, or --cancel, got " + ("both" if cancel else "none")
        )
    connection = caller.reading()
    if folder is None:
        _cancel_all(caller, name, [row.id for row in list_left(connection, name)])
        return
    others = sorted({row.ordered_by for row in list_left(connection, name)} - {caller.signer})
    if others:
        raise Denied(
            f"sweep {name}: expected one that you ordered, since its runs are cancelled in your name, got one of "
            f"{', '.join(others)}; follow one of its runs with: appliance run show RUN --follow"
        )
    found = find_sweep(connection, caller.anchor, name, folder)
    say(f"Sweep {name}: {len(found.candidates)} runs. {_STOPS}")
    caller.confirm("Continue?")
    _ = caller.unlock("to cancel runs that fall behind")
    _follow(caller, found)


def _cancel_all(caller: Caller, name: str, runs: Sequence[str]) -> None:
    if not runs:
        say(f"sweep {name}: all its runs have ended; nothing was signed.")
        return
    # In reverse order, because cancelling the first would start the next.
    proposals = [caller.propose("cancel", {"run": run}) for run in reversed(runs)]
    sign_all(caller, proposals, show=show_orders) if len(runs) > 1 else sign_and_submit(caller, proposals[0])
    if caller.json:
        print_json([{"run": run, "status": "cancelled"} for run in runs])
    else:
        print_table(("run", "status"), [(run, "cancelled") for run in runs])


def show_orders(proposals: Sequence[Proposal]) -> None:
    """Show several orders on stderr: the values that they share once, then each order's own. No value is left out."""
    from appliance.domain.actions.registry import ACTIONS
    from appliance.domain.actions.showing import describe

    descriptions = [describe(proposal) for proposal in proposals]
    common = [line for line in descriptions[0] if all(line in lines for lines in descriptions)]
    say("", f"You are about to sign {len(proposals)} orders. All of them say:", "")
    print_facts([(f"  {label}", value) for label, value in common], err=True)
    say("", "Each of them says beside it:", "")
    own = [
        ", ".join(f"{label} {value}" for label, value in lines if (label, value) not in common)
        for lines in descriptions
    ]
    print_facts([(f"  order {number}", text) for number, text in enumerate(own, start=1)], err=True)
    first = proposals[0].order
    say("", f"  What it means: {ACTIONS[first.action].explain(first)}", "")


def _continue_command(name: str, folder: Path) -> str:
    return f"appliance run sweep {name} --folder {folder}"


def _follow(caller: Caller, sweep: Sweep) -> None:
    shown, notice = (
        _RunDisplay(),
        "its runs continue, and none is stopped any more; continue the sweep with: "
        f"{_continue_command(sweep.name, sweep.folder)}",
    )
    caller.continuation = f"sweep {sweep.name}: {notice}"
    try:
        sweep.write()
        sweep.follow(caller.reading(), shown.take, lambda behind: _cancel(caller, behind))
    except ApplianceError:
        shown.close()
        say(caller.continuation)
        raise
    finally:
        shown.close()
    caller.continuation = (
        f"sweep {sweep.name}: all its runs have ended; its table: {_continue_command(sweep.name, sweep.folder)}"
    )
    _print_result(caller, sweep)


class _RunDisplay:
    """The display of the run that is followed now. It is closed before the next run's."""

    def __init__(self) -> None:
        self._display: Display | None = None

    def take(self, run: str, status: str, frames: list[Frame]) -> None:
        if self._display is None or self._display.run != run:
            self.close()
            self._display = Display(run)
        self._display.take(status, frames)

    def close(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None


def _cancel(caller: Caller, behind: SweepRun) -> None:
    """Cancel a run that is behind, with the key that was unlocked for the sweep."""
    from appliance.client.support import orders

    assert behind.behind is not None
    loss, best = behind.behind
    reason = f"behind in its sweep: validation loss {loss} above {best}"
    proposal = caller.propose("cancel", {"run": behind.run}, texts={"reason": reason})
    signed = orders.sign(proposal, caller.unlock("to sign this"))
    orders.submit(caller.connection, signed, caller.anchor.log_keys)
    say(f"{behind.run}: falls behind, {loss} where the better half is at {best} or below; cancelled.")


def _print_result(caller: Caller, sweep: Sweep) -> None:
    """Print the table, then draw the plot, so that the table exists even if the plot fails."""
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
    _print_advice(rows)


def _ended(row: SweepResultRow) -> str:
    return row.status if row.behind is None else "stopped, behind"


def _print_advice(rows: list[SweepResultRow]) -> None:
    best = next((row for row in rows if row.adapter is not None), None)
    if best is None:
        say("no run was sealed; read why with: appliance run show RUN")
        return
    say(
        f"next: see whether its gates passed: appliance gate explain {best.adapter}",
        f"then a reviewer types: appliance review show {best.adapter}",
        "its gates count every run that was evaluated on these rows",
    )
