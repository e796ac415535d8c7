"""Recipes: allowed values, and the resolution of `auto`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from appliance.domain.core.policy import LAYERS
from appliance.domain.recipe.methods import METHODS
from appliance.domain.recipe.parsing import parse_recipe, write_template
from appliance.domain.recipe.recipe import LINEAR_LAYERS, Recipe, ResolutionFacts, resolve_recipe
from appliance.domain.recipe.sweep import list_warnings
from appliance.errors import BadInput
from appliance.sandbox.processes import LAYERS as BUILT

WRITTEN: dict[str, Any] = {"name": "clauses", "base": "smollm2", "dataset": "clauses@1"}
FACTS = ResolutionFacts(train_rows=343, max_tokens=78, context_length=8192, device="cpu", bfloat16=True)


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
        assert resolve_recipe(parse_recipe(WRITTEN | {"epochs": epochs}), FACTS).save_steps == every
    assert resolve_recipe(parse_recipe(WRITTEN | {"epochs": 1, "save_steps": 1}), FACTS).save_steps == 1
    with pytest.raises(BadInput, match=r"save_steps: expected at least 2, for at most 64 .* in 86 steps, got 1"):
        resolve_recipe(parse_recipe(WRITTEN | {"epochs": 2, "save_steps": 1}), FACTS)


def test_processes_divide_the_threads_of_a_cpu_and_have_a_card_each() -> None:
    shared = FACTS.model_copy(update={"threads": 4})
    cards = FACTS.model_copy(update={"device": "cuda", "cards": 2})
    for facts, count in ((FACTS, 1), (shared, 2), (shared, 4), (cards, 2)):
        assert resolve_recipe(parse_recipe(WRITTEN | {"processes": count}), facts).processes == count
    for facts, count, message in (
        (shared, 3, "processes: expected a divisor of this machine's 4 threads, got 3"),
        (shared, 8, "processes: expected a divisor of this machine's 4 threads, got 8"),
        (cards, 3, "processes: expected at most 2, the cards that a worker may see, got 3"),
    ):
        with pytest.raises(BadInput, match=message):
            resolve_recipe(parse_recipe(WRITTEN | {"processes": count}), facts)
    for bad in (0, -1, 65, 1.5, True, "two", "auto"):
        with pytest.raises(BadInput, match="processes"):
            parse_recipe(WRITTEN | {"processes": bad})


@pytest.mark.parametrize(
    ("method", "resolved"),
    [
        ("qlora", ("nf4-double", 16, 32, "0.001", "1.0", 7)),
        ("lora", ("none", 16, 32, "0.001", "1.0", 7)),
        ("rslora", ("nf4-double", 16, 8, "0.001", "1.0", 7)),
        ("lora-plus", ("nf4-double", 16, 32, "0.0002", "16.0", 7)),
        ("pissa", ("nf4-double", 16, 32, "0.0005", "1.0", 7)),
        ("dora", ("nf4-double", 16, 32, "0.001", "1.0", 7)),
        ("ia3", ("nf4-double", 0, 0, "0.01", "1.0", 7)),
        ("full", ("none", 0, 0, "0.0001", "1.0", 0)),
    ],
)
def test_what_is_left_open_follows_the_method(method: str, resolved: tuple[Any, ...]) -> None:
    """LoRA's scale is 2 under every name: alpha / rank, or for rsLoRA alpha / sqrt(rank)."""
    found = resolve_recipe(parse_recipe(WRITTEN | {"method": method, "purpose": "baseline"}), FACTS)
    values = (found.quantisation, found.rank, found.alpha, found.learning_rate, found.loraplus_lr_ratio)
    assert (*values, len(found.target_modules)) == resolved


def test_long_rows_recompute_their_activations() -> None:
    long = FACTS.model_copy(update={"max_tokens": 2_000})
    assert resolve_recipe(parse_recipe(WRITTEN), long).gradient_checkpointing == "mlp"
    assert resolve_recipe(parse_recipe(WRITTEN), FACTS).gradient_checkpointing == "none"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"lora_rank": 8}, "did you mean 'rank'"),
        ({"learning_rte": 1}, "did you mean 'learning_rate'"),
        ({"rank": 0}, "rank: expected at least 1 or 'auto', got 0"),
        ({"rank": "big"}, "rank: expected a whole number or 'auto', got 'big'"),
        ({"rank": True}, "rank: expected"),
        ({"dropout": -0.1}, "dropout: expected a fraction of at least 0"),
        ({"dropout": float("nan")}, "dropout: expected a fraction"),
        ({"method": "vera"}, "method: expected 'qlora', 'lora', 'rslora', "),
        ({"quantisation": "awq"}, "quantisation: expected 'nf4-double', 'int8', 'none' or 'gptq' or 'auto', got 'awq'"),
        ({"optimiser": "adam"}, "optimiser: expected 'adamw', 'adamw-8bit' or 'paged-adamw-8bit', got 'adam'"),
        ({"dataset": "clauses"}, "dataset: expected"),
        ({"device": "tpu"}, "device: expected"),
    ],
)
def test_a_recipe_that_is_off_is_refused_by_key(written: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match="recipe") as refused:
        parse_recipe(WRITTEN | written)
    assert message in refused.value.message


def test_every_problem_of_a_recipe_is_named_at_once() -> None:
    off = {"rnak": 8, "colour": 1, "rank": 0, "dropout": -1, "learning_rate": "fast", "method": "vera", "seed": "x"}
    with pytest.raises(BadInput) as refused:
        parse_recipe({"base": "Smol LM", "dataset": "clauses@1"} | off)
    told = refused.value.reasons
    assert [reason.partition(":")[0] for reason in told] == [
        "recipe, key 'rnak'", "recipe, key 'colour'", "recipe, dropout", "recipe, learning_rate",
        "recipe, base", "recipe, method", "recipe, rank", "recipe, seed", "recipe, name",
    ]  # fmt: skip
    assert "did you mean 'rank'?" in told[0] and "appliance recipe new prints every key" in told[1]
    assert "lower-case letters, digits and hyphens" in refused.value.message and "pattern" not in refused.value.message


def test_every_misfit_of_a_recipe_with_its_base_is_named_at_once() -> None:
    written = {"max_length": 64, "device": "cuda", "loraplus_lr_ratio": 4, "learning_rate": 0}
    with pytest.raises(BadInput) as refused:
        resolve_recipe(parse_recipe(WRITTEN | written), FACTS)
    keys = [reason.partition(":")[0].removeprefix("recipe, ") for reason in refused.value.reasons]
    assert keys == ["loraplus_lr_ratio", "learning_rate", "max_length", "device"]


def test_the_template_has_every_key_its_range_and_its_default_and_is_a_recipe() -> None:
    text = write_template(WRITTEN)
    assert parse_recipe(yaml.safe_load(text)) == parse_recipe(WRITTEN)
    for key, field in Recipe.model_fields.items():
        assert f"{key}:" in text and field.description is not None and f"# {field.description}\n" in text, key
    assert "# 1 to 512, or auto\n# rank: auto\n" in text
    assert "# one of adamw, adamw-8bit, paged-adamw-8bit\n# optimiser: adamw\n" in text
    written = "\n".join(line.removeprefix("# ") for line in text.splitlines() if re.match(r"# [a-z_]+: ?\S", line))
    defaults = parse_recipe(WRITTEN | yaml.safe_load(written))
    assert defaults == parse_recipe(WRITTEN), "what a comment offers is the default"


@pytest.mark.parametrize(
    ("method", "rate", "said"),
    [
        ("qlora", 50, "far above what qlora is usually trained with"),
        ("qlora", 1e-8, "far below"),
        ("full", 0.01, "far above"),
        ("ia3", 0.01, ""),
        *((method, "auto", "") for method in METHODS),
    ],
)
def test_a_learning_rate_far_from_the_methods_own_is_warned_of(method: str, rate: Any, said: str) -> None:
    written = WRITTEN | {"method": method, "purpose": "baseline", "learning_rate": rate}
    warnings = list_warnings(resolve_recipe(parse_recipe(written), FACTS))
    assert len(warnings) == (said != "") and all(said in warning for warning in warnings)


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(BadInput, match="name: expected a value, got none"):
        parse_recipe({"base": "smollm2", "dataset": "clauses@1"})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"max_length": 64}, "max_length: expected at least 78 tokens, the longest row of clauses@1, got 64"),
        ({"max_length": 10_000}, "max_length: expected at most the base's context of 8192"),
        ({"device": "cuda"}, "device: expected cpu, since this machine has no CUDA device"),
        (
            {"method": "dora"},
            "since only these can be released: qlora on nf4-double, lora on none, lora on gptq, rslora on nf4-double",
        ),
        ({"method": "lora", "quantisation": "int8"}, "got release of lora on int8"),
        ({"method": "lora", "quantisation": "nf4-double"}, "expected none or int8 or gptq for lora, got nf4-double"),
        ({"method": "full", "purpose": "baseline", "rank": 8}, "rank: expected 0 or auto, since full has none, got 8"),
        ({"method": "full", "purpose": "baseline", "target_modules": ["q_proj"]}, "since full trains every weight"),
        ({"method": "ia3", "purpose": "baseline", "dropout": 0.1}, "dropout: expected 0.0 or auto, since ia3 has none"),
        (
            {"method": "pissa", "weight_decay": 0.01},
            "weight_decay: expected 0.0 for pissa, because its first weights are fixed",
        ),
        ({"loraplus_lr_ratio": 4}, "loraplus_lr_ratio: expected 1.0 or auto for qlora, got 4.0"),
        ({"optimiser": "paged-adamw-8bit"}, "expected adamw or adamw-8bit, since bitsandbytes pages only on a CUDA"),
        (
            {"warmup_ratio": 1.5},
            "warmup_ratio: expected a warm-up shorter than the run's 86 steps, got 129 steps (1.5)",
        ),
        ({"learning_rate": 0}, "learning_rate: expected a number above 0, because the weights would not change"),
        (
            {"max_grad_norm": 0},
            "max_grad_norm: expected a number above 0, since every gradient would be clipped to nothing, got 0.0; a",
        ),
        ({"target_modules": ["embed_tokens"]}, "the ones that can be served, got embed_tokens"),
    ],
)
def test_what_cannot_be_trained_or_served_here_is_refused_before_anybody_signs(
    written: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput) as refused:
        resolve_recipe(parse_recipe(WRITTEN | written), FACTS)
    assert message in refused.value.message


def test_policy_may_name_every_layer_but_no_new_privileges() -> None:
    assert set(LAYERS) == BUILT - {"no-new-privs"}


def test_validation_is_resolved_whole_or_not_at_all() -> None:
    def resolve(**changes: Any) -> tuple[int, str, int]:
        found = resolve_recipe(parse_recipe(WRITTEN | {"epochs": 1} | changes), FACTS)
        return found.early_stopping, found.validation, found.eval_steps

    every = -(-43 // 16)
    assert resolve() == (0, "0.0", 0)
    assert resolve(early_stopping=3) == (3, "0.1", every)
    assert resolve(validation=0.2) == (0, "0.2", every)
    assert resolve(eval_steps=9) == (0, "0.1", 9)
    for changes in ({"early_stopping": 3, "validation": 0}, {"validation": 0, "eval_steps": 9}):
        with pytest.raises(BadInput, match=r"validation: expected a share above 0\.0 exactly where"):
            resolve(**changes)
    with pytest.raises(BadInput, match=r"validation: expected at most 0\.9, got 0\.95"):
        resolve(validation=0.95)


GPTQ = FACTS.model_copy(update={"stored": "gptq"})


@pytest.mark.parametrize("method", ["lora", "rslora", "lora-plus", "olora", "pissa"])
def test_on_a_base_in_gptq_its_own_weights_are_what_is_trained_on_and_released(method: str) -> None:
    found = resolve_recipe(parse_recipe(WRITTEN | {"method": method}), GPTQ)
    assert (found.quantisation, found.purpose) == ("gptq", "release")


@pytest.mark.parametrize(
    ("written", "facts", "message"),
    [
        (
            {},
            GPTQ,
            "recipe, method: expected one of lora, rslora, lora-plus, olora, pissa, since the base was imported in "
            "GPTQ, got qlora",
        ),
        ({"method": "dora", "purpose": "baseline"}, GPTQ, "imported in GPTQ, got dora"),
        ({"method": "ia3", "purpose": "baseline"}, GPTQ, "imported in GPTQ, got ia3"),
        ({"method": "full", "purpose": "baseline"}, GPTQ, "imported in GPTQ, got full"),
        ({"method": "lora", "quantisation": "none"}, GPTQ, "expected gptq, since the base was imported so, got none"),
        ({"method": "lora", "quantisation": "gptq"}, FACTS, "expected another than gptq for this base, got gptq"),
    ],
)
def test_what_does_not_go_with_how_a_base_was_imported_is_refused(
    written: dict[str, Any], facts: ResolutionFacts, message: str
) -> None:
    with pytest.raises(BadInput) as refused:
        resolve_recipe(parse_recipe(WRITTEN | written), facts)
    assert message in refused.value.message
