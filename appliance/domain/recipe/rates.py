"""What a resolved recipe warns of: it can be trained, and will hardly give what its author wants. Refuses nothing."""

from __future__ import annotations

from decimal import Decimal as Number

from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.recipe import ResolvedRecipe

LARGEST_EPSILON = 10
LARGEST_DELTA = Number("0.001")
SMALLEST_CLIP = Number("0.000001")
"""Below it a noised mean of 64 rows is near the 1e-8 that Adam adds to its divisor."""


def list_warnings(recipe: ResolvedRecipe) -> list[str]:
    """A learning rate far from what its method is usually trained with, and a guarantee that says little."""
    return [*_of_rate(recipe), *_of_privacy(recipe)]


def _of_privacy(recipe: ResolvedRecipe) -> list[str]:
    privacy, found = recipe.privacy, []
    if privacy is None:
        return []
    if Number(privacy.epsilon) > LARGEST_EPSILON:
        found.append(
            f"epsilon {privacy.epsilon} protects little: above {LARGEST_EPSILON} it is hardly a bound. More noise, "
            "fewer epochs or more training rows lower it"
        )
    if Number(privacy.delta) > LARGEST_DELTA:
        found.append(
            f"delta {privacy.delta} protects little: with this chance all of a row may be told. The value of auto is "
            "at most a tenth of 1 / rows"
        )
    if Number(privacy.clip) < SMALLEST_CLIP:
        found.append(
            f"clip {privacy.clip} is so small that the optimiser hardly moves: the adapter may be the base with a "
            "guarantee, and have learnt nothing"
        )
    return found


def _of_rate(recipe: ResolvedRecipe) -> list[str]:
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
