"""What a resolved recipe warns of: it can be trained, and will hardly give what its author wants. Refuses nothing."""

from __future__ import annotations

from decimal import Decimal as Number

from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.recipe import ResolvedRecipe

LARGEST_EPSILON = 10


def list_warnings(recipe: ResolvedRecipe) -> list[str]:
    """A learning rate far from what its method is usually trained with, and a guarantee that says little."""
    return [*_of_rate(recipe), *_of_privacy(recipe)]


def _of_privacy(recipe: ResolvedRecipe) -> list[str]:
    privacy = recipe.privacy
    if privacy is None or Number(privacy.epsilon) <= LARGEST_EPSILON:
        return []
    return [
        f"epsilon {privacy.epsilon} protects little: above {LARGEST_EPSILON} it is hardly a bound. More noise, fewer "
        "epochs or more training rows lower it"
    ]


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
