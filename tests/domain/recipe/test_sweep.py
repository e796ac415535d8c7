"""A recipe with lists gives one recipe per combination, all read at the same steps."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import ResolutionFacts, resolve_recipe
from appliance.domain.recipe.sweep import READINGS, SWEPT, align_readings, expand_recipe
from appliance.errors import BadInput

WRITTEN: dict[str, Any] = {"name": "a", "base": "b", "dataset": "rows@1"}
FACTS = ResolutionFacts(train_rows=800, max_tokens=78, context_length=8192, device="cpu", bfloat16=True)


def test_every_combination_is_a_recipe_of_its_own() -> None:
    found = expand_recipe(WRITTEN | {"rank": [4, 16], "learning_rate": [0.001, "0.0005"], "seed": 3})
    assert [values for _, values in found] == [
        {"rank": 4, "learning_rate": 0.001},
        {"rank": 4, "learning_rate": "0.0005"},
        {"rank": 16, "learning_rate": 0.001},
        {"rank": 16, "learning_rate": "0.0005"},
    ]
    assert {parse_recipe(written).seed for written, _ in found} == {3}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "expected a list for one of method, rank, learning_rate, epochs with --sweep, got none"),
        ({"target_modules": ["q_proj", "v_proj"]}, "expected a list for one of method, rank"),
        ({"rank": [8]}, "expected at least two combinations with --sweep, got one"),
        ({"rank": []}, "rank: expected a list of different values, got"),
        ({"rank": [8, 8]}, "rank: expected a list of different values, got"),
        ({key: list(range(1, 101)) for key in SWEPT}, "expected at most 256 combinations, got 100000000"),
        ({"rank": [8, 4], "privacy": {"noise": 1}}, "privacy: expected none with --sweep"),
    ],
)
def test_what_is_no_sweep_is_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        expand_recipe(WRITTEN | written)


def test_all_runs_read_their_validation_loss_after_the_same_steps() -> None:
    recipes = [parse_recipe(written) for written, _ in expand_recipe(WRITTEN | {"epochs": [1, 3]})]
    resolved = [resolve_recipe(one, FACTS) for one in align_readings(recipes, FACTS)]
    assert [one.eval_steps for one in resolved] == [100 // READINGS] * 2
    assert {one.validation for one in resolved} == {"0.1"}
    written = [parse_recipe(WRITTEN | {"epochs": epochs, "eval_steps": 7}) for epochs in (1, 3)]
    assert align_readings(written, FACTS) == written
    few = align_readings(recipes, FACTS.model_copy(update={"train_rows": 20}))
    assert [one.eval_steps for one in few] == [1, 1]
