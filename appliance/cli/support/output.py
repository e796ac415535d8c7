"""Output for people and programs: data on stdout, prose on stderr, without terminal control characters."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

import click

from appliance.formats.core.text import is_visible
from appliance.formats.core.timestamp import parse_end, parse_moment, parse_point

T = TypeVar("T")

GAP = 2
"""Spaces between two columns."""
FLOORS = (24, 12)
"""Minimum characters of a shortened column, in the first and in the second attempt."""
_DIGEST = re.compile(r"(?:sha256:|hmac-sha256:)?([0-9a-f]{12})[0-9a-f]{4,}")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}):[0-9]{2}(?:\.[0-9]+)?Z")
CUT = "…"
"""End of a shortened cell."""


def fit(lines: Sequence[Sequence[str]], limit: int, least: Sequence[str] = ()) -> list[list[str]]:
    """Return the lines, the first of which are the headers, shortened to `limit` columns as far as possible.

    Digests become 12 characters and times minutes. If that is not enough, the columns of `least` are shortened, then
    the others, from the last backwards: empty columns are left out, long cells are cut, and finally columns are left
    out. The first column stays whole.
    """
    table = [list(line) for line in lines]
    if _total(table) <= limit:
        return table
    table = [table[0], *([_TIME.sub(r"\1Z", _DIGEST.sub(r"\1", cell)) for cell in line] for line in table[1:])]
    others = [header for header in reversed(table[0][1:]) if header not in least]
    for order in (least, others):
        table = _shorten(table, limit, order)
    return table


def fit_wrapped(lines: Sequence[Sequence[str]], limit: int, least: Sequence[str] = ()) -> list[list[str]]:
    """Return the lines as `fit` does, but wrap the cells of the last column."""
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


def _shorten(table: list[list[str]], limit: int, order: Sequence[str]) -> list[list[str]]:
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
    """Return the width of each column."""
    return [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]


def _total(lines: Sequence[Sequence[str]]) -> int:
    """Return the width of the longest line, without padding of the last cell."""
    sizes = widths(lines)
    return sum(sizes) + GAP * (len(sizes) - 1)


def _cut(cell: str, size: int) -> str:
    return cell if len(cell) <= size else f"{cell[: size - 1]}{CUT}"


DEFAULT_COLUMNS = 80
_INDENT = 4
_LEAST_VALUE = 20
_WIDE = "appliance.wide"


def plain(value: object) -> str:
    """Return a value as one line of text with control characters escaped, because names and texts come from others."""
    text = "-" if value is None else str(value)
    return "".join(c if is_visible(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain_lines(text: str) -> str:
    """Return a text of several lines with control characters escaped."""
    return "".join(c if c in "\n\t" else plain(c) for c in text)


def say(*lines: str) -> None:
    """Print prose on stderr."""
    for line in lines:
        click.echo(_plain_lines(line), err=True)


def say_narrowed() -> None:
    """Tell a unit's person that the service shows them a part of the log only."""
    say(
        "Only what concerns your unit is shown: its own entries, those that approved its adapters, and the site's "
        "policy and people (policy parameter units_read). An auditor can read everything."
    )


def print_line(text: str) -> None:
    """Print a line of data on stdout."""
    click.echo(_plain_lines(text))


def encode_json(value: Any, *, indent: int | None = None) -> str:
    """Return a JSON document in which control and invisible characters are escaped."""
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, default=_json_value)
    if is_visible(text.replace("\n", "")):
        return text
    return "".join(c if c == "\n" or is_visible(c) else json.dumps(c)[1:-1] for c in text)


def _json_value(value: object) -> Any:
    """Return a model or dataclass inside a document as JSON has it."""
    from appliance.api.wire import json_value

    return json_value(value)


def print_json(value: Any) -> None:
    """Print a JSON document on stdout."""
    click.echo(encode_json(value, indent=2))


def disable_shortening() -> None:
    """Switch off shortening and wrapping for this command, for `--wide`."""
    click.get_current_context().meta[_WIDE] = True


def width(stream: TextIO) -> int | None:
    """Return the columns of a line; None with `--wide` or without a terminal, so that grep and awk get whole lines."""
    context = click.get_current_context(silent=True)
    if not stream.isatty() or (context is not None and context.meta.get(_WIDE)):
        return None
    return shutil.get_terminal_size((DEFAULT_COLUMNS, 24)).columns


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    least: Sequence[str] = (),
    wraps: bool = False,
    err: bool = False,
    empty: str = "",
) -> None:
    """Print columns separated by spaces, without boxes.

    A table that is wider than the terminal is shortened, first in the columns of `least`, in their order. With `wraps`,
    the last column is wrapped instead of cut. Without rows, `empty` is printed on stderr.
    """
    lines = [[plain(cell) for cell in row] for row in rows]
    if not lines and empty:
        say(empty)
    shown, limit = [list(headers), *lines], width(sys.stderr if err else sys.stdout)
    if limit is None:
        cut = shown
    elif wraps:
        cut = fit_wrapped(shown, limit, least)
    else:
        cut = fit(shown, limit, least)
    sizes = widths(cut)
    for line in cut:
        click.echo("  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip(), err=err)
    if cut != shown:
        say("Columns were shortened to the terminal's width: --wide shows all of them.")


def print_facts(facts: Iterable[tuple[str, object]], *, err: bool = False) -> None:
    """Print `label: value` lines with the values aligned. A mapping becomes one line.

    A value that is wider than the terminal is wrapped and never cut.
    """
    listed = [(plain(label), _one_line(value) if isinstance(value, Mapping) else value) for label, value in facts]
    margin, limit = max((len(label) for label, _ in listed), default=0) + 3, width(sys.stderr if err else sys.stdout)
    for label, value in listed:
        lines = [plain(line) for line in str("-" if value is None else value).splitlines()] or [""]
        for line in _beside(f"{label}:", lines, margin, limit):
            click.echo(line.rstrip(), err=err)


def _beside(label: str, lines: Sequence[str], margin: int, limit: int | None) -> Iterator[str]:
    """Yield the label and the lines, wrapped. A word that is too wide beside the label goes below it."""
    longest = max((len(word) for line in lines for word in line.split(" ")), default=0)
    if limit is not None and margin + longest > limit:
        yield label
        label, margin = "", len(label) - len(label.lstrip()) + _INDENT
    for line in lines:
        for part in [line] if limit is None else _wrap(line, max(limit - margin, _LEAST_VALUE)) or [""]:
            yield f"{label:<{margin}}{part}"
            label = ""


def _wrap(line: str, size: int) -> list[str]:
    """Return a line wrapped between words. A word longer than a line is broken."""
    return [line] if len(line) <= size else textwrap.wrap(line, size, break_on_hyphens=False)


def print_result(as_json: bool, value: Any, facts: Iterable[tuple[str, object]] | None = None) -> None:
    """Print the value as JSON, or else the facts. Without facts, print the fields of the value."""
    if as_json:
        print_json(value)
    else:
        print_facts([(name.replace("_", " "), field) for name, field in value.items()] if facts is None else facts)


def print_rows(
    as_json: bool,
    rows: Sequence[T],
    headers: Sequence[str],
    cells: Callable[[T], Sequence[object]],
    *,
    least: Sequence[str] = (),
    wraps: bool = False,
    empty: str = "",
) -> None:
    """Print the rows as JSON, or else as a table with the cells of each row."""
    if as_json:
        print_json(rows)
    else:
        print_table(headers, map(cells, rows), least=least, wraps=wraps, empty=empty)


def print_text(text: str, indent: str = "", *, err: bool = False) -> None:
    """Print a wrapped paragraph with its later lines indented."""
    limit = width(sys.stderr if err else sys.stdout)
    if limit is None:
        click.echo(_plain_lines(text), err=err)
        return
    for line in textwrap.wrap(text, limit, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False):
        click.echo(plain(line), err=err)


def _one_line(value: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {found}" for key, found in value.items())


def print_bytes(data: bytes) -> None:
    """Print exactly these bytes; at a terminal, as escaped text."""
    if sys.stdout.isatty():
        click.echo(_plain_lines(data.decode("utf-8", "backslashreplace")))
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


__all__ = ["END_HELP", "PAST_HELP", "parse_end", "parse_moment", "parse_point"]

PAST_HELP = "2026-11-24 (a date), 2026-11-24T10:30Z (a time with its zone), now, or 90m, 2h, 7d, 4w ago."
"""Help text for an option that takes a time in the past."""
END_HELP = "2026-11-24 (to the day's end), 2026-11-24T10:30Z (a time with its zone), or 90m, 2h, 7d, 4w from now."
"""Help text for an option that takes a time in the future."""
