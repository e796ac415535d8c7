"""Sweeps: every combination of a recipe's lists is ordered, followed, and cancelled if it is worse than the others.

The results of the runs are written to the sweep's folder as they arrive, so that another command can continue.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.api.runs import Frame
from appliance.client.policies import current_policy
from appliance.client.runs import FINAL, RunEnd, follow, load_written, ordered_recipe, read_facts
from appliance.client.support.connection import Connection
from appliance.client.support.files import read_file, replace_file
from appliance.client.support.log import Anchor
from appliance.client.support.service_process import new_folder, run_report_program
from appliance.domain.core.names import Value
from appliance.domain.core.records.runs import Run
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Recipe
from appliance.domain.recipe.sweep import SWEPT, align_readings, expand_recipe
from appliance.domain.runs.replays import find_behind
from appliance.domain.runs.steps import Reading, best_step
from appliance.errors import BadInput, Conflict, Denied, NotFound

RESULT = "sweep.json"
"""The file of a sweep's results in its folder."""
_MOST_BYTES = 16_777_216


@dataclass(frozen=True)
class Combination:
    """One combination of a sweep; `values` are the swept values, as their author wrote them."""

    recipe: Recipe
    values: Mapping[str, Any]


@dataclass
class SweepRun:
    """A run of the sweep.

    `behind` is its loss and the loss that it was compared with, if it was stopped for that.
    """

    run: str
    values: Mapping[str, Any]
    readings: list[Reading] = field(default_factory=list)
    behind: tuple[str, str] | None = None
    ended: RunEnd | None = None


class SweepResultRow(Value):
    """A run in the table of results; `best` is the lowest validation loss."""

    run: str
    values: dict[str, str]
    readings: tuple[Reading, ...]
    behind: tuple[str, str] | None
    best: str | None
    step: int
    status: str
    adapter: str | None
    note: str


class Result(Value):
    """The content of a sweep's file of results."""

    sweep: str
    title: str
    runs: tuple[SweepResultRow, ...]


def load_sweep(connection: Connection, path: Path, signer: str) -> list[Combination]:
    """Return the combinations of a sweep's recipe.

    Raises: BadInput if it is not a sweep or has more runs than policy allows; Conflict if runs of the signer's other
    sweeps on the dataset must end first.
    """
    try:
        pairs = expand_recipe(load_written(path))
        most = current_policy(connection).policy.parameters.most_sweep_runs
        if len(pairs) > most:
            raise BadInput(
                f"recipe: expected at most {most} combinations (policy, most_sweep_runs), got {len(pairs)}; "
                "leave values out of its lists"
            )
        recipes = [parse_recipe(written) for written, _ in pairs]
    except BadInput as error:
        raise error.within(str(path)) from None
    _check_others(connection, recipes[0].dataset, signer, len(recipes), most)
    aligned = align_readings(recipes, read_facts(connection, recipes[0]).facts)
    return [Combination(recipe, values) for recipe, (_, values) in zip(aligned, pairs, strict=True)]


def _check_others(connection: Connection, dataset: str, signer: str, count: int, most: int) -> None:
    """Raise Conflict if the ledger's rules would refuse some of the runs because of the signer's other sweeps."""
    others = [
        row.sweep
        for row in connection.get("/v1/runs", list[Run])
        if row.sweep is not None and row.status not in FINAL and (row.ordered_by, row.dataset) == (signer, dataset)
    ]
    if others and count + len(others) > most:
        names = ", ".join(dict.fromkeys(others))
        raise Conflict(
            f"sweep: expected at most {most} runs (policy, most_sweep_runs) in it and in your other sweeps on "
            f"{dataset} that have not ended, got {count} and {len(others)} of {names}; continue that sweep, or cancel "
            f"it: appliance run sweep {others[0]} --cancel"
        )


@dataclass
class Sweep:
    """A sweep with its folder, which exists and belongs to this sweep."""

    name: str
    title: str
    folder: Path
    candidates: list[SweepRun]

    def follow(
        self,
        connection: Connection,
        show: Callable[[str, str, list[Frame]], None],
        stop: Callable[[SweepRun], None],
    ) -> None:
        """Follow all runs until they end.

        `show` gets run, status and frames; `stop` is called for a run that falls behind.
        """
        follow_sweep(connection, self.candidates, show, stop, self.write)

    def write(self) -> None:
        """Write the file of results."""
        result = Result(sweep=self.name, title=self.title, runs=tuple(list_rows(self.candidates)))
        data = json.dumps(result.model_dump(mode="json"), indent=1) + "\n"
        replace_file(self.folder / RESULT, data.encode(), "sweep")

    def draw(self) -> None:
        """Draw the plots of the results."""
        words = [str(self.folder.absolute() / RESULT), str(self.folder.absolute())]
        run_report_program(sys.executable, "sweep", words, b"")


def list_runs(connection: Connection, name: str) -> list[Run]:
    """Return the rows of the sweep's runs: those that ended, then the others in the order of their training.

    A resumed run may be the last.

    Raises: NotFound for an unknown name.
    """
    rows = connection.get("/v1/runs", list[Run])
    runs = sorted((row for row in rows if row.sweep == name), key=lambda row: (row.status not in FINAL, row.queued))
    if not runs:
        known = sorted({row.sweep for row in rows if row.sweep is not None})
        raise NotFound(f"sweep: expected one of {', '.join(known) or 'none so far'}, got {name}")
    return runs


def list_left(connection: Connection, name: str) -> list[Run]:
    """Return the rows of the sweep's runs that have not ended."""
    return [row for row in list_runs(connection, name) if row.status not in FINAL]


def find_sweep(connection: Connection, anchor: Anchor, name: str, folder: Path) -> Sweep:
    """Return a sweep that was ordered before.

    Its folder has the readings of cancelled runs, which are stored nowhere else; without it these runs have no loss.

    Raises: NotFound for an unknown name; Conflict if the folder belongs to something else.
    """
    runs = list_runs(connection, name)
    saved = _load_folder(folder, name) if folder.exists() else None
    before = {} if saved is None else {row.run: row for row in saved.runs}
    recipes = {
        row.id: ordered_recipe(connection, anchor, row.id).model_dump(mode="json")
        for row in runs
        if row.id not in before
    }
    # If the folder is lost, the swept values are those that differ.
    swept = [key for key in SWEPT if len({str(recipe[key]) for recipe in recipes.values()}) > 1]
    if saved is None:
        new_folder(folder, "sweep")
    return Sweep(
        name,
        f"Sweep {name}" if saved is None else saved.title,
        folder,
        [
            SweepRun(row.id, {key: recipes[row.id][key] for key in swept})
            if row.id not in before
            else _restore_run(before[row.id], row.status)
            for row in runs
        ],
    )


def _restore_run(row: SweepResultRow, status: str) -> SweepRun:
    """Return the run of a saved row. One that was to be stopped, but was not, is compared again."""
    return SweepRun(row.run, row.values, list(row.readings), row.behind if status == "cancelled" else None)


def _load_folder(folder: Path, name: str) -> Result:
    path = folder / RESULT
    if not path.is_file():
        raise Conflict(f"sweep, {folder}: expected a new folder, or that of sweep {name}, got one without {RESULT}")
    try:
        found = Result.model_validate_json(read_file(path, "sweep", _MOST_BYTES))
    except ValidationError as error:
        raise BadInput(
            f"sweep, {path}: expected what a sweep wrote, got {error.error_count()} values that are none; "
            "give a new folder: the losses of its cancelled runs are lost"
        ) from None
    if found.sweep != name:
        raise Conflict(f"sweep, {folder}: expected the folder of sweep {name}, got that of {found.sweep}")
    return found


def follow_sweep(
    connection: Connection,
    candidates: Sequence[SweepRun],
    show: Callable[[str, str, list[Frame]], None],
    stop: Callable[[SweepRun], None],
    save: Callable[[], None] = lambda: None,
) -> None:
    """Follow all runs. `save` is called after each reading, before a run is stopped, and when a run has ended."""
    for candidate in candidates:
        others = [other.readings for other in candidates if other is not candidate]

        def note(status: str, frames: list[Frame], own: SweepRun = candidate) -> None:
            show(own.run, status, frames)
            known = len(own.readings)
            for frame in frames:
                if frame.frame != "step" or frame.validation_loss is None:
                    continue
                reading = (frame.step, str(frame.validation_loss))
                # A resumed run repeats some readings.
                own.readings[:] = [earlier for earlier in own.readings if earlier[0] < reading[0]] + [reading]
                behind = find_behind(own.readings, others)  # noqa: B023 it is called in this iteration only
                if behind is not None and own.behind is None and status == "running":
                    own.behind = behind
                    save()
                    if not _stop(connection, own, stop):
                        own.behind = None
            if len(own.readings) != known:
                save()

        candidate.ended = follow(connection, candidate.run, note)
        if candidate.ended.status != "cancelled":
            candidate.behind = None
        save()


def _stop(connection: Connection, candidate: SweepRun, stop: Callable[[SweepRun], None]) -> bool:
    """Stop a run; return False if it had ended by itself meanwhile."""
    try:
        stop(candidate)
    except Denied:
        if connection.get(f"/v1/runs/{candidate.run}", Run).status not in FINAL:
            raise
        return False
    return True


def list_rows(candidates: Sequence[SweepRun]) -> list[SweepResultRow]:
    """Return the rows, the best first, those without a validation loss last."""
    rows = [_row(candidate) for candidate in candidates]
    return sorted(rows, key=lambda row: (row.best is None, float(row.best or 0), row.run))


def _row(candidate: SweepRun) -> SweepResultRow:
    readings, ended, behind = tuple(candidate.readings), candidate.ended, candidate.behind
    note = "" if ended is None else ended.detail or ""
    if behind is not None:
        note = f"stopped: {behind[0]} was above {behind[1]}, the worst of the better half"
    return SweepResultRow(
        run=candidate.run,
        values={key: str(value) for key, value in candidate.values.items()},
        readings=readings,
        behind=behind,
        best=dict(readings)[best_step(readings)] if readings else None,
        step=readings[-1][0] if readings else 0,
        status="ordered" if ended is None else ended.status,
        adapter=None if ended is None else ended.adapter,
        note=note,
    )
