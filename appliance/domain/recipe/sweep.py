"""Sweeps: recipes whose values are lists, each combination of which is a recipe, and warnings about resolved recipes.

Runs of a sweep are compared by their validation losses, so they all validate on the same rows after the same steps. All
values that decide the rows of a step and their order are the same in all runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal as Number
from itertools import product
from math import prod
from typing import Any

from appliance.domain.core.policy import MOST_SWEEP_RUNS
from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.recipe import MOST_READINGS, Recipe, ResolutionFacts, ResolvedRecipe, resolve_recipe
from appliance.errors import BadInput

SWEPT = ("method", "rank", "learning_rate", "epochs")
"""Keys that may have a list in a sweep."""
READINGS = 8
"""Validation losses of the shortest run of a sweep by default."""


def expand_recipe(written: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each combination of a sweep as (recipe, its values of the swept keys).

    Raises: BadInput where no key has a list, a list is empty or has equal values, there is one combination only or
        more than any policy allows, or the recipe has privacy.
    """
    lists = {key: value for key, value in written.items() if key in SWEPT and isinstance(value, list)}
    if not lists:
        raise BadInput(f"recipe: expected a list for one of {', '.join(SWEPT)} with --sweep, got none")
    for key, values in lists.items():
        if not values or any(values.count(value) > 1 for value in values):
            raise BadInput(f"recipe, {key}: expected a list of different values, got {values!r:.80}")
    if written.get("privacy") is not None:
        raise BadInput("recipe, privacy: expected none with --sweep, which chooses by losses that have no noise")
    count = prod(len(values) for values in lists.values())
    if count > MOST_SWEEP_RUNS:
        raise BadInput(f"recipe: expected at most {MOST_SWEEP_RUNS} combinations, got {count}; leave values out")
    chosen = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    if len(chosen) < 2:
        raise BadInput("recipe: expected at least two combinations with --sweep, got one")
    return [({**written, **values}, values) for values in chosen]


def make_sweep_name(adapter: str, token: str) -> str:
    """Return the name of a sweep: the adapter's name and a token, which makes it unique."""
    return f"{adapter[:50].rstrip('-')}-{token}"


def align_readings(recipes: Sequence[Recipe], facts: ResolutionFacts) -> list[Recipe]:
    """Return the recipes with the same steps between validation losses: about READINGS in the shortest run.

    If all recipes set eval_steps, they are returned as they are.
    """
    if all(recipe.eval_steps != "auto" for recipe in recipes):
        return list(recipes)
    resolved = [resolve_recipe(recipe, facts) for recipe in recipes]
    steps = [one.count_steps(facts.train_rows) for one in resolved]
    every = max(1, min(steps) // READINGS, -(-max(steps) // MOST_READINGS))
    return [recipe.model_copy(update={"eval_steps": every}) for recipe in recipes]


LARGEST_EPSILON = 10
"""Epsilon above which there is a warning."""
LARGEST_DELTA = Number("0.001")
"""Delta above which there is a warning."""
SMALLEST_CLIP = Number("0.000001")
"""Clipping norm below which there is a warning.

Below it, a noised mean of 64 rows is near the 1e-8 that Adam adds to its divisor.
"""


def list_warnings(recipe: ResolvedRecipe) -> list[str]:
    """Return the warnings about a resolved recipe, which refuse nothing."""
    return [*_warn_of_rate(recipe), *_warn_of_privacy(recipe)]


def _warn_of_privacy(recipe: ResolvedRecipe) -> list[str]:
    privacy, warnings = recipe.privacy, []
    if privacy is None:
        return []
    if Number(privacy.epsilon) > LARGEST_EPSILON:
        warnings.append(
            f"epsilon {privacy.epsilon} protects little: above {LARGEST_EPSILON} it is hardly a bound. More noise, "
            "fewer epochs or more training rows lower it"
        )
    if Number(privacy.delta) > LARGEST_DELTA:
        warnings.append(
            f"delta {privacy.delta} protects little: with this chance all of a row may be disclosed. The value of "
            "auto is at most a tenth of 1 / rows"
        )
    if Number(privacy.clip) < SMALLEST_CLIP:
        warnings.append(
            f"clip {privacy.clip} is so small that the optimiser hardly moves: the adapter may be the base with a "
            "guarantee, and have learnt nothing"
        )
    return warnings


def _warn_of_rate(recipe: ResolvedRecipe) -> list[str]:
    method = METHODS[recipe.method]
    low, high = method.usual_rates
    rate = Number(recipe.learning_rate)
    if Number(low) <= rate <= Number(high):
        return []
    where, why = (
        ("above", "the run may ruin what the base can") if rate > Number(high) else ("below", "it may learn nothing")
    )
    return [
        f"learning rate {recipe.learning_rate} is far {where} what {recipe.method} is usually trained with, "
        f"{low} to {high} (auto: {method.learning_rate}): {why}"
    ]
