"""Progress of running runs, for pages that follow them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from appliance.web.console.core.events import Next, ServerSentEvent
from appliance.web.console.core.page import PageValue
from appliance.workflows.core.context import RunContext
from appliance.workflows.queries.work import run_progress

MOST_POINTS = 2_000
"""Maximum points of a curve. A screen has no more columns."""
PACE_STEPS = 10
"""Number of last steps that determine the pace. With fewer steps it is the pace of the whole run."""
WITH_PROGRESS = ("running", "trained")
"""Statuses of a run that a worker trains, evaluates or seals."""
_NOTHING = {"seconds": 0, "step": 0, "tokens": 0}
"""The state before the first step."""

Point = tuple[int, float | None, float | None, float, float, float, int]
"""A step: number, loss (None for a private run), validation loss, learning rate, gradient norm, seconds so far, peak
memory in bytes."""


def follow(context: RunContext, run: str) -> Next:
    """Return the events of one run.

    Raises: NotFound for an unknown run.
    """
    run_progress(context, run, 0)
    life = re.sub(r"[^0-9]", "", context.began)

    def find(after: str) -> ServerSentEvent | None:
        position, status = _parse_id(after, life)
        progress = run_progress(context, run, position)
        if not progress.frames and progress.status == status and not progress.ended:
            return None
        data = {
            "status": progress.status,
            "last": progress.ended,
            "detail": progress.detail,
            "adapter": progress.adapter,
            "fresh": position == 0,
            **progress_of(progress.frames),
        }
        return ServerSentEvent(f"{progress.next}.{life}.{progress.status}", "steps", data, last=progress.ended)

    return find


def _parse_id(text: str, life: str) -> tuple[int, str]:
    """Return position and status of an event id. Ids of an earlier start of the service count from the beginning."""
    match = re.fullmatch(r"([0-9]{1,12})\.([0-9]+)\.([a-z]+)", text)
    return (int(match[1]), match[3]) if match and match[2] == life else (0, "")


def progress_of(frames: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the frames' steps as points, with the pace of the last ones and the remaining seconds at that pace."""
    steps = [frame for frame in frames if frame.get("frame") == "step"]
    rows = [frame for frame in frames if frame.get("frame") == "progress"]
    evaluated = None if not rows else {"done": int(rows[-1]["done"]), "total": int(rows[-1]["total"])}
    if not steps:
        return {"points": [], "spikes": [], "evaluated": evaluated}
    last, first = steps[-1], steps[-PACE_STEPS] if len(steps) >= PACE_STEPS else _NOTHING
    seconds = float(last["seconds"]) - float(first["seconds"])
    done, tokens = int(last["step"]) - int(first["step"]), int(last["tokens"]) - int(first["tokens"])
    return {
        "points": thin_points([point_of(frame) for frame in steps]),
        "spikes": [int(frame["step"]) for frame in steps if frame.get("spike") is not None],
        "step": int(last["step"]),
        "steps": int(last["steps"]),
        "tokens_s": tokens / seconds if seconds > 0 else None,
        "left_s": (int(last["steps"]) - int(last["step"])) * seconds / done if done > 0 and seconds > 0 else None,
        "peak_bytes": max(int(frame["peak_bytes"]) for frame in steps),
        "evaluated": evaluated,
    }


def point_of(step: dict[str, Any]) -> Point:
    """Return the point of a step's frame."""
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


class StepProgress(PageValue):
    """The progress of a run by its last steps, empty before the first. `peak_bytes` is the peak memory so far."""

    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_s: float | None = None
    left_s: float | None = None
    peak_bytes: int | None = None
    detail: str | None = None


def read_step_progress(context: RunContext, run: str) -> StepProgress:
    """Return the progress of a run from its last frames only, so that a list of runs does not read all steps."""
    frames = context.progress.read(run).frames
    last = list(islice(reversed(frames.copy()), PACE_STEPS + 1))[::-1]
    progress = progress_of(last)
    evaluated = progress["evaluated"]
    detail = None if evaluated is None else f"evaluated {evaluated['done']} of {evaluated['total']} rows"
    if not progress["points"]:
        return StepProgress(detail=detail)
    shown = {name: progress[name] for name in ("step", "steps", "tokens_s", "left_s", "peak_bytes")}
    return StepProgress(loss=progress["points"][-1][1], detail=detail, **shown)


def follow_all(context: RunContext) -> Next:
    """Return the events of all running runs: one each time that any of them progresses."""

    def find(after: str) -> ServerSentEvent | None:
        going = [run for run in context.ledger.state.runs.values() if run.status in WITH_PROGRESS]
        position = ".".join(f"{run.id}-{context.progress.read(run.id).next}-{run.status}" for run in going)
        digest = hashlib.sha256(f"{context.began} {position}".encode()).hexdigest()[:24]
        if after == digest:
            return None
        runs = {run.id: {"status": run.status, **read_step_progress(context, run.id).model_dump()} for run in going}
        return ServerSentEvent(digest, "progress", {"runs": runs})

    return find


def thin_points(points: Sequence[Point]) -> list[Point]:
    """Return at most MOST_POINTS evenly chosen points, plus the last one and every validation loss."""
    if len(points) <= MOST_POINTS:
        return list(points)
    every = -(-len(points) // MOST_POINTS)
    return [
        point
        for index, point in enumerate(points)
        if index % every == 0 or index == len(points) - 1 or point[2] is not None
    ]
