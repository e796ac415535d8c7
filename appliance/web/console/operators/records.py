"""What a run was ordered with and what its steps say: read once, for its page and for a comparison."""

from __future__ import annotations

import json
from typing import Any

from appliance.domain.core.records import Run
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.rulebook.registry import ORDERS
from appliance.domain.runs.training import Train
from appliance.errors import ApplianceError, NotFound
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.core.page import Value
from appliance.web.console.operators.live import Point, point_of, thin
from appliance.workflows.core.context import Context
from appliance.workflows.queries.work import run_steps
from appliance.workflows.releases.review import adapter_file

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


def read_steps(context: Context, run: str) -> list[dict[str, Any]]:
    """The lines that were recorded so far; none where its file is gone."""
    try:
        return [json.loads(line) for line in run_steps(context, run).splitlines()]
    except ApplianceError:
        return []


def curves_of(steps: list[dict[str, Any]]) -> Curves:
    return Curves(
        points=tuple(thin([point_of(step) for step in steps])),
        spikes=tuple(
            Spike(step=int(step["step"]), loss=float(step["loss"]), rows=tuple(step["spike"]))
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
