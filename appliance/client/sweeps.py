"""A sweep: every combination of a recipe's lists is ordered, followed, and cancelled where it falls behind.

What is known of the runs is written to the sweep's folder as it comes in, so that another command can go on.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from appliance.client.policies import current_policy
from appliance.client.record import ordered_recipe
from appliance.client.runs import FINAL, Ended, follow, load_written
from appliance.client.support.door import Door
from appliance.client.support.files import read_file, replace_file
from appliance.client.support.log import Anchor
from appliance.client.support.program import new_folder, run_report_program
from appliance.domain.core.names import Value
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Facts, Recipe
from appliance.domain.recipe.sweep import SWEPT, align_readings, expand_recipe
from appliance.domain.runs.stopping import Reading, best_step
from appliance.domain.runs.sweeps import find_behind
from appliance.errors import BadInput, Conflict, Denied, NotFound

RESULT = "sweep.json"
_MOST_BYTES = 16_777_216


@dataclass(frozen=True)
class Combination:
    """`values`: of what is swept, as its author wrote them."""

    recipe: Recipe
    values: Mapping[str, Any]


@dataclass
class Candidate:
    """A run of the sweep; `behind`: its loss and the one that it was held against, where it was stopped for that."""

    run: str
    values: Mapping[str, Any]
    readings: list[Reading] = field(default_factory=list)
    behind: tuple[str, str] | None = None
    ended: Ended | None = None


class Row(Value):
    """A run as the table has it. `best`: the lowest validation loss."""

    run: str
    values: dict[str, str]
    readings: tuple[Reading, ...]
    behind: tuple[str, str] | None
    best: str | None
    step: int
    status: str
    adapter: str | None
    told: str


class Result(Value):
    """What a sweep's folder says."""

    sweep: str
    title: str
    runs: tuple[Row, ...]


def load_sweep(door: Door, path: Path, signer: str) -> list[Combination]:
    """BadInput where it is none, or has more runs than policy lets a sweep order; Conflict where runs of the signer's
    other sweeps on the dataset have to end first."""
    try:
        pairs = expand_recipe(load_written(path))
        most = current_policy(door).policy.parameters.most_sweep_runs
        if len(pairs) > most:
            raise BadInput(
                f"recipe: expected at most {most} combinations (policy, most_sweep_runs), got {len(pairs)}; "
                "leave values out of its lists"
            )
        recipes = [parse_recipe(written) for written, _ in pairs]
    except BadInput as error:
        raise error.within(str(path)) from None
    _check_others(door, recipes[0].dataset, signer, len(recipes), most)
    facts = door.get("/v1/recipes/facts", base=recipes[0].base, dataset=recipes[0].dataset)["facts"]
    aligned = align_readings(recipes, Facts.model_validate(facts))
    return [Combination(recipe, values) for recipe, (_, values) in zip(aligned, pairs, strict=True)]


def name_sweep(recipe: Recipe) -> str:
    """A name that no other sweep has."""
    return f"{recipe.name[:50].rstrip('-')}-{secrets.token_hex(4)}"


def _check_others(door: Door, dataset: str, signer: str, count: int, most: int) -> None:
    """What the ledger's rules would say of one of the runs, after the first of them were ordered."""
    others = [
        row["sweep"]
        for row in door.get("/v1/runs")
        if row["sweep"] is not None
        and row["status"] not in FINAL
        and (row["ordered_by"], row["dataset"]) == (signer, dataset)
    ]
    if others and count + len(others) > most:
        names = ", ".join(dict.fromkeys(others))
        raise Conflict(
            f"sweep: expected at most {most} runs (policy, most_sweep_runs) in it and in your other sweeps on "
            f"{dataset} that have not ended, got {count} and {len(others)} of {names}; go on with that, or cancel it: "
            f"appliance run sweep {others[0]} --cancel"
        )


@dataclass
class Sweep:
    """`folder` is there, and this sweep's."""

    name: str
    title: str
    folder: Path
    candidates: list[Candidate]

    def follow(
        self,
        door: Door,
        show: Callable[[str, str, list[dict[str, Any]]], None],
        stop: Callable[[Candidate], None],
    ) -> None:
        """Until all have ended. `show` gets run, status and frames; `stop` is called for a run that falls behind."""
        follow_sweep(door, self.candidates, show, stop, self.write)

    def write(self) -> None:
        result = Result(sweep=self.name, title=self.title, runs=tuple(list_rows(self.candidates)))
        data = json.dumps(result.model_dump(mode="json"), indent=1) + "\n"
        replace_file(self.folder / RESULT, data.encode(), "sweep")

    def draw(self) -> None:
        words = [str(self.folder.absolute() / RESULT), str(self.folder.absolute())]
        run_report_program(sys.executable, "sweep", words, b"")


def list_runs(door: Door, name: str) -> list[dict[str, Any]]:
    """The rows of its runs: those that ended, then the others as they train, in which one that was resumed may be the
    last. NotFound for an unknown name."""
    rows = door.get("/v1/runs")
    runs = sorted(
        (row for row in rows if row["sweep"] == name), key=lambda row: (row["status"] not in FINAL, row["queued"])
    )
    if not runs:
        known = sorted({row["sweep"] for row in rows if row["sweep"] is not None})
        raise NotFound(f"sweep: expected one of {', '.join(known) or 'none so far'}, got {name}")
    return runs


def list_left(door: Door, name: str) -> list[dict[str, Any]]:
    """Those of its runs that have not ended."""
    return [row for row in list_runs(door, name) if row["status"] not in FINAL]


def find_sweep(door: Door, anchor: Anchor, name: str, folder: Path) -> Sweep:
    """One that was ordered before. Its folder says what was read of runs that were cancelled, which nobody else does;
    without it these have no loss. NotFound for an unknown name, Conflict for the folder of something else."""
    runs = list_runs(door, name)
    saved = _load_folder(folder, name) if folder.exists() else None
    before = {} if saved is None else {row.run: row for row in saved.runs}
    recipes = {row["id"]: ordered_recipe(door, anchor, row["id"]) for row in runs if row["id"] not in before}
    # Where the folder is lost, what is swept is what differs.
    swept = [key for key in SWEPT if len({str(recipe[key]) for recipe in recipes.values()}) > 1]
    if saved is None:
        new_folder(folder, "sweep")
    return Sweep(
        name,
        f"Sweep {name}" if saved is None else saved.title,
        folder,
        [
            Candidate(row["id"], {key: recipes[row["id"]][key] for key in swept})
            if row["id"] not in before
            else _go_on(before[row["id"]], row["status"])
            for row in runs
        ],
    )


def _go_on(row: Row, status: str) -> Candidate:
    """One that was to be stopped, and was not, is judged again."""
    return Candidate(row.run, row.values, list(row.readings), row.behind if status == "cancelled" else None)


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
    door: Door,
    candidates: Sequence[Candidate],
    show: Callable[[str, str, list[dict[str, Any]]], None],
    stop: Callable[[Candidate], None],
    save: Callable[[], None] = lambda: None,
) -> None:
    """`save` is called after each reading, before a run is stopped, and when one has ended."""
    for candidate in candidates:
        others = [other.readings for other in candidates if other is not candidate]

        def told(status: str, frames: list[dict[str, Any]], own: Candidate = candidate) -> None:
            show(own.run, status, frames)
            known = len(own.readings)
            for frame in frames:
                if frame.get("frame") != "step" or frame.get("validation_loss") is None:
                    continue
                reading = (int(frame["step"]), str(frame["validation_loss"]))
                # A run that was resumed tells some of them again.
                own.readings[:] = [one for one in own.readings if one[0] < reading[0]] + [reading]
                behind = find_behind(own.readings, others)  # noqa: B023 it is called within this turn alone
                if behind is not None and own.behind is None and status == "running":
                    own.behind = behind
                    save()
                    if not _stop(door, own, stop):
                        own.behind = None
            if len(own.readings) != known:
                save()

        candidate.ended = follow(door, candidate.run, told)
        if candidate.ended.status != "cancelled":
            candidate.behind = None
        save()


def _stop(door: Door, candidate: Candidate, stop: Callable[[Candidate], None]) -> bool:
    """Whether it was stopped; not where it came to its end meanwhile."""
    try:
        stop(candidate)
    except Denied:
        if door.get(f"/v1/runs/{candidate.run}")["status"] not in FINAL:
            raise
        return False
    return True


def list_rows(candidates: Sequence[Candidate]) -> list[Row]:
    """The best first; those without a validation loss last."""
    rows = [_row(candidate) for candidate in candidates]
    return sorted(rows, key=lambda row: (row.best is None, float(row.best or 0), row.run))


def _row(candidate: Candidate) -> Row:
    readings, ended, behind = tuple(candidate.readings), candidate.ended, candidate.behind
    told = "" if ended is None else ended.detail or ""
    if behind is not None:
        told = f"stopped: {behind[0]} was above {behind[1]}, the worst of the better half"
    return Row(
        run=candidate.run,
        values={key: str(value) for key, value in candidate.values.items()},
        readings=readings,
        behind=behind,
        best=dict(readings)[best_step(readings)] if readings else None,
        step=readings[-1][0] if readings else 0,
        status="ordered" if ended is None else ended.status,
        adapter=None if ended is None else ended.adapter,
        told=told,
    )
