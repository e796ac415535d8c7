"""Messages about invalid values: plain words, without patterns and texts of the parser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from appliance.domain.actions.registry import ACTIONS, EVENTS
from appliance.domain.core.credentials import Possession, SessionStatement, UnitToken
from appliance.domain.core.entry import Entry
from appliance.domain.core.names import explain
from appliance.domain.core.policy import Parameters
from appliance.domain.core.words import FORMS, problems, unknown_word
from appliance.domain.data.imports import ImportDataset
from appliance.domain.governance.people import Enrol
from appliance.domain.recipe.recipe import Recipe

MODELS: list[type[BaseModel]] = [
    *(action.order for action in ACTIONS.values()),
    *EVENTS.values(),
    *(Possession, SessionStatement, UnitToken, Entry, Parameters, Recipe),
]


def _patterns(schema: object) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if isinstance(pattern := schema.get("pattern"), str):
            yield pattern
        for value in schema.values():
            yield from _patterns(value)
    elif isinstance(schema, list | tuple):
        for item in schema:
            yield from _patterns(item)


def test_every_form_of_a_text_has_words() -> None:
    found = {pattern for model in MODELS for pattern in _patterns(model.__pydantic_core_schema__)}
    assert len(found) > 8 and found <= FORMS.keys()


def told(model: type[BaseModel], **values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return explain(caught.value)


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        (Enrol, {"principal": "Smol LM"}, "principal: expected lower-case letters, digits and hyphens, at most 63,"),
        (Enrol, {"roles": ("reviewer",)}, "reviewer:FUNCTION such as reviewer:privacy, or release-owner:UNIT such as"),
        (ImportDataset, {"held_out": "20"}, "held_out: expected a decimal fraction such as 0.2 or a digest: sha256:"),
        (ImportDataset, {"licence": "Apache 2"}, "licence: expected one word of at most 64 letters, digits and . + _"),
        (Recipe, {"dataset": "tickets"}, "dataset: expected NAME@VERSION such as clauses@1, got 'tickets'"),
        (Recipe, {"seed": -1}, "seed: expected at least 0, got -1"),
        (Recipe, {"lr": 1}, "lr: expected no field of this name"),
        (Recipe, {}, "base: expected a value, got none"),
        (Parameters, {"reviewers": "two"}, "reviewers: expected a whole number, got 'two'"),
    ],
)
def test_what_does_not_fit_is_said_in_plain_words(model: type[BaseModel], values: Any, words: str) -> None:
    said = told(model, **values)
    assert words in said
    assert not [mark for mark in ("^", "[0-9", "pattern", "should", "Input", "Tuple", "permitted") if mark in said]


def test_a_list_whose_member_does_not_fit_is_not_said_to_be_too_short() -> None:
    said = told(Enrol, roles=("reviewer",))
    assert said.count("roles") == 1 and "or more of them" not in said
    assert "roles: expected 1 or more of them" in told(Enrol, roles=())


def test_an_unknown_word_is_told_the_nearest_and_a_short_list() -> None:
    assert unknown_word("unit", "lgal", ["sales", "legal"]) == (
        "unit: expected one of legal, sales, got 'lgal'; did you mean legal?"
    )
    many = [f"name-{number}" for number in range(20)]
    assert unknown_word("x", "nothing like it", many, "a name") == "x: expected a name, got 'nothing like it'"
    assert unknown_word("x", "a", [], "a name") == "x: expected a name, got 'a'"


def test_where_what_was_sent_is_not_repeated_no_name_is_suggested() -> None:
    with pytest.raises(ValidationError) as caught:
        Enrol.model_validate({"principal": "Smol LM"})
    items = [dict(item) for item in caught.value.errors() if item["loc"] == ("principal",)]
    assert "; ".join(problems(items)).endswith("got 'Smol LM'; did you mean 'smol-lm'?")
    items[0].pop("input")
    assert "; ".join(problems(items)).endswith("beginning and ending with a letter or digit")
