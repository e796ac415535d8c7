"""A recipe whose values are lists: every combination of them is a recipe of its own. Pure.

Runs of a sweep are compared by their validation losses, so all validate on the same rows after the same steps: what
decides the rows of a step, and their order, is the same in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from appliance.domain.recipe.recipe import MOST_READINGS, Facts, Recipe, count_steps, resolve_recipe
from appliance.errors import BadInput

SWEPT = ("method", "rank", "learning_rate", "epochs")
READINGS = 8
"""So often the shortest run of a sweep reads its validation loss, where its author leaves it open."""


def expand_recipe(written: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each combination, and the values that it has of what is swept; BadInput where nothing is."""
    lists = {key: value for key, value in written.items() if key in SWEPT and isinstance(value, list)}
    if not lists:
        raise BadInput(f"recipe: expected a list for one of {', '.join(SWEPT)} with --sweep, got none")
    for key, values in lists.items():
        if not values or any(values.count(value) > 1 for value in values):
            raise BadInput(f"recipe, {key}: expected a list of different values, got {values!r:.80}")
    if written.get("privacy") is not None:
        raise BadInput("recipe, privacy: expected none with --sweep, which chooses by losses that have no noise")
    chosen = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
    if len(chosen) < 2:
        raise BadInput("recipe: expected at least two combinations with --sweep, got one")
    return [({**written, **values}, values) for values in chosen]


def align_readings(recipes: Sequence[Recipe], facts: Facts) -> list[Recipe]:
    """All read their validation loss after the same steps: about `READINGS` times in the shortest run."""
    if all(recipe.validate_every != "auto" for recipe in recipes):
        return list(recipes)
    resolved = [resolve_recipe(recipe, facts) for recipe in recipes]
    steps = [count_steps(facts.train_rows, one.epochs, one.batch_size * one.accumulation) for one in resolved]
    every = max(1, min(steps) // READINGS, -(-max(steps) // MOST_READINGS))
    return [recipe.model_copy(update={"validate_every": every}) for recipe in recipes]
