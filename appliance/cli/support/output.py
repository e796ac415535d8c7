"""What people and programs read: data on stdout, prose on stderr, and nothing that could drive a terminal."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO

import click

from appliance.cli.support.fitting import fit, fit_wrapped, widths
from appliance.formats.core.visible import is_visible

DEFAULT_COLUMNS = 80
_INDENT = 4
_LEAST_VALUE = 20
_WIDE = "appliance.wide"


def plain(value: object) -> str:
    """One line of text; control characters are shown, not obeyed, since names and texts come from others."""
    text = "-" if value is None else str(value)
    return "".join(c if is_visible(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "".join(c if c in "\n\t" else plain(c) for c in text)


def say(*lines: str) -> None:
    """Prose: on stderr, so that stdout holds data alone."""
    for line in lines:
        click.echo(_plain_lines(line), err=True)


def print_line(text: str) -> None:
    click.echo(_plain_lines(text))


def encode_json(value: Any, *, indent: int | None = None) -> str:
    """One JSON document; what a terminal would obey, or not show, is written as JSON escapes it."""
    text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)
    if is_visible(text.replace("\n", "")):
        return text
    return "".join(c if c == "\n" or is_visible(c) else json.dumps(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    click.echo(encode_json(value, indent=2))


def say_wide() -> None:
    """From here on this command cuts and wraps nothing: `--wide`."""
    click.get_current_context().meta[_WIDE] = True


def width(stream: TextIO) -> int | None:
    """How many columns a line may have; None with `--wide`, and where no terminal is: grep and awk get whole lines."""
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
) -> None:
    """Columns by spaces, no boxes: it can be read aloud, cut with awk and pasted into a letter.

    A table that is wider than the terminal says less, first in the columns of `least`, the least important one first.
    `wraps`: the last column goes on in the next lines instead of being cut.
    """
    lines = [[plain(cell) for cell in row] for row in rows]
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
    """`label: value` lines, the values below one another; a text of several lines is indented, a mapping one line.

    A value that is wider than the terminal goes on in the next line: nothing of it is left out.
    """
    listed = [(plain(label), _one_line(value) if isinstance(value, Mapping) else value) for label, value in facts]
    margin, limit = max((len(label) for label, _ in listed), default=0) + 3, width(sys.stderr if err else sys.stdout)
    for label, value in listed:
        lines = [plain(line) for line in str("-" if value is None else value).splitlines()] or [""]
        for line in _beside(f"{label}:", lines, margin, limit):
            click.echo(line.rstrip(), err=err)


def _beside(label: str, lines: Sequence[str], margin: int, limit: int | None) -> Iterator[str]:
    """The label and the lines, wrapped; where a digest is too wide beside its label, it stands below it and whole."""
    longest = max((len(word) for line in lines for word in line.split(" ")), default=0)
    if limit is not None and margin + longest > limit:
        yield label
        label, margin = "", len(label) - len(label.lstrip()) + _INDENT
    for line in lines:
        for part in [line] if limit is None else _wrap(line, max(limit - margin, _LEAST_VALUE)) or [""]:
            yield f"{label:<{margin}}{part}"
            label = ""


def _wrap(line: str, size: int) -> list[str]:
    """Between words; a word that no line could hold, such as a key, is broken."""
    return [line] if len(line) <= size else textwrap.wrap(line, size, break_on_hyphens=False)


def print_text(text: str, indent: str = "", *, err: bool = False) -> None:
    """A paragraph: wrapped, its later lines indented."""
    limit = width(sys.stderr if err else sys.stdout)
    if limit is None:
        click.echo(_plain_lines(text), err=err)
        return
    for line in textwrap.wrap(text, limit, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False):
        click.echo(plain(line), err=err)


def _one_line(value: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {found}" for key, found in value.items())


def print_bytes(data: bytes) -> None:
    """Exactly these bytes; where a person's terminal is, only text."""
    if sys.stdout.isatty():
        click.echo(_plain_lines(data.decode("utf-8", "backslashreplace")))
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
