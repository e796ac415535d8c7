"""The recipe, steps and metrics of a run, for its page and for comparisons."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.records.runs import Run
from appliance.domain.recipe.privacy import ResolvedPrivacy
from appliance.domain.recipe.recipe import Recipe, ResolvedRecipe
from appliance.domain.runs.training import Train
from appliance.errors import ApplianceError, NotFound
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.core.page import PageValue
from appliance.web.console.core.render import link
from appliance.web.console.operators.live import MOST_POINTS, Point, point_of, thin_points
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.queries.work import run_steps
from appliance.workflows.releases.review import adapter_file

_ENDS = 20
"""Number of steps at each end that are always read, for pace and progress."""
_LOSS = re.compile(rb'"loss":"([0-9.]+)"')

RUN = r"^r-[0-9]{6,}$"
"""Pattern of a run's id."""


class Spike(PageValue):
    """A step at which the loss spiked, and the rows of its batch."""

    step: int
    loss: float
    rows: tuple[int, ...]


class TrainingCurves(PageValue):
    """A run's steps, reduced to what a screen can show. `points` are as in `live.Point`."""

    points: tuple[Point, ...]
    spikes: tuple[Spike, ...]


def find_run(context: LedgerContext, name: str) -> Run:
    """Return the run.

    Raises: NotFound for an unknown one.
    """
    run = context.ledger.state.runs.get(name)
    if run is None:
        raise NotFound(f"run: expected the id of a recorded run, got {name!r:.40}")
    return run


def read_order(context: LedgerContext, run: Run) -> Train:
    """Return the order that requested the run."""
    order = ORDERS.parse(parse_envelope(context.ledger.documents_of(run.index)["order"]).payload)
    assert isinstance(order, Train), order.action
    return order


def form_values(recipe: Recipe | ResolvedRecipe) -> dict[str, str]:
    """Return the fields of the form *Start training* that ask for this recipe. Fields with their default are left out.

    A resolved value that the method does not use is left out, too, because its default is the same.
    """
    found = {}
    for name, field in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, ResolvedPrivacy):
            value = {key: getattr(value, key) for key in ("noise", "clip", "delta")}
        elif isinstance(value, BaseModel):
            value = {key: one for key, one in value.model_dump().items() if one not in (None, "auto")}
        if not value or value == field.default:
            continue
        if isinstance(value, dict):
            value = "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
        found[f"recipe.{name}"] = ", ".join(value) if isinstance(value, tuple) else str(value)
    return found


def train_form(values: Mapping[str, str], back: str = "") -> str:
    """Return the address of the form *Start training* with these values, and the page that follows the signature."""
    return link("/sign/train", given=[f"{name}:{value}" for name, value in values.items()], back=back)


def find_adapter_of_run(context: LedgerContext, run: str) -> str | None:
    """Return the adapter that the run produced, or None."""
    return next((key for key, one in context.ledger.state.adapters.items() if one.run == run), None)


class Steps(NamedTuple):
    """The steps of a run.

    `shown` has the first and last ones, those with a validation loss or a spike, and as many others as a curve has
    points. `losses` has the loss of every step.
    """

    shown: list[dict[str, Any]]
    losses: list[str]


def read_steps(context: RunContext, run: str) -> Steps:
    """Return a run's steps, or none if their file is missing.

    A run can have a million, so most lines are not parsed.
    """
    try:
        data = run_steps(context, run)
    except ApplianceError:
        return Steps([], [])
    lines = data.splitlines()
    every = -(-len(lines) // MOST_POINTS) or 1
    shown = [
        json.loads(line)
        for index, line in enumerate(lines)
        if index % every == 0
        or min(index, len(lines) - 1 - index) < _ENDS
        or b'"validation_loss":null' not in line
        or b'"spike":null' not in line
    ]
    return Steps(shown, [loss.decode() for loss in _LOSS.findall(data)])


def make_curves(steps: list[dict[str, Any]]) -> TrainingCurves:
    """Return the curves of these steps."""
    return TrainingCurves(
        points=tuple(thin_points([point_of(step) for step in steps])),
        spikes=tuple(
            Spike(step=int(step["step"]), loss=float(step["loss"] or 0), rows=tuple(step["spike"]))
            for step in steps
            if step.get("spike") is not None
        ),
    )


def read_metrics(context: LedgerContext, adapter: str | None) -> dict[str, Any]:
    """Return the metrics of the sealed adapter, or nothing if there is none or its file is missing."""
    if adapter is None:
        return {}
    try:
        metrics = json.loads(adapter_file(context, adapter, "metrics.json"))
    except (ApplianceError, ValueError):
        return {}
    return metrics if isinstance(metrics, dict) else {}
