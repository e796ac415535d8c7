"""`run start --sweep`: the runs of a sweep, from one signature at the start to the table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.runs.plans import list_costs, promise
from appliance.cli.support.caller import Caller
from appliance.cli.support.following import Display
from appliance.cli.support.output import print_json, print_table, say
from appliance.cli.support.signing import sign_all
from appliance.errors import Conflict

if TYPE_CHECKING:
    from appliance.client.sweeps import Candidate, Row


def train_sweep(caller: Caller, path: Path, folder: Path, gates: str | None, tier: str | None, on: str | None) -> None:
    """Orders every combination, follows them, cancels those that fall behind, and writes what came of it."""
    from appliance.client.evaluation.gates import choose_gates
    from appliance.client.planning import plan_run
    from appliance.client.runs import propose_run
    from appliance.client.sweeps import Candidate, follow_sweep, load_sweep, name_sweep

    if folder.exists():
        raise Conflict(f"sweep, {folder}: expected a new folder to write to, got one that is there")
    door = caller.reading()
    combinations = load_sweep(door, path)
    sweep, proposals, planned = name_sweep(combinations[0].recipe), [], list[str]()
    for one in combinations:
        chosen = choose_gates(door, gates, one.recipe.purpose)
        made = propose_run(door, caller.anchor, caller.signer, one.recipe, str(path), chosen, tier, sweep, on)
        proposals.append(made)
        planned += list_costs(plan_run(door, one.recipe, str(path)), promise(door, chosen, one.recipe).lines)
    planned.append(
        f"Sweep {sweep}: {len(proposals)} runs, one after another. A run whose validation loss is not among the better "
        "half is cancelled in your name while this command runs. Each one that ends is judged, and counts as a try."
    )
    receipts = sign_all(caller, proposals, planned)
    candidates = [
        Candidate(str(receipt.result["run"]), one.values) for receipt, one in zip(receipts, combinations, strict=True)
    ]
    shown = _Shown(caller)
    caller.go_on = f"the runs of sweep {sweep} go on, none is stopped any more; list them with: appliance run list"
    try:
        follow_sweep(door, candidates, shown.take, lambda behind: _cancel(caller, behind))
    finally:
        shown.close()
    _tell(caller, candidates, f"Sweep {sweep} of {path.name}", folder)


class _Shown:
    """One display a run, each closed before the next."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
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


def _tell(caller: Caller, candidates: list[Candidate], title: str, folder: Path) -> None:
    """The table first: it is there even where the folder cannot be written."""
    from appliance.client.sweeps import list_rows, write_sweep

    rows = list_rows(candidates)
    if caller.json:
        print_json([row.model_dump(mode="json") for row in rows])
    else:
        swept = list(rows[0].values)
        print_table(
            ("run", *swept, "best loss", "steps", "status", "adapter"),
            [(row.run, *row.values.values(), row.best, row.step, row.status, row.adapter) for row in rows],
        )
    write_sweep(rows, title, folder)
    say(f"written to: {folder}")
    _advise(rows)


def _advise(rows: list[Row]) -> None:
    best = next((row for row in rows if row.adapter is not None), None)
    if best is not None:
        say(
            f"next: a reviewer types: appliance review show {best.adapter}",
            "its gates count every run that was judged on these rows",
        )
