"""Parsing of a recipe file, which reports all problems at once, and the template of one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from decimal import Decimal as Number
from decimal import InvalidOperation
from itertools import islice
from typing import Any

from pydantic import ValidationError

from appliance.domain.core.words import expected_of, items_of
from appliance.domain.recipe.privacy import FRACTIONS
from appliance.domain.recipe.recipe import Recipe, ResolvedRecipe
from appliance.errors import refuse

_FRACTIONS = (
    "dropout",
    "learning_rate",
    "loraplus_lr_ratio",
    "beta",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "validation",
)
_MOST = 16
"""Most unknown keys that are named in an error."""
_DIGITS = 12
"""Largest decimal exponent of a fraction, in either direction."""


def parse_recipe(data: Mapping[str, Any]) -> Recipe:
    """Parse a recipe from a YAML mapping.

    Raises: BadInput that names every wrong value and up to 16 unknown keys.
    """
    problems = [
        _describe_unknown_key(str(key))
        for key in islice((key for key in data if key not in Recipe.model_fields), _MOST)
    ]
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
        recipe, problems = None, [*problems, *_list_problems(error)]
    refuse("recipe", problems)
    assert recipe is not None
    return recipe


def parse_resolved(data: Mapping[str, Any]) -> ResolvedRecipe:
    """Parse a resolved recipe from its JSON.

    Raises: BadInput that names every wrong value.
    """
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    try:
        return ResolvedRecipe.model_validate(values)
    except ValidationError as error:
        problems = _list_problems(error)
    refuse("recipe", problems)
    raise AssertionError("unreachable: an invalid value has a problem")


def _read_privacy(written: Mapping[Any, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the fields of `privacy` as text, or what is wrong with them."""
    known = ", ".join(FRACTIONS)
    unknown = [str(key) for key in islice((key for key in written if key not in FRACTIONS), _MOST)]
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


def _describe_unknown_key(key: str) -> str:
    near = difflib.get_close_matches(key, list(Recipe.model_fields), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "appliance recipe new prints every key"
    return f"recipe, key {key!r:.80}: a recipe has no such key; {hint}"


def _list_problems(error: ValidationError) -> list[str]:
    """Return one sentence for each key.

    A key that may be `auto` fails as both of its types; the type other than `auto` is reported.
    """
    items: dict[str, list[Any]] = {}
    for item in items_of(error):
        items.setdefault(str(item["loc"][0]) if item["loc"] else "recipe", []).append(item)
    return [f"recipe, {key}: {_describe_problem(key, found)}" for key, found in items.items()]


def _describe_problem(key: str, items: list[Any]) -> str:
    item = next((item for item in items if item["type"] != "literal_error"), items[0])
    if item["type"] == "missing":
        return "expected a value, got none"
    alternative = " or auto" if any(i["type"] == "literal_error" and i["loc"][-1] != key for i in items) else ""
    return f"expected {expected_of(dict(item))}{alternative}, got {item.get('input')!r:.120}"


def _read_fraction(key: str, value: Any) -> tuple[str, list[str]]:
    """Return the decimal text of a YAML number, and what is wrong with it. A wrong one becomes 0.0."""
    try:
        number = Number(str(value))
    except InvalidOperation:
        return "0.0", [f"recipe, {key}: expected a decimal fraction or auto, got {value!r}"]
    if not number.is_finite() or number < 0:
        return "0.0", [f"recipe, {key}: expected a fraction of at least 0, got {value!r}"]
    if number and not -_DIGITS <= number.adjusted() <= _DIGITS:  # 1e999999 would be written with a million zeros
        return "0.0", [f"recipe, {key}: expected a fraction of at most {_DIGITS} digits, got {value!r}"]
    text = f"{number.normalize():f}"
    return text if "." in text else text + ".0", []


def write_template(given: dict[str, str]) -> str:
    """Return the text of a recipe file.

    `given` has values by key. All other keys with a default are comments with that default.
    """
    schema = Recipe.model_json_schema()
    required, properties = schema["required"], schema["properties"]
    lines = [
        "# A recipe. The keys without a # are needed; the value after a # is its default: remove the # to change",
        "# it. `auto` leaves a value to the appliance, which shows it before you sign.",
    ]
    for key, found in properties.items():
        default = found.get("default")
        ranges = say_range(found)
        lines += ["", f"# {found['description']}", *([f"# {ranges}"] if ranges else [])]
        value = given.get(key, "" if default is None else str(default))
        lines.append(f"{key}: {value}" if key in given or key in required else f"# {key}: {value}".rstrip())
    return "\n".join(lines) + "\n"


def say_range(schema: dict[str, Any]) -> str:
    """Return the possible values of a key, such as `1 to 512, or auto`."""
    options = [_describe_option(option) for option in schema.get("anyOf", [schema])]
    return ", or ".join(option for option in options if option)


def _describe_option(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return "fields in braces, such as {epsilon: 3, delta: 0.00001}"
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    match schema["type"]:
        case "integer":
            return f"{schema['minimum']} to {schema['maximum']}"
        case "array":
            return "a list such as [q_proj, v_proj]"
        case "null":
            return ""
        case _ if "@" in schema.get("pattern", ""):
            return "a name and a version, such as clauses@1"
        case _:
            return _TEXT_BY_PATTERN.get(str(schema.get("pattern", ""))[:8], "a decimal fraction, such as 0.1")


_TEXT_BY_PATTERN = {"^[a-z0-9": "a name", "^r-[0-9]": "a run such as r-000001"}
