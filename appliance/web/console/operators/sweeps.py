"""Sweeps: the list, the runs of one beside each other, and the plan from which the runs of a new one are signed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from appliance.domain.core.names import IDENTIFIER
from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import Recipe, ResolvedRecipe, resolve_recipe
from appliance.domain.recipe.sweep import SWEPT, align_readings, expand_recipe, make_sweep_name
from appliance.domain.runs.control import Cancel, list_cancel_reasons
from appliance.domain.runs.replays import find_behind, is_rung
from appliance.domain.runs.steps import Reading, best_step
from appliance.errors import ApplianceError, BadInput, NotFound
from appliance.web.console.core.page import PAGE_ROWS, CsvTable, ListPage, Page, PageValue, Query, Viewer, columns
from appliance.web.console.core.render import link, sign_link
from appliance.web.console.operators.records import find_adapter_of_run, form_values, read_order, read_steps, train_form
from appliance.web.console.operators.runs import MOST, plan_of
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.queries.gates import list_gates
from appliance.workflows.queries.work import recipe_facts


class SweepRow(PageValue):
    """A sweep. `statuses` counts its runs by status."""

    name: str
    dataset: str
    ordered_by: str
    runs: int
    statuses: dict[str, int]
    entry: int


def sweeps(context: LedgerContext, viewer: Viewer, query: Query) -> ListPage[SweepRow]:
    """Return the newest sweeps, by their first runs."""
    found: dict[str, list[Run]] = {}
    for run in context.ledger.state.runs.values():
        if run.sweep is not None:
            found.setdefault(run.sweep, []).append(run)
    newest = sorted(found.items(), key=lambda one: -one[1][0].index)[:PAGE_ROWS]
    return ListPage[SweepRow](rows=tuple(_row(name, runs) for name, runs in newest))


def _row(name: str, runs: Sequence[Run]) -> SweepRow:
    statuses = [run.status for run in runs]
    return SweepRow(
        name=name,
        dataset=runs[0].dataset,
        ordered_by=runs[0].ordered_by,
        runs=len(runs),
        statuses={status: statuses.count(status) for status in dict.fromkeys(statuses)},
        entry=runs[0].index,
    )


SWEEPS_PAGE = Page("/sweeps", "Sweeps", sweeps, columns(), group="Training", symbol="compare")


class SweepQuery(Query):
    """The name of a sweep."""

    sweep: str = Field(pattern=rf"^{IDENTIFIER}$")


class SweptRun(PageValue):
    """A run of a sweep.

    `values` are those of the swept keys, `best` the lowest validation loss and `step` its step. `behind` is the run's
    loss and the worst loss of the better half, if the run falls behind. `cancel` is set if the viewer can cancel it.
    """

    id: str
    status: str
    values: tuple[str, ...]
    best: str | None
    step: int | None
    behind: tuple[str, str] | None
    adapter: str | None
    cancel: str | None


class SweepPage(PageValue):
    """The page of a sweep: its runs, the best first. `compare` is the address that compares the best of them."""

    name: str
    dataset: str
    ordered_by: str
    keys: tuple[str, ...]
    runs: tuple[SweptRun, ...]
    compare: str


def sweep(context: RunContext, viewer: Viewer, query: SweepQuery) -> SweepPage:
    """Return the page of a sweep.

    Raises: NotFound for an unknown one.
    """
    state = context.ledger.state
    runs = _runs_of(state, query.sweep)
    if not runs:
        raise NotFound(f"sweep: expected the name of a recorded sweep, got {query.sweep}")
    recipes = {run.id: read_order(context, run).recipe.model_dump(mode="json") for run in runs}
    keys = tuple(key for key in SWEPT if len({str(recipe[key]) for recipe in recipes.values()}) > 1)
    readings = {run.id: _read_losses(context, run.id) for run in runs}
    rows = []
    for run in runs:
        own, others = readings[run.id], [found for name, found in readings.items() if name != run.id]
        step = best_step(own) if own else None
        rows.append(
            SweptRun(
                id=run.id,
                status=run.status,
                values=tuple(str(recipes[run.id][key]) for key in keys),
                best=None if step is None else dict(own)[step],
                step=step,
                behind=_find_last_rung(own, others),
                adapter=find_adapter_of_run(context, run.id),
                cancel=_find_cancel(state, viewer, run),
            )
        )
    rows.sort(key=lambda row: (row.best is None, float(row.best or 0), row.id))
    return SweepPage(
        name=query.sweep,
        dataset=runs[0].dataset,
        ordered_by=runs[0].ordered_by,
        keys=keys,
        runs=tuple(rows),
        compare=link("/compare", run=[row.id for row in rows[:MOST]]),
    )


def _runs_of(state: State, name: str) -> list[Run]:
    return [run for run in state.runs.values() if run.sweep == name]


def _read_losses(context: RunContext, run: str) -> list[Reading]:
    shown = read_steps(context, run).shown
    return [(int(step["step"]), str(step["validation_loss"])) for step in shown if step["validation_loss"] is not None]


def _find_last_rung(own: Sequence[Reading], others: Sequence[Sequence[Reading]]) -> tuple[str, str] | None:
    """Return the losses by which the run fell behind when the runs of its sweep were last compared, or None."""
    count = next((count for count in range(len(own), 0, -1) if is_rung(count)), 0)
    return find_behind(own[:count], others) if count else None


def _find_cancel(state: State, viewer: Viewer, run: Run) -> str | None:
    person = state.principals.get(viewer.name)
    if person is None or list_cancel_reasons(run, person):
        return None
    return sign_link(Cancel, run=run.id).path


def _sweep_table(value: SweepPage) -> CsvTable:
    rows = [[one.id, *one.values, one.best, one.step, one.status, one.adapter] for one in value.runs]
    return CsvTable(("run", *value.keys, "best_validation_loss", "step", "status", "adapter"), rows)


SWEEP_PAGE = Page("/sweeps/{sweep}", "Sweep", sweep, _sweep_table)


class PlanQuery(Query):
    """The values of a new sweep. Of the keys in `SWEPT` there can be several values, separated by commas."""

    sweep: str | None = Field(default=None, pattern=rf"^{IDENTIFIER}$")
    name: str = Field(default="", max_length=80)
    base: str = Field(default="", max_length=80)
    dataset: str = Field(default="", max_length=120)
    method: str = Field(default="", max_length=300)
    rank: str = Field(default="", max_length=300)
    learning_rate: str = Field(default="", max_length=300)
    epochs: str = Field(default="", max_length=300)
    gates: str = Field(default="", max_length=80)


class PlannedRun(PageValue):
    """A combination of a new sweep: its values, its plan on this machine, and the form that orders it.

    `run` and `status` are those of the run, once it was ordered.
    """

    values: tuple[str, ...]
    plan: dict[str, str]
    path: str
    run: str | None
    status: str | None


class SweepPlan(PageValue):
    """The plan of a new sweep. `problem` says why there is none."""

    sweep: str
    bases: tuple[str, ...]
    datasets: tuple[str, ...]
    gates: tuple[tuple[str, str], ...]
    """Digest and title of each known gates file."""
    most: int
    """Maximum number of runs of a sweep by policy."""
    keys: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    problem: str | None


def plan(context: RunContext, viewer: Viewer, query: PlanQuery) -> SweepPlan:
    """Return the plan of a new sweep. Its name is in the address, so that the address shows which runs were ordered."""
    state = context.ledger.state
    runs: tuple[PlannedRun, ...] = ()
    known = list_gates(context)
    keys = tuple(key for key in SWEPT if len(_values(query, key)) > 1)
    name, problem = query.sweep or make_sweep_name(query.name or "sweep", secrets.token_hex(4)), None
    if query.name or query.base or query.dataset:
        try:
            back = link(PLAN_PAGE.path, **query.model_dump() | {"sweep": name})
            runs = _plan_runs(context, query, keys, name, back)
        except ApplianceError as error:
            problem = error.message
    return SweepPlan(
        sweep=name,
        bases=tuple(key for key, one in state.bases.items() if one.revoked is None and one.quarantined is None),
        datasets=tuple(key for key, one in state.datasets.items() if one.revoked is None)[-PAGE_ROWS:],
        gates=tuple((one.digest, one.title) for one in known),
        most=state.parameters.most_sweep_runs,
        keys=keys,
        runs=runs,
        problem=problem,
    )


def _values(query: PlanQuery, key: str) -> list[Any]:
    words = str(getattr(query, key)).replace(",", " ").split()
    return [int(word) if word.isascii() and word.isdecimal() and len(word) < 12 else word for word in words]


def _plan_runs(
    context: RunContext, query: PlanQuery, keys: Sequence[str], name: str, back: str
) -> tuple[PlannedRun, ...]:
    """Return the combinations of the given values. The form of each leads back to the plan's address.

    Raises: BadInput if the values make no sweep; NotFound for an unknown base or dataset.
    """
    if not keys:
        raise BadInput(
            "Give two or more values of one of these, separated by commas: method, rank, learning rate, epochs"
        )
    written: dict[str, Any] = {"name": query.name, "base": query.base, "dataset": query.dataset}
    for key in SWEPT:
        found = _values(query, key)
        written |= {key: found if len(found) > 1 else found[0]} if found else {}
    pairs = expand_recipe(written)
    most = context.ledger.state.parameters.most_sweep_runs
    if len(pairs) > most:
        raise BadInput(f"These are {len(pairs)} runs. Policy (most_sweep_runs) allows {most}. Leave values out")
    recipes = [parse_recipe(one) for one, _ in pairs]
    others = {"sweep": name, **({"gates": query.gates} if query.gates else {})}
    facts = recipe_facts(context, query.base, query.dataset).facts
    ordered = {_swept_values(read_order(context, run).recipe): run for run in _runs_of(context.ledger.state, name)}
    return tuple(
        _planned(context, recipe, resolve_recipe(recipe, facts), keys, others, ordered, back)
        for recipe in align_readings(recipes, facts)
    )


def _swept_values(recipe: ResolvedRecipe) -> tuple[str, ...]:
    return tuple(str(getattr(recipe, key)) for key in SWEPT)


def _planned(
    context: RunContext,
    recipe: Recipe,
    resolved: ResolvedRecipe,
    keys: Sequence[str],
    others: Mapping[str, str],
    ordered: Mapping[tuple[str, ...], Run],
    back: str,
) -> PlannedRun:
    run = ordered.get(_swept_values(resolved))
    return PlannedRun(
        values=tuple(str(getattr(resolved, key)) for key in keys),
        plan=plan_of(context, resolved),
        path=train_form({**form_values(recipe), **others}, back),
        run=None if run is None else run.id,
        status=None if run is None else run.status,
    )


PLAN_PAGE = Page("/start-sweep", "Start a sweep", plan, seen_by=("operator",))
