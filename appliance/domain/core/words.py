"""What is wrong with a value, in plain words: an unknown word, a text of another form, a number out of bounds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import StringConstraints

MOST_LISTED = 12
"""Words that are listed whole; of more only the nearest is named."""


def unknown_word(what: str, got: str, known: Collection[str], kind: str = "a known one") -> str:
    """`unit: expected one of claims, legal, got 'lgal'; did you mean legal?`"""
    listed = f"one of {', '.join(sorted(known))}" if 0 < len(known) <= MOST_LISTED else kind
    near = difflib.get_close_matches(got, sorted(known), n=1)
    return f"{what}: expected {listed}, got {got!r:.80}" + (f"; did you mean {near[0]}?" if near else "")


FORMS: dict[str, str] = {}
"""A text's form as people say it, by the pattern that checks it."""
_CORRECTIONS: dict[str, Callable[[str], str]] = {}


def form(pattern: str, words: str, correct: Callable[[str], str] | None = None) -> StringConstraints:
    """A text of this pattern; `words` say to people what it is, as no message shows a pattern. `correct`: what somebody
    may have meant who typed another."""
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


def expected_of(item: Item) -> str:
    """What was expected, in plain words: neither a pattern nor pydantic's own."""
    kind, context = str(item["type"]), item.get("ctx") or {}
    if kind == "string_pattern_mismatch":
        return FORMS.get(str(context["pattern"]), "text of the form that the documentation gives")
    if kind in _BOUNDS:
        return _BOUNDS[kind].format_map(context)
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    return _TYPES.get(kind) or str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid ")


def problems(items: Iterable[Item], *, unknown: str = "expected no member of this name") -> Iterator[str]:
    """Each of pydantic's errors as `where: expected X`; what failed as each of several kinds is one of them."""
    found: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        found.setdefault(_place(item["loc"]), []).append(item)
    for place, those in found.items():
        # A list whose members do not fit is said to be too short, too.
        inner = any(len(other) > len(place) and other[: len(place)] == place for other in found)
        if inner and all(item["type"] == "too_short" for item in those):
            continue
        yield f"{_where(place, those[0])}: {_problem(those, unknown)}"


def _problem(those: list[Item], unknown: str) -> str:
    first = those[0]
    if first["type"] == "value_error":
        return str((first.get("ctx") or {}).get("error") or first["msg"])
    if first["type"] == "extra_forbidden":
        return unknown
    return f"expected {' or '.join(dict.fromkeys(expected_of(item) for item in those))}{_got(first)}{_suggest(first)}"


def _suggest(item: Item) -> str:
    pattern = str((item.get("ctx") or {}).get("pattern"))
    near = _CORRECTIONS[pattern](str(item["input"])) if pattern in _CORRECTIONS and "input" in item else ""
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
    shown = repr(got) if isinstance(got, str | int | bool | float) or got is None else _KINDS.get(type(got), "another")
    return f", got {shown[:120]}"


_KINDS: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list"}


def _place(steps: Sequence[Any]) -> tuple[Any, ...]:
    """Without pydantic's names for the kinds of a union."""
    return tuple(step for step in steps if not (isinstance(step, str) and ("[" in step or step in _MARKS)))


_MARKS = ("constrained-str", "constrained-int", "str", "int", "float", "bool", "none")


def _where(place: tuple[Any, ...], item: Item) -> str:
    """`roles` rather than `roles.0`, where the text that does not fit is shown."""
    if len(place) == 2 and isinstance(place[-1], int) and isinstance(item.get("input"), str) and item["input"]:
        place = place[:-1]
    return ".".join(map(str, place)) or "value"
