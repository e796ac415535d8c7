"""How far something is: one line that moves on a terminal, plain lines now and then anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TextIO

COLUMNS = 79
"""Of a line that is drawn over: in a terminal of 80 the last one would move the cursor on."""
_BAR = 24
_LEAST_BAR = 6
_REDRAW_S = 0.1
_LINE_S = 10.0


class Meter:
    """Counts `unit`s up to `total`, on stderr. Without a terminal a line at most every ten seconds, and the last."""

    def __init__(self, label: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._note = ""
        self._stream = sys.stderr if stream is None else stream
        self._moves = self._stream.isatty()
        self._began = time.monotonic()
        self._begun_at = 0
        self._drawn = 0.0 if self._moves else self._began
        self._open = False

    def advance(self, count: int) -> None:
        self.set(self.done + count)

    def set(self, done: int, note: str = "") -> None:
        """`note` follows the count: the loss, a name."""
        if self.done == 0 and done > 0:
            # The estimate counts from the first step on: what came before was loading.
            self._began, self._begun_at = time.monotonic(), done
        self.done, self._note = done, note
        now = time.monotonic()
        if now - self._drawn >= (_REDRAW_S if self._moves else _LINE_S):
            self._drawn = now
            self._draw()

    def count_from_here(self) -> None:
        """The estimate counts from now on: what is done came in at once, as where somebody follows again."""
        self._began, self._begun_at = time.monotonic(), self.done

    def close(self) -> None:
        """Draws the end and leaves the line."""
        self._draw()
        if self._moves:
            self._stream.write("\n")
            self._stream.flush()

    def text(self) -> str:
        """`trains: 12 of 80 steps, loss 0.61, about 3 min left`"""
        parts = [f"{self.label}: {_count(self.done, self.total, self.unit)}"]
        parts += [self._note] if self._note else []
        left = self.left_s()
        parts += [f"about {_duration(left)} left"] if left is not None and self.done < self.total else []
        return ", ".join(parts)

    def left_s(self) -> float | None:
        """Seconds to go at the pace so far; None while there is none."""
        counted = self.done - self._begun_at
        if counted <= 0:
            return None
        return (time.monotonic() - self._began) / counted * (self.total - self.done)

    def _draw(self) -> None:
        """In a terminal the bar gives way to the text: a line that wraps cannot be drawn over."""
        if not self._moves:
            self._stream.write(f"{cut_line(self.text())}\n")
        else:
            text = self.text()
            size = min(_BAR, COLUMNS - len(text) - 3)
            filled = size * min(self.done, self.total) // max(self.total, 1)
            bar = f"[{'#' * filled}{'.' * (size - filled)}] " if size >= _LEAST_BAR else ""
            self._stream.write(f"\r\x1b[K{cut_line(bar + text)}")
        self._stream.flush()


def cut_line(text: str) -> str:
    return text if len(text) <= COLUMNS else f"{text[: COLUMNS - 1]}…"


def _count(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return f"{show_bytes(done)} of {show_bytes(total)}"
    return f"{done} of {total} {unit}"


def show_bytes(count: int) -> str:
    """Decimal units, as disks and networks are sold."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable: GB is the last unit")


def _duration(seconds: float) -> str:
    whole = max(1, round(seconds))
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{round(whole / 60)} min"
    return f"{whole / 3600:.1f} h"
