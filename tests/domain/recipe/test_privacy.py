"""Recipes with differential privacy: allowed values and defaults."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.core.names import encode_value, parse_value
from appliance.domain.recipe.methods import PRIVATE
from appliance.domain.recipe.parsing import parse_recipe, write_template
from appliance.domain.recipe.privacy import ResolvedPrivacy, choose_delta, find_epsilon
from appliance.domain.recipe.recipe import ResolutionFacts, ResolvedRecipe, list_recipe_problems, resolve_recipe
from appliance.domain.recipe.sweep import list_warnings
from appliance.errors import BadInput

FACTS = ResolutionFacts(train_rows=343, max_tokens=78, context_length=8192, device="cpu", bfloat16=True)


def resolved(facts: ResolutionFacts = FACTS, **written: Any) -> ResolvedRecipe:
    return resolve_recipe(parse_recipe({"name": "a", "base": "b", "dataset": "rows@1"} | written), facts)


def problems(recipe: ResolvedRecipe, rows: object = 343) -> list[str]:
    return list_recipe_problems(recipe, 8192, 78, rows, "none")


def test_noise_is_found_for_an_epsilon_and_epsilon_for_a_noise() -> None:
    by_epsilon = resolved(privacy={"epsilon": 3})
    assert by_epsilon.privacy is not None and float(by_epsilon.privacy.epsilon) <= 3.0
    assert (by_epsilon.privacy.clip, by_epsilon.privacy.delta, by_epsilon.max_grad_norm) == ("1.0", "0.0001", "0.0")
    noise = by_epsilon.privacy.noise
    by_noise = resolved(privacy={"noise": noise, "clip": 0.5, "delta": "0.0001"})
    assert by_noise.privacy == by_epsilon.privacy.model_copy(update={"clip": "0.5"})
    assert by_noise.privacy == ResolvedPrivacy(
        noise=noise, clip="0.5", delta="0.0001", epsilon=find_epsilon(343, 8, 86, noise, "0.0001")
    )
    assert resolved().privacy is None and resolved().max_grad_norm == "1.0"


@pytest.mark.parametrize(("rows", "delta"), [(8, "0.01"), (99, "0.001"), (100, "0.0001"), (60_000, "0.000001")])
def test_delta_is_a_power_of_ten_below_a_tenth_of_one_row(rows: int, delta: str) -> None:
    assert choose_delta(rows) == delta and float(delta) <= 0.1 / rows * 1.25


@pytest.mark.parametrize("method", PRIVATE)
def test_methods_that_train_nothing_but_lora_s_factors_can_be_private(method: str) -> None:
    assert resolved(method=method, privacy={"noise": 1}).privacy is not None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"privacy": {"noise": 1, "epsilon": 3}}, "privacy: expected noise or epsilon, got both"),
        ({"privacy": {}}, "privacy: expected noise or epsilon, got neither"),
        ({"privacy": {"clip": 1}}, "privacy: expected noise or epsilon, got neither"),
        ({"privacy": 3}, "privacy: expected an object, got 3"),
        ({"privacy": {"noise": 1, "sigma": 2}}, "privacy.sigma: expected noise, epsilon, clip, delta"),
        ({"privacy": {"noise": "much"}}, "privacy, noise: expected a decimal fraction"),
        ({"privacy": {"noise": -1}}, "privacy, noise: expected a fraction of at least 0, got -1"),
        ({"privacy": {"noise": 0}}, "privacy, noise: expected 0.2 to 1000, got 0.0"),
        ({"privacy": {"noise": 2000}}, "privacy, noise: expected 0.2 to 1000, got 2000.0"),
        ({"privacy": {"noise": 1, "clip": 0}}, "privacy, clip: expected a number above 0, got 0.0"),
        ({"privacy": {"noise": 1, "delta": 0}}, "privacy, delta: expected more than 0 and less than 1 / 343, .* got 0"),
        ({"privacy": {"noise": 1, "delta": 0.003}}, "privacy, delta: expected more than 0 and less than 1 / 343"),
        ({"privacy": {"epsilon": 0.00001}}, "privacy, epsilon: expected at least 0.0"),
        (
            {"method": "dora", "purpose": "baseline"},
            "method: expected one of qlora, lora, rslora, lora-plus, since",
        ),
        (
            {"method": "full", "purpose": "baseline"},
            "method: expected one of qlora, lora, rslora, lora-plus, since",
        ),
        (
            {"method": "olora"},
            "method: expected one of qlora, lora, rslora, lora-plus, since the recipe",
        ),
        ({"early_stopping": 3}, "validation: expected 0.0, and no early stopping, with privacy"),
        ({"validation": 0.1, "eval_steps": 5}, "validation: expected 0.0, and no early stopping, with privacy"),
        ({"dropout": 0.1}, "dropout: expected 0.0 or auto with privacy, got 0.1"),
        ({"max_grad_norm": 1}, "max_grad_norm: expected 0.0 or auto with privacy, where clip bounds each row, got 1.0"),
        ({"processes": 2}, "processes: expected 1 with privacy, got 2"),
    ],
)
def test_what_privacy_is_not_made_for_is_refused_by_name(written: dict[str, Any], message: str) -> None:
    facts = FACTS.model_copy(update={"threads": 4})
    with pytest.raises(BadInput, match=message):
        resolved(facts, **{"privacy": {"noise": 1}} | written)


def test_preferences_are_not_trained_privately() -> None:
    with pytest.raises(BadInput, match="privacy: expected none for preferences"):
        resolved(FACTS.model_copy(update={"preferences": True}), privacy={"noise": 1})


def test_an_order_that_says_less_than_its_noise_comes_to_is_refused() -> None:
    """What a verifier computes again of every private run."""
    recipe = resolved(privacy={"noise": 1})
    assert recipe.privacy is not None and problems(recipe) == []
    lie = recipe.model_copy(update={"privacy": recipe.privacy.model_copy(update={"epsilon": "0.5"})})
    (told,) = problems(lie)
    assert told == (
        f"recipe, privacy, epsilon: expected {recipe.privacy.epsilon}, which noise 1.0 comes to in 86 steps among 343 "
        "rows at delta 0.0001, got 0.5"
    )
    assert "expected a dataset whose training rows are counted" in problems(recipe, None)[0]
    assert any("epsilon: expected" in one for one in problems(recipe.model_copy(update={"epochs": 3})))


def test_an_epsilon_that_bounds_hardly_anything_is_warned_of() -> None:
    assert list_warnings(resolved(privacy={"epsilon": 8})) == []
    (told,) = list_warnings(resolved(privacy={"noise": 0.3}))
    assert told.startswith("epsilon ") and "protects little: above 10" in told


@pytest.mark.thorough
def test_a_delta_that_gives_a_row_away_and_a_clip_that_teaches_nothing_are_warned_of() -> None:
    assert list_warnings(resolved(privacy={"epsilon": 8, "delta": 0.001})) == []
    (told,) = list_warnings(resolved(privacy={"epsilon": 8, "delta": 0.0029}))
    assert told.startswith("delta 0.0029 protects little")
    (told,) = list_warnings(resolved(privacy={"epsilon": 8, "clip": 0.0000001}))
    assert told.startswith("clip 0.0000001 is so small")
    with pytest.raises(BadInput, match="delta: expected more than 0 and less than 1 / 343"):
        resolved(privacy={"epsilon": 8, "delta": 0.5})


def test_rows_that_are_all_in_each_step_are_accounted_for_as_such() -> None:
    """A sampling rate of 1: nothing is hidden by who was drawn."""
    every = resolved(FACTS, batch_size=343, privacy={"noise": 1})
    assert every.privacy is not None
    assert every.privacy.epsilon == find_epsilon(343, 343, every.epochs, "1.0", every.privacy.delta)
    few = resolved(FACTS, batch_size=8, privacy={"noise": 1}, epochs=every.epochs)
    assert few.privacy is not None and few.privacy.epsilon != every.privacy.epsilon


def test_a_resolved_private_recipe_is_read_again_as_it_was_written() -> None:
    recipe = resolved(privacy={"epsilon": 2})
    assert parse_value(ResolvedRecipe, encode_value(recipe), "recipe") == recipe


def test_the_template_names_the_key_and_what_it_holds() -> None:
    assert "# fields in braces, such as {epsilon: 3, delta: 0.00001}\n# privacy:" in write_template({})
