"""A signed order to train is resolved again, value by value, before somebody relies on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.client.support.orders import resolve_again
from appliance.domain.actions.proposals import Proposal
from appliance.domain.recipe.parsing import parse_recipe
from appliance.domain.recipe.recipe import ResolutionFacts, resolve_recipe
from scripts.kit.log_builder import stage

FACTS = ResolutionFacts(train_rows=343, max_tokens=78, context_length=8192, device="cpu", bfloat16=True)


def _resolve_again(written: dict[str, Any], left: frozenset[str], **signed: Any) -> list[str]:
    """Check an order whose author wrote these values and left some `auto`, and that was then changed to `signed`."""
    recipe = resolve_recipe(parse_recipe({"name": "a", "base": "smollm2", "dataset": "clauses@1"} | written), FACTS)
    order = stage("imported").train_order(recipe=recipe.model_dump() | signed)
    connection: Any = SimpleNamespace(get=lambda path, model, **query: model.model_construct(facts=FACTS))
    return resolve_again(connection, Proposal(order=order, reported=frozenset(f"recipe.{name}" for name in left)))


@pytest.mark.parametrize("written", [{}, {"method": "full", "purpose": "baseline"}])
def test_a_value_that_no_author_can_write_is_resolved_again_as_auto(written: dict[str, Any]) -> None:
    left = frozenset({"max_length"})
    assert _resolve_again(written, left) == []
    assert _resolve_again(written, left, validation="0.2") == ["eval_steps: expected 6, got 0"]


@pytest.mark.thorough
def test_a_private_recipe_is_resolved_again_by_its_noise() -> None:
    written = parse_recipe({"name": "a", "base": "smollm2", "dataset": "clauses@1", "privacy": {"epsilon": 3}})
    recipe = resolve_recipe(written, FACTS)
    resolved = frozenset(f"recipe.{name}" for name, value in written.model_dump().items() if value == "auto")
    order = stage("imported").train_order(recipe=recipe.model_dump())
    connection: Any = SimpleNamespace(get=lambda path, model, **query: model.model_construct(facts=FACTS))
    assert resolve_again(connection, Proposal(order=order, reported=resolved)) == []
    other = order.model_copy(update={"recipe": recipe.model_copy(update={"max_length": 128})})
    assert resolve_again(connection, Proposal(order=other, reported=resolved)) == ["max_length: expected 96, got 128"]
