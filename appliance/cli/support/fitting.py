"""A table that is too wide says less, by importance: never in JSON, and never with `--wide`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

GAP = 2
FLOORS = (24, 12)
"""Characters that a shortened column keeps: first as many, then as few."""
DIGEST_CHARACTERS = 12
_DIGEST = re.compile(r"(?:sha256:|hmac-sha256:)?([0-9a-f]{12})[0-9a-f]{4,}")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}):[0-9]{2}(?:\.[0-9]+)?Z")
CUT = "…"


def fit(lines: Sequence[Sequence[str]], limit: int, least: Sequence[str] = ()) -> list[list[str]]:
    """The lines, the first of which are the headers, within `limit` columns as far as that goes.

    Digests become 12 characters and times minutes. If that is not enough, the columns of `least` say less, and only
    then the others, from the last backwards: those without a value are left out, long cells are cut, and in the end
    columns are left out. The first column stays whole.
    """
    table = [list(line) for line in lines]
    if _total(table) <= limit:
        return table
    table = [table[0], *([_TIME.sub(r"\1Z", _DIGEST.sub(r"\1", cell)) for cell in line] for line in table[1:])]
    others = [header for header in reversed(table[0][1:]) if header not in least]
    for order in (least, others):
        table = _say_less(table, limit, order)
    return table


def fit_wrapped(lines: Sequence[Sequence[str]], limit: int, least: Sequence[str] = ()) -> list[list[str]]:
    """The lines as `fit` gives them, but for the last column: its cells go on in lines of their own."""
    if _total(lines) <= limit:
        return [list(line) for line in lines]
    last = max(len(line[-1]) for line in lines)
    table = fit([line[:-1] for line in lines], max(limit - GAP - min(last, FLOORS[0]), FLOORS[0]), least)
    room = max(limit - sum(widths(table)) - GAP * len(table[0]), FLOORS[1])
    found = []
    for line, (*_, text) in zip(table, lines, strict=True):
        first, *more = textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        found += [[*line, first], *([""] * len(line) + [part] for part in more)]
    return found


def _say_less(table: list[list[str]], limit: int, order: Sequence[str]) -> list[list[str]]:
    empty = [
        header
        for header in order
        if header in table[0] and all(line[table[0].index(header)] in ("-", "") for line in table[1:])
    ]
    table = _leave_out(table, limit, empty)
    for floor in FLOORS:
        for header in order:
            over = _total(table) - limit
            if over > 0 and header in table[0]:
                at = table[0].index(header)
                size = max(widths(table)[at] - over, floor, len(header))
                table = [[*line[:at], _cut(line[at], size), *line[at + 1 :]] for line in table]
    return _leave_out(table, limit, order)


def _leave_out(table: list[list[str]], limit: int, order: Sequence[str]) -> list[list[str]]:
    for header in order:
        if _total(table) > limit and header in table[0]:
            at = table[0].index(header)
            table = [line[:at] + line[at + 1 :] for line in table]
    return table


def widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]


def _total(lines: Sequence[Sequence[str]]) -> int:
    """Of the longest line: what pads its last cell is not printed."""
    sizes = widths(lines)
    return sum(sizes) + GAP * (len(sizes) - 1)


def _cut(cell: str, size: int) -> str:
    return cell if len(cell) <= size else f"{cell[: size - 1]}{CUT}"
