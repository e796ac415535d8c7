"""A run as it goes on: each step once, for the page that follows it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from appliance.web.console.core.events import Event, Next
from appliance.workflows.core.context import Context
from appliance.workflows.queries.work import run_progress

MOST_POINTS = 2_000
"""Of a curve: a screen has no more columns."""
PACE_STEPS = 10
"""The pace is that of the last ones where so many come at once, else that of the run so far."""
GOING = ("running", "trained")
"""Statuses of a run that a worker trains, judges or seals."""
_NOTHING = {"seconds": 0, "step": 0, "tokens": 0}

Point = tuple[int, float | None, float | None, float, float, float, int]
"""Step, loss (none of a private run), validation loss, learning rate, gradient norm, seconds so far, most memory in
bytes."""


def follow(context: Context, run: str) -> Next:
    """NotFound for a run that is not known."""
    run_progress(context, run, 0)
    life = re.sub(r"[^0-9]", "", context.began)

    def find(after: str) -> Event | None:
        position, status = _parse_id(after, life)
        found = run_progress(context, run, position)
        if not found["frames"] and found["status"] == status and not found["ended"]:
            return None
        data = {
            "status": found["status"],
            "last": found["ended"],
            "detail": found["detail"],
            "adapter": found["adapter"],
            "fresh": position == 0,
            **progress_of(found["frames"]),
        }
        return Event(f"{found['next']}.{life}.{found['status']}", "steps", data, last=found["ended"])

    return find


def _parse_id(text: str, life: str) -> tuple[int, str]:
    """Frames are counted by each start of the service anew: an earlier one's count says nothing."""
    found = re.fullmatch(r"([0-9]{1,12})\.([0-9]+)\.([a-z]+)", text)
    return (int(found[1]), found[3]) if found and found[2] == life else (0, "")


def progress_of(frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The steps of these frames as points, the pace of the last ones, and what is left at that pace."""
    steps = [frame for frame in frames if frame.get("frame") == "step"]
    rows = [frame for frame in frames if frame.get("frame") == "progress"]
    evaluated = None if not rows else {"done": int(rows[-1]["done"]), "total": int(rows[-1]["total"])}
    if not steps:
        return {"points": [], "spikes": [], "evaluated": evaluated}
    last, first = steps[-1], steps[-PACE_STEPS] if len(steps) >= PACE_STEPS else _NOTHING
    seconds = float(last["seconds"]) - float(first["seconds"])
    done, tokens = int(last["step"]) - int(first["step"]), int(last["tokens"]) - int(first["tokens"])
    return {
        "points": thin([point_of(frame) for frame in steps]),
        "spikes": [int(frame["step"]) for frame in steps if frame.get("spike") is not None],
        "step": int(last["step"]),
        "steps": int(last["steps"]),
        "tokens_s": tokens / seconds if seconds > 0 else None,
        "left_s": (int(last["steps"]) - int(last["step"])) * seconds / done if done > 0 and seconds > 0 else None,
        "peak_bytes": max(int(frame["peak_bytes"]) for frame in steps),
        "evaluated": evaluated,
    }


def point_of(step: dict[str, Any]) -> Point:
    validation = step.get("validation_loss")
    return (
        int(step["step"]),
        None if step["loss"] is None else float(step["loss"]),
        None if validation is None else float(validation),
        float(step["learning_rate"]),
        float(step["grad_norm"]),
        float(step["seconds"]),
        int(step["peak_bytes"]),
    )


class Pace(NamedTuple):
    """How far a run is now, by its last steps; nothing of it before the first one. `peak_bytes`: the most so far."""

    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_s: float | None = None
    left_s: float | None = None
    peak_bytes: int | None = None
    detail: str | None = None


def pace_of(context: Context, run: str) -> Pace:
    """By the last frames alone: a list of runs does not read all steps of each."""
    frames = context.progress.read(run).frames
    last = list(islice(reversed(frames.copy()), PACE_STEPS + 1))[::-1]
    told = progress_of(last)
    evaluated = told["evaluated"]
    detail = None if evaluated is None else f"evaluated {evaluated['done']} of {evaluated['total']} rows"
    if not told["points"]:
        return Pace(detail=detail)
    loss = told["points"][-1][1]
    return Pace(told["step"], told["steps"], loss, told["tokens_s"], told["left_s"], told["peak_bytes"], detail)


def follow_all(context: Context) -> Next:
    """Every run that goes on, each time that one of them has come further."""

    def find(after: str) -> Event | None:
        going = [run for run in context.ledger.state.runs.values() if run.status in GOING]
        at = ".".join(f"{run.id}-{context.progress.read(run.id).next}-{run.status}" for run in going)
        told = hashlib.sha256(f"{context.began} {at}".encode()).hexdigest()[:24]
        if after == told:
            return None
        runs = {run.id: {"status": run.status, **pace_of(context, run.id)._asdict()} for run in going}
        return Event(told, "progress", {"runs": runs})

    return find


def thin(points: Sequence[Point]) -> list[Point]:
    """At most so many, evenly, with the first, the last and every validation loss: what is between lies on the line."""
    if len(points) <= MOST_POINTS:
        return list(points)
    every = -(-len(points) // MOST_POINTS)
    return [
        point
        for place, point in enumerate(points)
        if place % every == 0 or place == len(points) - 1 or point[2] is not None
    ]
