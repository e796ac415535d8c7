#!/usr/bin/env python3
"""Writes the arithmetic of the set `general` and puts the right choices of all its questions in balanced positions.

    scripts/shipped_sets.py

The other questions are written by people, in appliance/domain/evaluation/shipped/general.json itself. Running it again
changes nothing; a test holds the file against it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from appliance.domain.evaluation.statistics.resampling import draw_indices, stream_key  # noqa: E402

FILE = ROOT / "appliance" / "domain" / "evaluation" / "shipped" / "general.json"
SEED, COUNT = 1, 50
CHOICES = 4

Row = dict[str, Any]
STORIES = (
    ("Ben has {a} apples and buys {b} more. How many apples has he now?", "+"),
    ("A bus carries {a} people. At the next stop {b} get off. How many people are still on the bus?", "-"),
    ("A box holds {a} eggs. How many eggs are in {b} boxes?", "*"),
    ("{a} sweets are shared equally by {b} children. How many does each child get?", "/"),
)


def arithmetic() -> Iterator[Row]:
    """COUNT questions: plain sums, and as many short stories as come up."""
    asked: set[tuple[str, int, int]] = set()
    for number in range(COUNT):
        draw = iter(draw_indices(stream_key(SEED, "general/arithmetic"), number, 64, 1 << 20))
        sign = "+-*/"[number % 4]
        easy = number % 8 < 4
        first, second, right = _operands(sign, draw, easy)
        while (sign, first, second) in asked:
            first, second, right = _operands(sign, draw, easy)
        asked.add((sign, first, second))
        stories = [story for story, of in STORIES if of == sign]
        question = f"What is {first} {sign.replace('*', 'times').replace('/', 'divided by')} {second}?"
        said = f"{first} {sign} {second} = "
        if number % 5 == 4:
            question, said = stories[0].format(a=first, b=second), "The answer is "
        choices = [right]
        while len(choices) < CHOICES:
            other = right + (next(draw) % 21 - 10 if right > 20 else next(draw) % 9 - 4)
            if other > 0 and other not in choices:
                choices.append(other)
        yield {
            "kind": "arithmetic",
            "prompt": question,
            "choices": [f"{said}{choice}" for choice in choices],
            "right": 0,
        }


def _operands(sign: str, draw: Iterator[int], easy: bool) -> tuple[int, int, int]:
    """Two operands and the result, all above 0. `easy`: of one digit, as most are."""
    most = 8 if easy else 48
    first, second = 2 + next(draw) % most, 2 + next(draw) % most
    if sign == "+":
        return first, second, first + second
    if sign == "-":
        return first + second, second, first
    first, second = 2 + first % (4 if easy else 11), 2 + second % (4 if easy else 8)
    return (first, second, first * second) if sign == "*" else (first * second, second, first)


def place_choices(rows: list[Row]) -> list[Row]:
    """Put the right choice in each position equally often, in an order drawn by the seed, and the others, too."""
    key = stream_key(SEED, "general/positions")
    order = sorted(range(len(rows)), key=lambda number: draw_indices(key, number, 2, 1 << 20))
    positions = {row: place % CHOICES for place, row in enumerate(order)}
    placed = []
    for number, row in enumerate(rows):
        right = row["choices"][row["right"]]
        others = sorted(choice for choice in row["choices"] if choice != right)
        turn = draw_indices(key, len(rows) + number, 1, len(others))[0]
        others = others[turn:] + others[:turn]
        others.insert(positions[number], right)
        placed.append({**row, "choices": others, "right": positions[number]})
    return placed


def build(given: dict[str, Any]) -> bytes:
    """Return the set's file, from one that has the questions which people wrote."""
    written = [row for row in given["rows"] if row["kind"] != "arithmetic"]
    rows = place_choices(sorted([*written, *arithmetic()], key=lambda row: row["kind"]))
    head = {name: value for name, value in given.items() if name != "rows"}
    lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in rows)
    return (json.dumps(head, indent=2)[:-2] + ',\n  "rows": [\n' + lines + "\n  ]\n}\n").encode()


if __name__ == "__main__":
    FILE.write_bytes(build(json.loads(FILE.read_bytes())))
