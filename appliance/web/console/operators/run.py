"""One run: how far it is, what it was ordered with, and what it used beside what was planned."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.records.runs import Run
from appliance.domain.evaluation.quality import list_measures, list_warnings, summarize_training
from appliance.domain.planning.plan import say_seconds, show_bytes
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.runs.stopping import best_step
from appliance.web.console.core.page import PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.operators.live import progress_of
from appliance.web.console.operators.plans import plan_of
from appliance.web.console.operators.records import (
    RUN,
    Spike,
    adapter_of,
    curves_of,
    find_run,
    read_metrics,
    read_recipe,
    read_steps,
)
from appliance.workflows.core.context import Context
from appliance.workflows.queries.work import run_progress


class RunQuery(Query):
    run: str = Field(pattern=RUN)


class Compared(Value):
    """A figure of the plan beside what was used; None while it is not known."""

    name: str
    planned: str | None
    used: str | None


class RunPage(Value):
    id: str
    name: str
    status: str
    detail: str | None
    adapter: str | None
    base: str
    base_digest: str
    dataset: str
    dataset_digest: str
    method: str
    purpose: str
    ordered_by: str
    entry: int
    order: str
    step: int | None
    steps: int | None
    left_s: float | None
    tokens_s: float | None
    loss: float | None
    first_loss: float | None
    peak_bytes: int | None
    validation: tuple[float, float, int] | None
    """The last one, the lowest, and after which step that was."""
    spikes: tuple[Spike, ...]
    recipe: dict[str, Any]
    costs: tuple[Compared, ...]
    measures: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    resumes: int
    gates: str | None
    goes_on: bool


def run(context: Context, viewer: Viewer, query: RunQuery) -> RunPage:
    row = find_run(context, query.run)
    recipe, adapter = read_recipe(context, row), adapter_of(context, row.id)
    steps, losses = read_steps(context, row.id)
    frames = [{**step, "frame": "step"} for step in steps]
    far, found = progress_of(frames), run_progress(context, row.id, 0)
    metrics = read_metrics(context, adapter)
    if "training" not in metrics:
        metrics = {**metrics, "training": summarize_training(losses)}
    return RunPage(
        id=row.id,
        name=row.name,
        status=row.status,
        detail=found["detail"],
        adapter=adapter,
        base=row.base,
        base_digest=row.base_digest,
        dataset=row.dataset,
        dataset_digest=row.dataset_digest,
        method=row.method,
        purpose=row.purpose,
        ordered_by=row.ordered_by,
        entry=row.index,
        order=row.order,
        step=far.get("step"),
        steps=far.get("steps"),
        left_s=far.get("left_s") if row.status == "running" else None,
        tokens_s=far.get("tokens_s"),
        loss=float(losses[-1]) if losses else None,
        first_loss=float(losses[0]) if losses else None,
        peak_bytes=row.peak_bytes or max((int(step["peak_bytes"]) for step in steps), default=None),
        validation=_validation(steps),
        spikes=curves_of(steps).spikes,
        recipe={} if recipe is None else recipe.model_dump(mode="json"),
        costs=_costs(context, row, recipe, steps),
        measures=tuple(list_measures(metrics)),
        warnings=tuple(list_warnings(metrics)),
        resumes=row.resumes,
        gates=row.gates,
        goes_on=row.status in ("waiting", "queued", "running", "trained"),
    )


def _validation(steps: list[dict[str, Any]]) -> tuple[float, float, int] | None:
    read = [(int(step["step"]), str(step["validation_loss"])) for step in steps if step["validation_loss"] is not None]
    if not read:
        return None
    best = best_step(read)
    return float(read[-1][1]), float(dict(read)[best]), best


def _costs(
    context: Context, row: Run, recipe: ResolvedRecipe | None, steps: list[dict[str, Any]]
) -> tuple[Compared, ...]:
    """The plan of this recipe on this machine as it is now, beside what the run used."""
    peak = row.peak_bytes or max((int(step["peak_bytes"]) for step in steps), default=0) or None
    planned = {} if recipe is None else plan_of(context, recipe)
    used = {
        "steps": str(steps[-1]["step"]) if steps else None,
        "time": say_seconds(float(row.seconds)) if row.seconds else None,
        "most memory": None if peak is None else show_bytes(peak),
    }
    return tuple(Compared(name=name, planned=planned.get(name), used=told) for name, told in used.items())


def _table(value: RunPage) -> Table:
    return Table(("recipe", "value"), [[name, item] for name, item in value.recipe.items()])


PAGE = Page("/runs/{run}", "Run", PEOPLE, RunQuery, run, "operators/run.html", _table)
