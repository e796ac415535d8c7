"""A recipe with every key, its meaning, its range and its default, made from the model itself."""

from __future__ import annotations

from typing import Any

from appliance.domain.recipe.recipe import Recipe


def write_template(given: dict[str, str]) -> str:
    """The text of a recipe file. `given` are values; every other key that has a default is in a comment."""
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
    """What a key may be: `1 to 512, or auto`."""
    options = [_say_option(option) for option in schema.get("anyOf", [schema])]
    return ", or ".join(option for option in options if option)


def _say_option(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return "members in braces, such as {epsilon: 3, delta: 0.00001}"
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
            return _TEXTS.get(str(schema.get("pattern", ""))[:8], "a decimal fraction, such as 0.1")


_TEXTS = {"^[a-z0-9": "a name", "^r-[0-9]": "a run such as r-000001"}
