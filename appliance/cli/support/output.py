"""What people and programs read: data on stdout, prose on stderr, and nothing that could drive a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click


def plain(value: object) -> str:
    """One line of text; control characters are shown, not obeyed, since names and texts come from others."""
    text = "-" if value is None else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(*lines: str) -> None:
    """Prose: on stderr, so that stdout holds data alone."""
    for line in lines:
        click.echo(line, err=True)


def print_line(text: str) -> None:
    click.echo(text)


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns by spaces, no boxes: it can be read aloud, cut with awk and pasted into a letter."""
    lines = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *lines]) for i in range(len(headers))]
    for line in [list(headers), *lines]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_facts(facts: Iterable[tuple[str, object]], *, err: bool = False) -> None:
    """`label: value` lines, the values below one another; a text of several lines is indented, a mapping one line."""
    listed = [(label, _one_line(value) if isinstance(value, Mapping) else value) for label, value in facts]
    width = max((len(label) for label, _ in listed), default=0) + 1
    for label, value in listed:
        first, *rest = str("-" if value is None else value).splitlines() or [""]
        click.echo(f"{label + ':':<{width}}  {plain(first)}".rstrip(), err=err)
        for line in rest:
            click.echo(f"{'':<{width}}  {plain(line)}", err=err)


def _one_line(value: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {found}" for key, found in value.items())


def print_bytes(data: bytes) -> None:
    """Exactly these bytes; where a person's terminal is, only text."""
    if sys.stdout.isatty():
        click.echo(data.decode("utf-8", "backslashreplace"))
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
