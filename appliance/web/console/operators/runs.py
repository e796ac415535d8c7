"""Training runs, newest first, and the comparison of several."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Literal

from pydantic import Field

from appliance.api.runs import describe_effects, list_effects
from appliance.domain.core.records.runs import Run
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.planning.footprint import plan_memory
from appliance.domain.planning.pace import count_planned_steps, pace_of_machine, plan_duration
from appliance.domain.planning.plan import format_seconds, note_near_rows, read_subject
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.runs.training import RECIPE_UNTRAINABLE
from appliance.errors import ApplianceError, BadInput, Refusal, Rejected
from appliance.formats.core.text import show_bytes
from appliance.web.console.core.page import BeforeQuery, CsvTable, ListPage, Page, PageValue, Query, Viewer, columns
from appliance.web.console.core.render import words
from appliance.web.console.operators import records
from appliance.web.console.operators.live import WITH_PROGRESS, Point, StepProgress, read_step_progress
from appliance.workflows.core.context import RunContext
from appliance.workflows.queries.work import recipe_facts
from appliance.workflows.runs import planning

Status = Literal["waiting", "queued", "running", "trained", "sealed", "failed", "cancelled", "refused"]


class RunsQuery(BeforeQuery):
    """The status of the listed runs."""

    status: Status | None = None


class RunRow(PageValue):
    """A run. `place` is its position in the queue. `progress` is empty unless it is running."""

    run: Run
    place: int | None
    progress: StepProgress


class Runs(ListPage[RunRow]):
    """The list of runs. `running` has every running run, on every page of the list."""

    running: tuple[RunRow, ...]
    queued: int
    running_count: int


def runs(context: RunContext, viewer: Viewer, query: RunsQuery) -> Runs:
    """Return the runs, newest first."""
    every = context.ledger.state.runs.values()
    waiting = sorted((run for run in every if run.status == "queued"), key=lambda run: run.queued)
    places = {run.id: place for place, run in enumerate(waiting, start=1)}
    fitting = (run for run in query.list_newest(every) if query.status in (None, run.status))
    running = tuple(_row(context, run, None) for run in every if run.status in WITH_PROGRESS)
    return Runs.of(
        (_row(context, run, places.get(run.id)) for run in fitting),
        attrgetter("run.index"),
        running=running,
        queued=len(waiting),
        running_count=len(running),
    )


def _row(context: RunContext, run: Run, place: int | None) -> RunRow:
    progress = read_step_progress(context, run.id) if run.status in WITH_PROGRESS else StepProgress()
    progress = progress.model_copy(update={"steps": progress.steps or run.planned_steps})
    return RunRow(run=run, place=place, progress=progress)


_COLUMNS = (
    *("run.id", "run.name", "run.status", "place", *(f"progress.{name}" for name in StepProgress.model_fields)),
    *("run.base", "run.dataset", "run.method", "run.ordered_by", "run.seconds", "run.index"),
)
"""Columns of the table of runs."""
RUNS_PAGE = Page("/runs", "Runs", runs, columns("rows", *_COLUMNS), group="Training", symbol="run")


MOST = 6
"""Maximum number of compared runs. More colours are hard to distinguish."""


class CompareQuery(Query):
    """The ids of the compared runs."""

    run: tuple[str, ...] = Field(default=(), max_length=MOST)


class Difference(PageValue):
    """A value that differs between the compared runs."""

    name: str
    values: tuple[str, ...]
    """The value of each run, in the order of the runs."""


class RunCurve(PageValue):
    """The curve of one of the compared runs."""

    run: str
    label: str
    points: tuple[Point, ...]


class RunComparison(PageValue):
    """The page that compares runs."""

    runs: tuple[str, ...]
    same: int
    """Number of recipe values that all runs share and that are not shown."""
    recipes: tuple[Difference, ...]
    results: tuple[Difference, ...]
    curves: tuple[RunCurve, ...]
    others: tuple[tuple[str, str], ...]
    """Runs that can be added: id and name."""


def compare(context: RunContext, viewer: Viewer, query: CompareQuery) -> RunComparison:
    """Return a comparison of runs.

    Raises: BadInput if one is named twice; NotFound for an unknown one.
    """
    names = tuple(dict.fromkeys(query.run))
    if len(names) != len(query.run):
        raise BadInput("comparison: expected each run once, got one twice")
    rows = [records.find_run(context, name) for name in names]
    recipes = [records.read_order(context, row).recipe.model_dump(mode="json") for row in rows]
    steps = [records.read_steps(context, row.id).shown for row in rows]
    metrics = [records.read_metrics(context, records.find_adapter_of_run(context, row.id)) for row in rows]
    results: list[dict[str, Any]] = [
        {
            "status": row.status,
            "seconds": row.seconds,
            "last loss": lines[-1]["loss"] if lines else None,
            **{f"held-out {name}": value for name, value in (found.get("adapter") or {}).items()},
        }
        for row, lines, found in zip(rows, steps, metrics, strict=True)
    ]
    different, same = _differences(recipes)
    newest = reversed(context.ledger.state.runs.values()[-40:])
    return RunComparison(
        runs=names,
        same=same,
        recipes=different,
        results=_differences(results)[0],
        curves=tuple(
            RunCurve(run=row.id, label=f"{row.id} {row.name}", points=records.make_curves(lines).points)
            for row, lines in zip(rows, steps, strict=True)
        ),
        others=tuple((run.id, run.name) for run in newest if run.id not in names),
    )


def _differences(values: list[dict[str, Any]]) -> tuple[tuple[Difference, ...], int]:
    """Return the values that differ between the runs, and how many are the same."""
    names = list(dict.fromkeys(name for value in values for name in value))
    rows = [(name, tuple(words(value.get(name)) for value in values)) for name in names]
    different = tuple(
        Difference(name=name.replace("_", " "), values=texts) for name, texts in rows if len(set(texts)) > 1
    )
    return different, len(rows) - len(different)


def _curves_table(value: RunComparison) -> CsvTable:
    rows = [[one.name, *one.values] for one in (*value.recipes, *value.results)]
    return CsvTable(("difference", *value.runs), rows)


CURVES_PAGE = Page("/compare", "Compare runs", compare, _curves_table, group="Training", symbol="compare")


def plan_of(context: RunContext, recipe: ResolvedRecipe) -> dict[str, str]:
    """Return what a run will need on this machine.

    The result is empty if base or dataset are missing or have no facts for planning.
    """
    state = context.ledger.state
    base, dataset = state.bases.get(recipe.base), state.datasets.get(recipe.dataset)
    if base is None or dataset is None:
        return {}
    try:
        subject = read_subject(recipe.base, recipe.dataset, base.facts, dataset.facts)
        pace = pace_of_machine(planning.describe_machine(context), recipe, subject.shape)
        memory = plan_memory(subject, recipe).peak
    except (ApplianceError, KeyError):
        return {}
    duration = plan_duration(subject, recipe, pace)
    low, high = format_seconds(duration.low), format_seconds(duration.high)
    return {
        "steps": str(count_planned_steps(recipe, subject.rows)),
        "time": f"about {format_seconds(duration.likely)}, between {low} and {high}",
        "most memory": show_bytes(memory),
    }


class GateOutlook(PageValue):
    """The effects that the gates of an order to train can show.

    `warnings` say why results look too good, or which gate cannot pass.
    """

    facts: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def foresee_gates(context: RunContext, recipe: ResolvedRecipe, data: bytes | None) -> GateOutlook:
    """Return what the gates file with these bytes can show of a run of this recipe.

    The result is empty if base or dataset are missing, or the file names sets that are not there: rules refuse these.
    """
    try:
        known = recipe_facts(context, recipe.base, recipe.dataset)
        subject = read_subject(recipe.base, recipe.dataset, known.base_facts, known.dataset_facts)
        near = note_near_rows(subject.near_held_out, subject.held_out)
        if data is None:
            return GateOutlook(warnings=tuple(near))
        gates = parse_gates(data)
        effects = list_effects(gates, known)
        facts = describe_effects(gates, [one for one in effects if one.basis], known)
    except (ApplianceError, KeyError):
        return GateOutlook()
    hopeless = [f"gate {one.gate}: {one.sentence}" for one in effects if not one.basis]
    return GateOutlook(facts=tuple(facts), warnings=(*near, *hopeless))


def list_plan_problems(context: RunContext, recipe: ResolvedRecipe) -> tuple[Refusal, ...]:
    """Return why a run of this recipe cannot fit this machine."""
    try:
        planning.check_order(context, recipe)
    except ApplianceError as error:
        return tuple(RECIPE_UNTRAINABLE(problem=Rejected(text)) for text in error.reasons or (error.message,))
    return ()
