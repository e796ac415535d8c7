"""A base with experts: the modules that a recipe may name, and the choice of `auto`."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.planning.shape import read_roles
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import LINEAR_LAYERS, ResolutionFacts, ResolvedRecipe, resolve_recipe
from appliance.errors import BadInput

FACTS = ResolutionFacts(
    train_rows=343, max_tokens=78, context_length=8192, device="cpu", bfloat16=True, roles=LINEAR_LAYERS, experts=True
)
WRITTEN = {"name": "clauses", "base": "moe", "dataset": "clauses@1"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = {"purpose": "baseline", "target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}


def resolved(facts: ResolutionFacts = FACTS, **written: Any) -> ResolvedRecipe:
    return resolve_recipe(parse_recipe(WRITTEN | written), facts)


def test_auto_chooses_what_can_be_served() -> None:
    assert resolved().target_modules == ATTENTION
    assert resolved(FACTS.model_copy(update={"experts": False})).target_modules == LINEAR_LAYERS
    few = FACTS.model_copy(update={"roles": ("q_proj", "up_proj"), "experts": False})
    assert resolved(few).target_modules == ("q_proj", "up_proj")


def test_experts_can_be_trained_as_a_baseline() -> None:
    assert resolved(**EXPERTS).target_modules == tuple(EXPERTS["target_modules"])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"purpose": "release"}, "target_modules: expected some of q_proj, k_proj, v_proj, o_proj for a release"),
        ({"method": "dora"}, "method: expected one of qlora, lora, rslora, lora-plus on experts, got dora"),
        ({"method": "pissa"}, "method: expected one of qlora, lora, rslora, lora-plus on experts, got pissa"),
        ({"dropout": "0.1"}, "dropout: expected 0.0 on experts, got 0.1"),
        ({"target_modules": ["gate_proj"]}, "target_modules: expected gate_proj and up_proj together"),
    ],
)
def test_what_an_adapter_on_experts_cannot_be_is_refused_before_the_run(written: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolved(**EXPERTS | written)


def test_a_role_that_the_base_has_not_is_refused_before_the_run() -> None:
    few = FACTS.model_copy(update={"roles": ("q_proj", "up_proj"), "experts": False})
    with pytest.raises(BadInput, match="expected some of q_proj, up_proj, which moe has, got gate_proj"):
        resolved(few, target_modules=["q_proj", "gate_proj"])


def test_roles_are_read_from_the_base_s_entry() -> None:
    assert read_roles({}) == read_roles({"shape": {"layers": 2}}) == (LINEAR_LAYERS, False)
    assert read_roles({"shape": {"roles": ["q_proj"], "experts": 4}}) == (("q_proj",), True)
