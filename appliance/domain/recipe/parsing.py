"""A recipe's words become a recipe, or every problem with them at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from decimal import Decimal as Number
from decimal import InvalidOperation
from typing import Any

from pydantic import ValidationError

from appliance.domain.core.words import expected_of
from appliance.domain.recipe.privacy import FRACTIONS
from appliance.domain.recipe.recipe import Recipe, ResolvedRecipe
from appliance.errors import refuse

_FRACTIONS = (
    "dropout",
    "learning_rate",
    "rate_ratio",
    "beta",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "validation",
)


def parse_recipe(data: Mapping[str, Any]) -> Recipe:
    """The recipe of a YAML mapping; BadInput names every unknown key and every value that is off."""
    problems = [_unknown(str(key)) for key in data if key not in Recipe.model_fields]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key in _FRACTIONS and not isinstance(value, bool | list) and value != "auto":
            text, problem = _read_fraction(key, value)
            problems += problem
            values[key] = text
        elif key == "privacy" and isinstance(value, Mapping):
            values[key], found = _read_privacy(value)
            problems += found
        elif key in Recipe.model_fields:
            values[key] = tuple(value) if isinstance(value, list) else value
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        recipe, problems = None, [*problems, *_problems(error)]
    refuse("recipe", problems)
    assert recipe is not None
    return recipe


def parse_resolved(data: Mapping[str, Any]) -> ResolvedRecipe:
    """A resolved recipe as JSON holds it; BadInput names every value that is off."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    try:
        return ResolvedRecipe.model_validate(values)
    except ValidationError as error:
        problems = _problems(error)
    refuse("recipe", problems)
    raise AssertionError("unreachable: an invalid value has a problem")


def _read_privacy(written: Mapping[Any, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """Its members as text, or what is wrong with them."""
    known = ", ".join(FRACTIONS)
    unknown = [str(key) for key in written if key not in FRACTIONS]
    problems = [f"recipe, privacy, key {key!r}: expected {known}" for key in unknown]
    values: dict[str, Any] = {}
    for key, value in written.items():
        if key in FRACTIONS and (value != "auto" or key in ("noise", "epsilon")):
            values[key], found = _read_fraction(f"privacy, {key}", value)
            problems += found
    if ("noise" in written) == ("epsilon" in written):
        problems.append(
            f"recipe, privacy: expected noise or epsilon, got {'both' if 'noise' in written else 'neither'}"
        )
    return (None if problems else values), problems


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, list(Recipe.model_fields), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "appliance recipe new prints every key"
    return f"recipe, key {key!r}: a recipe has no such key; {hint}"


def _problems(error: ValidationError) -> list[str]:
    """One sentence for each key. A key that may be `auto` fails as both of its kinds: the other one is told."""
    items: dict[str, list[Any]] = {}
    for item in error.errors(include_url=False):
        items.setdefault(str(item["loc"][0]) if item["loc"] else "recipe", []).append(item)
    return [f"recipe, {key}: {_say(key, found)}" for key, found in items.items()]


def _say(key: str, items: list[Any]) -> str:
    item = next((item for item in items if item["type"] != "literal_error"), items[0])
    if item["type"] == "missing":
        return "expected a value, got none"
    alternative = " or auto" if any(i["type"] == "literal_error" and i["loc"][-1] != key for i in items) else ""
    return f"expected {expected_of(dict(item))}{alternative}, got {item.get('input')!r}"


def _read_fraction(key: str, value: Any) -> tuple[str, list[str]]:
    """The decimal text of a YAML number, and what is wrong with it; a wrong one is read as 0.0 meanwhile."""
    try:
        number = Number(str(value))
    except InvalidOperation:
        return "0.0", [f"recipe, {key}: expected a decimal fraction or auto, got {value!r}"]
    if not number.is_finite() or number < 0:
        return "0.0", [f"recipe, {key}: expected a fraction of at least 0, got {value!r}"]
    text = f"{number.normalize():f}"
    return text if "." in text else text + ".0", []
