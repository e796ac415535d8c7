"""Items: the results of base and adapter on each row of an evaluation, in items.jsonl of a sealed folder.

Each line is the canonical JSON of one item, without the row's text; lines are sorted by the row's digest. Every test,
interval and verdict is computed from these lines alone. The format is described in docs/formats/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from appliance.domain.core.names import Canonical, validate_json, write_canonical
from appliance.domain.core.words import form
from appliance.domain.evaluation.statistics.calibration import WHOLE
from appliance.errors import BadInput, Tampered, TooLarge

ITEMS_FILE = "items.jsonl"
SCALE = 1_000_000
"""A score of 1, in millionths."""
MOST_SCORE = 10**12
"""Largest absolute value of a score, in millionths."""
MOST_ITEMS = 100_000
MOST_BYTES = 128 * 1024 * 1024
"""Largest size of a file of items, in bytes."""

KeyedDigest = Annotated[str, form(r"^[0-9a-f]{64}$", "a keyed digest: 64 hexadecimal digits")]
ScoreName = Annotated[str, form(r"^[a-z][a-z0-9_]{0,31}$", "a score's name such as token_f1")]
Score = Annotated[int, Field(ge=-MOST_SCORE, le=MOST_SCORE)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]

LENGTHS = (("short", 64), ("medium", 256), ("long", 1024))
"""Length classes, each with the most tokens of a prompt in it; longer prompts are `longest`."""


class Answer(Canonical):
    """The result of one model on one row. `right`, `label` and `confidence` are null where the task has none.

    `confidence`: the probability of `label`, in millionths. `scores`: by name, in millionths.
    """

    confidence: int | None = Field(ge=0, le=WHOLE)
    label: Word | None
    right: bool | None
    scores: dict[ScoreName, Score] = Field(max_length=16)


class Slices(Canonical):
    """The subgroups that a row belongs to. `column` is the value of the column that its import named."""

    column: Word | None
    label: Word | None
    length: Word | None


class EvaluationItem(Canonical):
    """The results on one row.

    `cluster` is a keyed digest that rows which belong together have in common; null where the row has none.
    """

    adapter: Answer
    base: Answer
    cluster: KeyedDigest | None
    row: KeyedDigest
    slices: Slices

    @model_validator(mode="after")
    def _check_same_measures(self) -> Self:
        adapter, base = kinds_of(self.adapter), kinds_of(self.base)
        if adapter != base:
            raise ValueError(f"adapter: expected what base has ({', '.join(base)}), got {', '.join(adapter)}")
        return self


def kinds_of(answer: Answer) -> tuple[str, ...]:
    """Return the measures of an answer: `right`, `confidence`, and the names of its scores."""
    known = [name for name in ("right", "confidence") if getattr(answer, name) is not None]
    return (*known, *sorted(answer.scores))


def classify_length(tokens: int) -> str:
    """Return the length class of a prompt with this number of tokens."""
    return next((name for name, most in LENGTHS if tokens <= most), "longest")


def encode_items(items: Iterable[EvaluationItem]) -> bytes:
    """Encode the file, sorted by row.

    Raises: BadInput for duplicate rows, for rows with other measures than the first, or for no or too many items.
    """
    ordered = tuple(sorted(items, key=lambda item: item.row))
    _check(ordered, ITEMS_FILE)
    return b"".join(write_canonical(item) + b"\n" for item in ordered)


def parse_items(data: bytes, what: str = ITEMS_FILE) -> tuple[EvaluationItem, ...]:
    """Parse a file of items. Lines must be canonical, sorted, unique by row, and have the same measures.

    Raises: TooLarge for too many bytes or items.
    """
    if len(data) > MOST_BYTES:
        raise TooLarge(f"{what}: expected at most {MOST_BYTES} bytes, got {len(data)}")
    lines = data.split(b"\n")
    if lines.pop():
        raise BadInput(f"{what}: expected whole lines, got a last one without its end")
    if len(lines) > MOST_ITEMS:
        raise TooLarge(f"{what}: expected at most {MOST_ITEMS} items, got {len(lines)}")
    items = tuple(_parse(line, f"{what}, line {number}") for number, line in enumerate(lines, start=1))
    _check(items, what)
    return items


def check_rows(items: Iterable[EvaluationItem], expected: Iterable[str], what: str = ITEMS_FILE) -> None:
    """Check that the items are those of these rows, by keyed digest: none is missing, and none is added.

    Raises: Tampered where they differ.
    """
    ours, rows = {item.row for item in items}, set(expected)
    if ours != rows:
        raise Tampered(
            f"{what}: expected the {len(rows)} rows of the set, got {len(rows - ours)} of them missing and "
            f"{len(ours - rows)} that are not of the set"
        )


def _parse(line: bytes, what: str) -> EvaluationItem:
    item = validate_json(EvaluationItem, line, what)
    if write_canonical(item) != line:
        raise BadInput(f"{what}: expected canonical JSON (RFC 8785) with every field, got another encoding of it")
    return item


def _check(items: tuple[EvaluationItem, ...], what: str) -> None:
    if not 1 <= len(items) <= MOST_ITEMS:
        raise BadInput(f"{what}: expected 1 to {MOST_ITEMS} items, got {len(items)}")
    for number, (before, item) in enumerate(pairwise(items), start=2):
        if item.row <= before.row:
            fault = "the same row" if item.row == before.row else "a lower one"
            raise BadInput(f"{what}, line {number}, row: expected one above {before.row[:12]}, got {fault}")
    first = kinds_of(items[0].base)
    for number, item in enumerate(items, start=1):
        if kinds_of(item.base) != first:
            got = ", ".join(kinds_of(item.base)) or "nothing"
            raise BadInput(f"{what}, line {number}: expected {', '.join(first)} as in line 1, got {got}")
