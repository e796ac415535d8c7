"""The plan of a recipe on this machine: beside what a run used, and before its order is signed."""

from __future__ import annotations

from appliance.domain.planning.footprint import plan_memory
from appliance.domain.planning.pace import count_planned_steps, pace_of_machine, plan_duration
from appliance.domain.planning.plan import read_subject, say_seconds, show_bytes
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.errors import ApplianceError
from appliance.workflows.core.context import Context
from appliance.workflows.runs import planning


def plan_of(context: Context, recipe: ResolvedRecipe) -> dict[str, str]:
    """What a run will take on this machine; nothing where base or dataset are older than planning, or gone."""
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
    duration = plan_duration(subject.shape, subject.lengths, recipe, (subject.rows, subject.held_out), pace)
    low, high = say_seconds(duration.low), say_seconds(duration.high)
    return {
        "steps": str(count_planned_steps(recipe, subject.rows)),
        "time": f"about {say_seconds(duration.likely)}, between {low} and {high}",
        "most memory": show_bytes(memory),
    }


def against_plan(context: Context, recipe: ResolvedRecipe) -> tuple[str, ...]:
    """Why a run of it could not fit this machine."""
    try:
        planning.check_order(context, recipe)
    except ApplianceError as error:
        return error.reasons or (error.message,)
    return ()
