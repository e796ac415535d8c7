"""Recipes: what an author may write, and what becomes of `auto`."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.policy import LAYERS
from appliance.domain.recipe import LINEAR_LAYERS, Facts, parse_recipe, resolve_recipe
from appliance.errors import BadInput
from appliance.runners.sandbox import LAYERS as BUILT

WRITTEN: dict[str, Any] = {"name": "clauses", "base": "smollm2", "dataset": "clauses@1"}
FACTS = Facts(train_rows=343, max_tokens=78, context_length=8192, device="cpu", bfloat16=True)


def test_three_keys_are_enough_and_every_value_is_resolved() -> None:
    resolved = resolve_recipe(parse_recipe(WRITTEN), FACTS)
    assert "auto" not in resolved.model_dump().values()
    assert (resolved.target_modules, resolved.max_length, resolved.epochs) == (LINEAR_LAYERS, 96, 2)
    assert (resolved.device, resolved.compute_dtype, resolved.quantisation) == ("cpu", "bfloat16", "nf4-double")


def test_what_the_author_wrote_stays() -> None:
    written = {"rank": 8, "alpha": 4, "learning_rate": 5e-5, "epochs": 7, "target_modules": ["q_proj"], "dropout": 0}
    resolved = resolve_recipe(parse_recipe(WRITTEN | written), FACTS)
    assert (resolved.rank, resolved.alpha, resolved.epochs, resolved.target_modules) == (8, 4, 7, ("q_proj",))
    assert (resolved.learning_rate, resolved.dropout) == ("0.00005", "0.0")


def test_auto_may_be_said_in_so_many_words() -> None:
    said = dict.fromkeys(
        ("rank", "epochs", "dropout", "target_modules", "gradient_checkpointing", "max_length"), "auto"
    )
    assert parse_recipe(WRITTEN | said) == parse_recipe(WRITTEN)


def test_a_run_writes_about_eight_checkpoints_and_never_more_than_it_may() -> None:
    """343 rows in batches of 8 are 43 steps an epoch."""
    for epochs, every in ((1, 10), (2, 11), (100, 538)):
        assert resolve_recipe(parse_recipe(WRITTEN | {"epochs": epochs}), FACTS).checkpoint_every == every
    assert resolve_recipe(parse_recipe(WRITTEN | {"epochs": 1, "checkpoint_every": 1}), FACTS).checkpoint_every == 1
    with pytest.raises(BadInput, match=r"checkpoint_every: expected at least 2, for at most 64 .* in 86 steps, got 1"):
        resolve_recipe(parse_recipe(WRITTEN | {"epochs": 2, "checkpoint_every": 1}), FACTS)


def test_long_rows_recompute_their_activations() -> None:
    long = FACTS.model_copy(update={"max_tokens": 2_000})
    assert resolve_recipe(parse_recipe(WRITTEN), long).gradient_checkpointing
    assert not resolve_recipe(parse_recipe(WRITTEN), FACTS).gradient_checkpointing


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"lora_rank": 8}, "did you mean 'rank'"),
        ({"learning_rte": 1}, "did you mean 'learning_rate'"),
        ({"rank": 0}, "rank: expected greater than or equal to 1 or auto, got 0"),
        ({"rank": "big"}, "rank: expected integer or auto, got 'big'"),
        ({"rank": True}, "rank: expected"),
        ({"dropout": -0.1}, "dropout: expected a fraction of at least 0"),
        ({"dropout": float("nan")}, "dropout: expected a fraction"),
        ({"method": "dora"}, "method: expected 'qlora', got 'dora'"),
        ({"dataset": "clauses"}, "dataset: expected"),
        ({"device": "tpu"}, "device: expected"),
    ],
)
def test_a_recipe_that_is_off_is_refused_by_key(written: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match="recipe") as refused:
        parse_recipe(WRITTEN | written)
    assert message in refused.value.message


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(BadInput, match="name: expected a value, got none"):
        parse_recipe({"base": "smollm2", "dataset": "clauses@1"})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"max_length": 64}, "max_length: expected at least 78 tokens, the longest row of clauses@1, got 64"),
        ({"max_length": 10_000}, "max_length: expected at most the base's context of 8192"),
        ({"device": "cuda"}, "device: expected cpu, since this machine has no CUDA device"),
        ({"target_modules": ["embed_tokens"]}, "the ones that can be served, got embed_tokens"),
    ],
)
def test_what_cannot_be_trained_or_served_here_is_refused_before_anybody_signs(
    written: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as refused:
        resolve_recipe(parse_recipe(WRITTEN | written), FACTS)
    assert message in refused.value.message


def test_policy_may_name_every_wall_but_no_new_privileges() -> None:
    assert set(LAYERS) == BUILT - {"no-new-privs"}
