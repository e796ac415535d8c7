"""Explanations of invalid values in plain words: unknown words, malformed text, numbers out of bounds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import StringConstraints, ValidationError

MOST_LISTED = 12
"""Largest number of known words that a message lists; with more, it names only the nearest one."""


def unknown_word(what: str, got: str, known: Collection[str], kind: str = "a known one") -> str:
    """Return a message such as `unit: expected one of claims, legal, got 'lgal'; did you mean legal?`"""
    listed = f"one of {', '.join(sorted(known))}" if 0 < len(known) <= MOST_LISTED else kind
    near = difflib.get_close_matches(got, sorted(known), n=1)
    return f"{what}: expected {listed}, got {got!r:.80}" + (f"; did you mean {near[0]}?" if near else "")


def add_advice(message: str, advice: str) -> str:
    """Return a message that ends with an advice: after a question, the advice is a sentence of its own."""
    if message.endswith("?"):
        return f"{message} {advice[0].upper()}{advice[1:]}"
    return f"{message}; {advice}"


FORMS: dict[str, str] = {}
"""Descriptions of text formats for people, by the pattern that checks them."""
_CORRECTIONS: dict[str, Callable[[str], str]] = {}


def form(pattern: str, words: str, correct: Callable[[str], str] | None = None) -> StringConstraints:
    """Return the constraint for text of this pattern, and register its description for error messages.

    Messages show `words` and never the pattern. `correct` proposes a valid text for one that does not match.
    """
    FORMS[pattern] = words
    if correct is not None:
        _CORRECTIONS[pattern] = correct
    return StringConstraints(pattern=pattern)


_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
    "none_required": "null",
    "missing": "a value",
    "json_invalid": "JSON",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_too_short": "a text of {min_length} or more characters",
    "string_too_long": "a text of at most {max_length} characters",
    "too_short": "{min_length} or more of them",
    "too_long": "at most {max_length} of them",
}

Item = Mapping[str, Any]
"""One of pydantic's errors."""
MOST_ITEMS = 1_000
"""Largest number of errors of one value that are read.

Pydantic creates all of them at once and blocks other threads meanwhile.
"""
MOST_EXPLAINED = 16
"""Largest number of problems of one value that are explained; the others are counted."""
_LONGEST = 1_000
"""Largest number of characters of one problem."""
_SHOWN = 80
"""Largest number of characters of a field's name that a message repeats."""


def items_of(error: ValidationError) -> list[Item]:
    """Return the errors as items, or one item in place of more than MOST_ITEMS."""
    if (count := error.error_count()) > MOST_ITEMS:
        msg = f"expected at most {MOST_ITEMS} values that do not fit, got {count}; compare it with the documentation"
        return [{"type": "value_error", "loc": (), "msg": msg}]
    return [dict(item) for item in error.errors(include_url=False)]


def expected_of(item: Item) -> str:
    """Return the expected value in plain words, without a pattern or pydantic's own terms."""
    kind, context = str(item["type"]), item.get("ctx") or {}
    if kind == "string_pattern_mismatch":
        return FORMS.get(str(context["pattern"]), "text of the form that the documentation gives")
    if kind in _BOUNDS:
        return _BOUNDS[kind].format_map(context)
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    return _TYPES.get(kind) or str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid ")


def problems(items: Iterable[Item], *, unknown: str = "expected no field of this name") -> Iterator[str]:
    """Yield the first of pydantic's errors as `where: expected X`, and how many more there are.

    A value that fits no member of a union has an error for each member; together these are one problem.
    """
    found: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        found.setdefault(_path_of(item["loc"]), []).append(item)
    outer = {path[:length] for path in found for length in range(len(path))}
    # Pydantic reports a list with malformed items as too short, too.
    explained_problems = [
        (path, alternatives)
        for path, alternatives in found.items()
        if path not in outer or any(item["type"] != "too_short" for item in alternatives)
    ]
    explained_problems.sort(key=lambda group: group[1][0]["type"] == "missing")
    for path, alternatives in explained_problems[:MOST_EXPLAINED]:
        yield f"{_where(path, alternatives[0])}: {_problem(alternatives, unknown)}"
    if (more := len(explained_problems) - MOST_EXPLAINED) > 0:
        yield f"{more} more problems of this kind"


def _problem(group: list[Item], unknown: str) -> str:
    first = group[0]
    if first["type"] == "value_error":
        return str((first.get("ctx") or {}).get("error") or first["msg"])[:_LONGEST]
    if first["type"] == "extra_forbidden":
        return unknown
    return f"expected {' or '.join(dict.fromkeys(expected_of(item) for item in group))}{_got(first)}{_suggest(first)}"


def _suggest(item: Item) -> str:
    pattern = str((item.get("ctx") or {}).get("pattern"))
    near = _CORRECTIONS[pattern](str(item["input"])[:_SHOWN]) if pattern in _CORRECTIONS and "input" in item else ""
    return f"; did you mean {near!r}?" if near and re.fullmatch(pattern, near) else ""


def _got(item: Item) -> str:
    if item["type"] == "missing":
        return ", got none"
    if item["type"] == "json_invalid":
        return f", got text that is not JSON: {(item.get('ctx') or {}).get('error', 'it cannot be read')}"
    if "actual_length" in (item.get("ctx") or {}):
        return f", got {item['ctx']['actual_length']}"
    if "input" not in item:
        return ""
    got = item["input"]
    if isinstance(got, str):
        got = got[:120]
    shown = repr(got) if isinstance(got, str | int | bool | float) or got is None else _KINDS.get(type(got), "another")
    return f", got {shown[:120]}"


_KINDS: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list"}


def _path_of(steps: Sequence[Any]) -> tuple[Any, ...]:
    """Return the path of an error without pydantic's names for the members of a union."""
    return tuple(step for step in steps if not (isinstance(step, str) and ("[" in step or step in _MARKS)))


_MARKS = ("constrained-str", "constrained-int", "str", "int", "float", "bool", "none")


def _where(path: tuple[Any, ...], item: Item) -> str:
    """Return the path as text: `roles` rather than `roles.0`, since the message shows the malformed text."""
    if len(path) == 2 and isinstance(path[-1], int) and isinstance(item.get("input"), str) and item["input"]:
        path = path[:-1]
    return ".".join(str(step)[:_SHOWN] for step in path) or "value"
