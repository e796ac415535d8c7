"""Recipes for preferences: allowed values and defaults."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import ResolutionFacts, ResolvedRecipe, resolve_recipe
from appliance.errors import BadInput

FACTS = ResolutionFacts(
    train_rows=343, max_tokens=78, context_length=8192, device="cpu", bfloat16=True, preferences=True
)
PLAIN = FACTS.model_copy(update={"preferences": False})


def resolved(facts: ResolutionFacts = FACTS, **written: Any) -> ResolvedRecipe:
    return resolve_recipe(parse_recipe({"name": "a", "base": "b", "dataset": "pairs@1"} | written), facts)


def test_beta_is_trl_s_and_the_rate_is_a_twentieth_of_the_method_s() -> None:
    assert (resolved().beta, resolved().learning_rate) == ("0.1", "0.00005")
    assert resolved(method="lora-plus").learning_rate == "0.00001"
    assert (resolved(beta=0.5).beta, resolved(learning_rate=0.001).learning_rate) == ("0.5", "0.001")
    assert (resolved(PLAIN).beta, resolved(PLAIN).learning_rate) == ("0.0", METHODS["qlora"].learning_rate)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_every_method_with_a_base_under_it_trains_on_preferences(method: str) -> None:
    assert resolved(method=method, purpose="baseline").beta == "0.1"


@pytest.mark.parametrize(
    ("facts", "written", "message"),
    [
        (FACTS, {"method": "full", "purpose": "baseline"}, "method: expected one of qlora, .*, ia3, since the dataset"),
        (FACTS, {"beta": 0}, "beta: expected a number above 0, since pairs@1 has preferences, got 0.0"),
        (FACTS, {"beta": -1}, "beta: expected a fraction of at least 0, got -1"),
        (PLAIN, {"beta": 0.1}, "beta: expected 0.0 or auto, since pairs@1 has no preferences, got 0.1"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused(facts: ResolutionFacts, written: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolved(facts, **written)
