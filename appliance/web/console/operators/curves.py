"""Runs beside each other: only what differs, and their curves over each other."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.records.runs import Run
from appliance.errors import BadInput
from appliance.web.console.core.page import PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.core.render import words
from appliance.web.console.operators.live import Point
from appliance.web.console.operators.records import (
    adapter_of,
    curves_of,
    find_run,
    read_metrics,
    read_recipe,
    read_steps,
)
from appliance.workflows.core.context import Context

MOST = 6
"""Curves over each other: more colours are not told apart."""


class CompareQuery(Query):
    run: tuple[str, ...] = Field(default=(), max_length=MOST)


class Difference(Value):
    name: str
    values: tuple[str, ...]
    """By run, in their order."""


class Curve(Value):
    run: str
    label: str
    points: tuple[Point, ...]


class Comparison(Value):
    runs: tuple[str, ...]
    same: int
    """Values of the recipes that are the same in all of them, which are not shown."""
    recipes: tuple[Difference, ...]
    results: tuple[Difference, ...]
    curves: tuple[Curve, ...]
    others: tuple[tuple[str, str], ...]
    """Runs that can be added: id and name."""


def compare(context: Context, viewer: Viewer, query: CompareQuery) -> Comparison:
    names = tuple(dict.fromkeys(query.run))
    if len(names) != len(query.run):
        raise BadInput("comparison: expected each run once, got one twice")
    rows = [find_run(context, name) for name in names]
    recipes = [_recipe(context, row) for row in rows]
    steps = [read_steps(context, row.id).shown for row in rows]
    metrics = [read_metrics(context, adapter_of(context, row.id)) for row in rows]
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
    return Comparison(
        runs=names,
        same=same,
        recipes=different,
        results=_differences(results)[0],
        curves=tuple(
            Curve(run=row.id, label=f"{row.id} {row.name}", points=curves_of(lines).points)
            for row, lines in zip(rows, steps, strict=True)
        ),
        others=tuple((run.id, run.name) for run in newest if run.id not in names),
    )


def _recipe(context: Context, row: Run) -> dict[str, Any]:
    recipe = read_recipe(context, row)
    return {} if recipe is None else recipe.model_dump(mode="json")


def _differences(values: list[dict[str, Any]]) -> tuple[tuple[Difference, ...], int]:
    """What is not the same in all of them; and how many are."""
    names = list(dict.fromkeys(name for value in values for name in value))
    rows = [(name, tuple(words(value.get(name)) for value in values)) for name in names]
    different = tuple(Difference(name=name.replace("_", " "), values=told) for name, told in rows if len(set(told)) > 1)
    return different, len(rows) - len(different)


def _table(value: Comparison) -> Table:
    rows = [[one.name, *one.values] for one in (*value.recipes, *value.results)]
    return Table(("difference", *value.runs), rows)


PAGE = Page(
    *("/compare", "Compare runs", PEOPLE, CompareQuery, compare, "operators/compare.html", _table),
    group="Training",
    symbol="compare",
)
