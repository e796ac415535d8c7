"""The page of one run: progress, recipe, the resources it used beside the plan, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.evaluation.quality import list_measures, list_warnings, summarize_training
from appliance.domain.planning.plan import format_seconds
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.runs import control
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.domain.runs.replays import ReplayRun
from appliance.domain.runs.steps import best_step
from appliance.domain.runs.training import RunFailed, Train
from appliance.formats.core.text import show_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.core.page import CsvTable, FormLink, Page, PageValue, Query, Viewer
from appliance.web.console.core.render import sign_link
from appliance.web.console.operators import records
from appliance.web.console.operators.live import progress_of
from appliance.web.console.operators.runs import plan_of
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.queries.work import run_progress


class RunQuery(Query):
    """The id of a run."""

    run: str = Field(pattern=records.RUN)


class PlanComparison(PageValue):
    """A number of the plan beside what was used. None means that it is not known."""

    name: str
    planned: str | None
    used: str | None


class RunEndDetails(PageValue):
    """The entry by which a run was cancelled, was refused or failed.

    `by` is the person, or the service for a failure. `text` is the person's reason or the failure's message, and None
    if there is none or it was erased. `code` is that of a failure.
    """

    entry: int
    time: str
    by: str
    code: str | None
    text: str | None


class RunPage(PageValue):
    """The page of a run."""

    run: Run
    detail: str | None
    end: RunEndDetails | None
    actions: tuple[FormLink, ...]
    adapter: str | None
    step: int | None
    steps: int | None
    left_s: float | None
    tokens_s: float | None
    loss: float | None
    first_loss: float | None
    peak_bytes: int | None
    validation: tuple[float, float, int] | None
    """The last validation loss, the lowest one, and the step of the lowest."""
    spikes: tuple[records.Spike, ...]
    recipe: dict[str, Any]
    costs: tuple[PlanComparison, ...]
    measures: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    gates_name: str | None
    passed: bool | None
    """True if the adapter passed its gates, None before its evaluation or without gates."""
    began: bool
    """True if there is a step to show."""
    is_under_way: bool


def run(context: RunContext, viewer: Viewer, query: RunQuery) -> RunPage:
    """Return the page of a run.

    Raises: NotFound for an unknown run.
    """
    row = records.find_run(context, query.run)
    order, adapter = records.read_order(context, row), records.find_adapter_of_run(context, row.id)
    steps, losses = records.read_steps(context, row.id)
    frames = [{**step, "frame": "step"} for step in steps]
    progress, run_state = progress_of(frames), run_progress(context, row.id, 0)
    metrics = records.read_metrics(context, adapter)
    if "training" not in metrics:
        metrics = {**metrics, "training": summarize_training(losses)}
    costs = _costs(context, row, order.recipe, steps)
    evaluation = None if adapter is None else context.ledger.state.evaluations.get(adapter)
    return RunPage(
        run=row,
        detail=run_state.detail,
        end=_find_end(context, row),
        actions=tuple(_list_actions(context.ledger.state, viewer, row, order)),
        adapter=adapter,
        step=progress.get("step"),
        steps=progress.get("steps") or _planned_steps(row, costs),
        left_s=progress.get("left_s") if row.status == "running" else None,
        tokens_s=progress.get("tokens_s"),
        loss=float(losses[-1]) if losses else None,
        first_loss=float(losses[0]) if losses else None,
        peak_bytes=row.peak_bytes or max((int(step["peak_bytes"]) for step in steps), default=None),
        validation=_validation(steps),
        spikes=records.make_curves(steps).spikes,
        recipe=order.recipe.model_dump(mode="json"),
        costs=costs,
        measures=tuple(list_measures(metrics)),
        warnings=tuple(list_warnings(metrics)),
        gates_name=None if row.gates is None else parse_gates(context.ledger.document(row.gates)).name,
        passed=None if evaluation is None else evaluation.passed,
        began=bool(steps),
        is_under_way=row.status in UNDER_WAY,
    )


_ENDS = {"cancelled": control.RunCancelled.type, "refused": control.RunRefused.type, "failed": RunFailed.type}
"""Type of the entry that ended a run, by the run's status."""


def _find_end(context: LedgerContext, row: Run) -> RunEndDetails | None:
    """Return the entry by which the run was cancelled, was refused or failed, or None for another status."""
    if row.status not in _ENDS:
        return None
    entries = context.ledger.find(subjects=[f"run:{row.id}"], types=(_ENDS[row.status],), newest=True, limit=1)
    if not entries:
        return None
    entry = parse_entry(entries[0][1])
    commitment = entry.body.get("message")
    if "order" in entry.documents:
        order = ORDERS.parse(parse_envelope(context.ledger.document(entry.documents["order"])).payload)
        commitment = order.reason
    texts = context.ledger.disclosures([commitment] if commitment else [])
    text = texts[commitment].text if commitment in texts else None
    return RunEndDetails(entry=entry.index, time=entry.time, by=entry.actor, code=entry.body.get("code"), text=text)


def _list_actions(state: State, viewer: Viewer, row: Run, order: Train) -> Iterator[FormLink]:
    """Yield what the viewer can do with the run, by the rules that decide on the order."""
    person = state.principals.get(viewer.name)
    if person is None:
        return
    if row.status == "waiting" and control.can_authorise(state, row, person):
        yield sign_link(control.AuthoriseRun, "Authorise", run=row.id, order=row.order)
        yield sign_link(control.RefuseRun, "Refuse", run=row.id, order=row.order)
    if not control.list_resume_reasons(state, row, person):
        yield sign_link(control.Resume, "Resume", run=row.id)
    if not control.list_cancel_reasons(row, person):
        yield sign_link(control.Cancel, "Cancel", run=row.id)
    if viewer.has("auditor") and row.step:
        yield sign_link(ReplayRun, "Train it again to compare", run=row.id, from_step=0, to_step=row.step)
    if viewer.has("operator"):
        yield FormLink(title="Start again with these values", path=_start_again(order))


def _start_again(order: Train) -> str:
    """Return the address of the form *Start training* with the values of an order."""
    others = {
        "gates": order.gates,
        "tier": order.tier,
        "on": order.on,
        "nodes": str(order.nodes) if order.nodes > 1 else None,
    }
    given = {name: value for name, value in others.items() if value}
    return records.train_form(records.form_values(order.recipe) | given)


def _planned_steps(row: Run, costs: tuple[PlanComparison, ...]) -> int | None:
    """Return the number of steps by the plan, or by the run's record if base or dataset have no facts for a plan."""
    planned = next((one.planned for one in costs if one.name == "steps"), None)
    return row.planned_steps if planned is None else int(planned)


def _validation(steps: list[dict[str, Any]]) -> tuple[float, float, int] | None:
    read = [(int(step["step"]), str(step["validation_loss"])) for step in steps if step["validation_loss"] is not None]
    if not read:
        return None
    best = best_step(read)
    return float(read[-1][1]), float(dict(read)[best]), best


def _costs(
    context: RunContext, row: Run, recipe: ResolvedRecipe, steps: list[dict[str, Any]]
) -> tuple[PlanComparison, ...]:
    """Return the current plan of this recipe on this machine beside what the run used."""
    peak = row.peak_bytes or max((int(step["peak_bytes"]) for step in steps), default=0) or None
    planned = plan_of(context, recipe)
    used = {
        "steps": str(steps[-1]["step"]) if steps else None,
        "time": format_seconds(float(row.seconds)) if row.seconds else None,
        "most memory": None if peak is None else show_bytes(peak),
    }
    return tuple(PlanComparison(name=name, planned=planned.get(name), used=amount) for name, amount in used.items())


def _table(value: RunPage) -> CsvTable:
    return CsvTable(("recipe", "value"), [[name, item] for name, item in value.recipe.items()])


PAGE = Page("/runs/{run}", "Run", run, _table)
