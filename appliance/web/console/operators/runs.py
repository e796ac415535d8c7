"""Training runs, the newest first: what waits, what goes on, what ended how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.domain.core.records import Run
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.operators.live import progress_of
from appliance.workflows.core.context import Context

Status = Literal["queued", "running", "trained", "sealed", "failed", "cancelled"]
GOING = ("running", "trained")


class RunsQuery(Query):
    """`before`: the entry of the last run on the page before."""

    status: Status | None = None
    before: int | None = Field(default=None, ge=0)


class RunRow(Value):
    """`place`: in the queue; `step` and `steps` while it trains."""

    id: str
    name: str
    status: str
    place: int | None
    step: int | None
    steps: int | None
    left_s: float | None
    base: str
    dataset: str
    method: str
    ordered_by: str
    seconds: str | None
    entry: int


class Runs(Value):
    runs: tuple[RunRow, ...]
    queued: int
    going: int
    next: int | None


def runs(context: Context, viewer: Viewer, query: RunsQuery) -> Runs:
    every = context.ledger.state.runs.values()
    waiting = sorted((run for run in every if run.status == "queued"), key=lambda run: run.queued)
    places = {run.id: place for place, run in enumerate(waiting, start=1)}
    fitting = (
        run
        for run in reversed(every)
        if (query.status is None or run.status == query.status) and (query.before is None or run.index < query.before)
    )
    found = [run for run, _ in zip(fitting, range(PAGE_ROWS + 1), strict=False)]
    return Runs(
        runs=tuple(_row(context, run, places.get(run.id)) for run in found[:PAGE_ROWS]),
        queued=len(waiting),
        going=sum(run.status in GOING for run in every),
        next=found[PAGE_ROWS - 1].index if len(found) > PAGE_ROWS else None,
    )


def _row(context: Context, run: Run, place: int | None) -> RunRow:
    frames = list(context.progress.read(run.id, 0, 0).frames) if run.status in GOING else []
    far = progress_of(frames)
    return RunRow(
        id=run.id,
        name=run.name,
        status=run.status,
        place=place,
        step=far.get("step"),
        steps=far.get("steps"),
        left_s=far.get("left_s"),
        base=run.base,
        dataset=run.dataset,
        method=run.method,
        ordered_by=run.ordered_by,
        seconds=run.seconds,
        entry=run.index,
    )


def _table(value: Runs) -> Table:
    headers = tuple(RunRow.model_fields)
    return Table(headers, [[getattr(run, name) for name in headers] for run in value.runs])


PAGE = Page("/runs", "Runs", PEOPLE, RunsQuery, runs, "operators/runs.html", _table, group="Training", symbol="run")
