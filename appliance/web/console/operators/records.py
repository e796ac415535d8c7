"""What a run was ordered with and what its steps say: read once, for its page and for a comparison."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from appliance.domain.core.records.runs import Run
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.rulebook.registry import ORDERS
from appliance.domain.runs.training import Train
from appliance.errors import ApplianceError, NotFound
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.core.page import Value
from appliance.web.console.operators.live import MOST_POINTS, Point, point_of, thin
from appliance.workflows.core.context import Context
from appliance.workflows.queries.work import run_steps
from appliance.workflows.releases.review import adapter_file

_ENDS = 20
"""Steps at both ends, by which pace and progress are judged."""
_LOSS = re.compile(rb'"loss":"([0-9.]+)"')

RUN = r"^r-[0-9]{6,}$"


class Spike(Value):
    step: int
    loss: float
    rows: tuple[int, ...]


class Curves(Value):
    """Every recorded step, thinned to what a screen can show. `points`: as `live.Point`."""

    points: tuple[Point, ...]
    spikes: tuple[Spike, ...]


def find_run(context: Context, name: str) -> Run:
    run = context.ledger.state.runs.get(name)
    if run is None:
        raise NotFound(f"run: expected a known one, got {name!r:.40}")
    return run


def read_recipe(context: Context, run: Run) -> ResolvedRecipe | None:
    """The one that its order signed."""
    order = ORDERS.parse(parse_envelope(context.ledger.documents_of(run.index)["order"]).payload)
    return order.recipe if isinstance(order, Train) else None


def adapter_of(context: Context, run: str) -> str | None:
    return next((key for key, one in context.ledger.state.adapters.items() if one.run == run), None)


class Steps(NamedTuple):
    """Of a run's steps so far those that a page shows: the first and the last ones, those that validated or spiked, and
    of the rest as many as a curve has points. `losses`: of all of them."""

    shown: list[dict[str, Any]]
    losses: list[str]


def read_steps(context: Context, run: str) -> Steps:
    """Nothing where their file is gone. A run can have a million: most lines are not parsed."""
    try:
        data = run_steps(context, run)
    except ApplianceError:
        return Steps([], [])
    lines = data.splitlines()
    every = -(-len(lines) // MOST_POINTS) or 1
    shown = [
        json.loads(line)
        for place, line in enumerate(lines)
        if place % every == 0
        or min(place, len(lines) - 1 - place) < _ENDS
        or b'"validation_loss":null' not in line
        or b'"spike":null' not in line
    ]
    return Steps(shown, [loss.decode() for loss in _LOSS.findall(data)])


def curves_of(steps: list[dict[str, Any]]) -> Curves:
    return Curves(
        points=tuple(thin([point_of(step) for step in steps])),
        spikes=tuple(
            Spike(step=int(step["step"]), loss=float(step["loss"] or 0), rows=tuple(step["spike"]))
            for step in steps
            if step.get("spike") is not None
        ),
    )


def read_metrics(context: Context, adapter: str | None) -> dict[str, Any]:
    """What was measured of the sealed adapter; nothing while there is none, or where its file is gone."""
    if adapter is None:
        return {}
    try:
        found = json.loads(adapter_file(context, adapter, "metrics.json"))
    except (ApplianceError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
