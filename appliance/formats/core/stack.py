"""The places in the code of an exception, as one line of the log: classes, files, lines and functions.

`KeyError serve.py:12 act, serve.py:30 run; ValueError retry.py:8 wait` has two exceptions, each with its frames, the
innermost last. The order is that of a traceback: a cause is before what it led to, and the members of a group are after
the group. If there is no room for all, the last ones are left out; the first cause is the most useful one. Messages and
notes are left out, because they can quote a text.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

MOST_FRAMES = 20
"""Most frames of one exception: the innermost ones."""
MOST_CHARACTERS = 4_000
"""Most characters of a line. `journalctl -o json` leaves out a field of more than 4,096 bytes."""
_DEEPEST = 10
"""Most exceptions that follow each other, or lie in groups inside each other."""
_OTHER = re.compile(r"[^A-Za-z0-9_.<>-]")
_WORD = r"[A-Za-z0-9_.<>-]{1,80}"
_FRAME = rf"{_WORD}:[0-9]{{1,9}} {_WORD}"
_EXCEPTION = re.compile(rf"({_WORD})(?: ({_FRAME}(?:, {_FRAME})*))?")


class StackOfException(NamedTuple):
    """An exception of a line: its class, and its frames as `FILE:LINE FUNCTION`, the innermost last."""

    name: str
    frames: tuple[str, ...]


def encode_stack(error: BaseException) -> str:
    """Encode the places in the code of an exception, of those that it followed, and of the members of a group."""
    found = traceback.TracebackException(
        type(error), error, error.__traceback__, limit=-MOST_FRAMES, lookup_lines=False, compact=True
    )
    text = next(parts := _encode(found, _DEEPEST))
    for part in parts:
        if len(text) + len(part) + 2 > MOST_CHARACTERS:
            break
        text = f"{text}; {part}"
    return text


def _encode(found: traceback.TracebackException, deeper: int) -> Iterator[str]:
    earlier = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    if earlier is not None and deeper:
        yield from _encode(earlier, deeper - 1)
    kind = found.exc_type
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    frames = (f"{_word(PurePath(one.filename).name)}:{one.lineno or 0} {_word(one.name)}" for one in found.stack)
    yield f"{_word(name)} {', '.join(frames)}".rstrip()
    for member in (found.exceptions or ()) if deeper else ():
        yield from _encode(member, deeper - 1)


def _word(text: str) -> str:
    return _OTHER.sub("_", text)[:80] or "_"


def parse_stack(text: str) -> list[StackOfException]:
    """Return the exceptions of a line, or none if the text has another form."""
    found = []
    for part in text.split("; "):
        match = _EXCEPTION.fullmatch(part)
        if match is None:
            return []
        found.append(StackOfException(match[1], tuple(match[2].split(", ")) if match[2] else ()))
    return found
