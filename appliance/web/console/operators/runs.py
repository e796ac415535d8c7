"""Training runs, the newest first: what waits, what goes on, what ended how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.domain.core.records.runs import Run
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.operators.live import GOING, Pace, pace_of
from appliance.workflows.core.context import Context

Status = Literal["waiting", "queued", "running", "trained", "sealed", "failed", "cancelled", "refused"]


class RunsQuery(Query):
    """`before`: the entry of the last run on the page before."""

    status: Status | None = None
    before: int | None = Field(default=None, ge=0)


class RunRow(Value):
    """`place`: in the queue. From `step` to `detail`: while it goes on."""

    id: str
    name: str
    status: str
    place: int | None
    step: int | None
    steps: int | None
    loss: float | None
    tokens_s: float | None
    left_s: float | None
    peak_bytes: int | None
    detail: str | None
    base: str
    dataset: str
    method: str
    ordered_by: str
    seconds: str | None
    entry: int


class Runs(Value):
    """`running`: every run that goes on, whatever page of the list is shown."""

    running: tuple[RunRow, ...]
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
    going = [run for run in every if run.status in GOING]
    return Runs(
        running=tuple(_row(context, run, None) for run in going),
        runs=tuple(_row(context, run, places.get(run.id)) for run in found[:PAGE_ROWS]),
        queued=len(waiting),
        going=len(going),
        next=found[PAGE_ROWS - 1].index if len(found) > PAGE_ROWS else None,
    )


def _row(context: Context, run: Run, place: int | None) -> RunRow:
    far = pace_of(context, run.id) if run.status in GOING else Pace()
    return RunRow(
        id=run.id,
        name=run.name,
        status=run.status,
        place=place,
        **far._asdict(),
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
