"""A sweep: every combination of a recipe's lists is ordered, followed, and cancelled where it falls behind."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.client.policies import current_policy
from appliance.client.runs import Ended, follow, load_written
from appliance.client.support.door import Door
from appliance.client.support.program import new_folder, run_report_program
from appliance.domain.core.names import Value
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Facts, Recipe
from appliance.domain.recipe.sweep import align_readings, expand_recipe
from appliance.domain.runs.stopping import Reading, best_step
from appliance.domain.runs.sweeps import find_behind
from appliance.errors import BadInput, Denied

RESULT = "sweep.json"


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
    best: str | None
    step: int
    status: str
    adapter: str | None
    told: str


def load_sweep(door: Door, path: Path) -> list[Combination]:
    """BadInput where it is none, or has more runs than policy lets a sweep order."""
    try:
        pairs = expand_recipe(load_written(path))
        most = current_policy(door).policy.parameters.most_sweep_runs
        if len(pairs) > most:
            raise BadInput(f"recipe: expected at most {most} combinations (policy, most_sweep_runs), got {len(pairs)}")
        recipes = [parse_recipe(written) for written, _ in pairs]
    except BadInput as error:
        raise error.within(str(path)) from None
    facts = door.get("/v1/recipes/facts", base=recipes[0].base, dataset=recipes[0].dataset)["facts"]
    aligned = align_readings(recipes, Facts.model_validate(facts))
    return [Combination(recipe, values) for recipe, (_, values) in zip(aligned, pairs, strict=True)]


def name_sweep(recipe: Recipe) -> str:
    """A name that no other sweep has."""
    return f"{recipe.name[:50].rstrip('-')}-{secrets.token_hex(4)}"


def follow_sweep(
    door: Door,
    candidates: Sequence[Candidate],
    show: Callable[[str, str, list[dict[str, Any]]], None],
    stop: Callable[[Candidate], None],
) -> None:
    """Until all have ended. `show` gets run, status and frames; `stop` is called for a run that falls behind."""
    for candidate in candidates:
        others = [other.readings for other in candidates if other is not candidate]

        def told(status: str, frames: list[dict[str, Any]], own: Candidate = candidate) -> None:
            show(own.run, status, frames)
            for frame in frames:
                if frame.get("frame") != "step" or frame.get("validation_loss") is None:
                    continue
                reading = (int(frame["step"]), str(frame["validation_loss"]))
                # A run that was resumed tells some of them again.
                own.readings[:] = [one for one in own.readings if one[0] < reading[0]] + [reading]
                behind = find_behind(own.readings, others)  # noqa: B023 it is called within this turn alone
                if behind is not None and own.behind is None and status == "running":
                    try:
                        own.behind = behind
                        stop(own)
                    except Denied:
                        # It came to its end meanwhile.
                        own.behind = None

        candidate.ended = follow(door, candidate.run, told)


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
        best=dict(readings)[best_step(readings)] if readings else None,
        step=readings[-1][0] if readings else 0,
        status="ordered" if ended is None else ended.status,
        adapter=None if ended is None else ended.adapter,
        told=told,
    )


def write_sweep(rows: Sequence[Row], title: str, folder: Path) -> None:
    """A new folder: the rows, and their curves drawn. Conflict where it is there already."""
    new_folder(folder, "sweep")
    data = json.dumps({"title": title, "runs": [row.model_dump(mode="json") for row in rows]}, indent=1)
    (folder / RESULT).write_text(data + "\n", encoding="utf-8")
    run_report_program(sys.executable, "sweep", [str(folder.absolute() / RESULT), str(folder.absolute())], b"")
