"""Parsing of a recipe file, which reports all problems at once, and the template of one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from decimal import Decimal as Number
from decimal import InvalidOperation
from itertools import islice
from typing import Any, get_args

from pydantic import ValidationError

from appliance.domain.core.names import Decimal
from appliance.domain.core.words import FORMS, items_of, problems
from appliance.domain.recipe.privacy import PrivacyParameters
from appliance.domain.recipe.recipe import Recipe
from appliance.errors import refuse

_FRACTIONS = frozenset(name for name, field in Recipe.model_fields.items() if Decimal in get_args(field.annotation))
_MOST = 16
"""Most unknown keys that are named in an error."""
_DIGITS = 12
"""Largest decimal exponent of a fraction, in either direction."""


def parse_recipe(data: Mapping[str, Any]) -> Recipe:
    """Parse a recipe from a YAML mapping.

    Raises: BadInput that names every wrong value and up to 16 unknown keys.
    """
    unknown = islice((key for key in data if key not in Recipe.model_fields), _MOST)
    found = [_describe_unknown_key(str(key)) for key in unknown]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key == "privacy" and isinstance(value, Mapping):
            values[key] = {
                str(name): _read_fraction(f"privacy, {name}", one, found)
                if name in PrivacyParameters.model_fields
                else one
                for name, one in value.items()
            }
        elif key in _FRACTIONS:
            values[key] = _read_fraction(key, value, found)
        elif key in Recipe.model_fields:
            values[key] = tuple(value) if isinstance(value, list) else value
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        recipe = None
        known = ", ".join(PrivacyParameters.model_fields)
        found += [f"recipe, {problem}" for problem in problems(items_of(error), unknown=f"expected {known}")]
    refuse("recipe", found)
    assert recipe is not None
    return recipe


def _describe_unknown_key(key: str) -> str:
    near = difflib.get_close_matches(key, list(Recipe.model_fields), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "appliance recipe new prints every key"
    return f"recipe, key {key!r:.80}: a recipe has no such key; {hint}"


def _read_fraction(key: str, value: Any, found: list[str]) -> Any:
    """Return the decimal text of a YAML number. `auto`, a list and a boolean are returned as they are.

    What is wrong with a number is added to `found`, and the result is 0.0.
    """
    if value == "auto" or isinstance(value, bool | list):
        return value
    try:
        number = Number(str(value))
    except InvalidOperation:
        found.append(f"recipe, {key}: expected a decimal fraction or auto, got {value!r}")
        return "0.0"
    if not number.is_finite() or number < 0:
        found.append(f"recipe, {key}: expected a fraction of at least 0, got {value!r}")
        return "0.0"
    if number and not -_DIGITS <= number.adjusted() <= _DIGITS:  # 1e999999 would be written with a million zeros
        found.append(f"recipe, {key}: expected a fraction of at most {_DIGITS} digits, got {value!r}")
        return "0.0"
    text = f"{number.normalize():f}"
    return text if "." in text else text + ".0"


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
        ranges = describe_range(found)
        lines += ["", f"# {found['description']}", *([f"# {ranges}"] if ranges else [])]
        value = given.get(key, "" if default is None else str(default))
        lines.append(f"{key}: {value}" if key in given or key in required else f"# {key}: {value}".rstrip())
    return "\n".join(lines) + "\n"


def describe_range(schema: dict[str, Any]) -> str:
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
        case _:
            return FORMS[schema["pattern"]]
