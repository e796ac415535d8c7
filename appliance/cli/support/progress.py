"""Progress displays: one redrawn line at a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from appliance.cli.support.output import plain, say
from appliance.formats.core.text import show_bytes

if TYPE_CHECKING:
    from appliance.api.data import ImportStatus
    from appliance.api.runs import Frame

COLUMNS = 79
"""Maximum columns of a redrawn line. In a terminal of 80, the last column would wrap the cursor."""
_BAR = 24
"""Maximum characters of a bar."""
_LEAST_BAR = 6
"""Minimum characters of a bar. A shorter one is left out."""
_REDRAW_S = 0.1
"""Seconds between two drawings at a terminal."""
_LINE_S = 10.0
"""Seconds between two lines elsewhere."""


class ProgressMeter:
    """A count of `unit`s up to `total`, on stderr.

    Without a terminal, it prints a line at most every ten seconds, and the last one.
    """

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
        """Add to the count."""
        self.set(self.done + count)

    def set(self, done: int, note: str = "") -> None:
        """Set the count. `note` follows it in the line, such as the loss."""
        if self.done == 0 and done > 0:
            # The estimate begins at the first step, because the time before it was loading.
            self._began, self._begun_at = time.monotonic(), done
        self.done, self._note = done, note
        now = time.monotonic()
        if now - self._drawn >= (_REDRAW_S if self._moves else _LINE_S):
            self._drawn = now
            self._draw()

    def count_from_here(self) -> None:
        """Restart the estimate from now, because what is done so far arrived at once."""
        self._began, self._begun_at = time.monotonic(), self.done

    def close(self) -> None:
        """Draw the last state and end the line."""
        self._draw()
        if self._moves:
            self._stream.write("\n")
            self._stream.flush()

    def text(self) -> str:
        """Return the text, such as `trains: 12 of 80 steps, loss 0.61, about 3 min left`."""
        parts = [f"{self.label}: {_count(self.done, self.total, self.unit)}"]
        parts += [self._note] if self._note else []
        left = self.left_s()
        parts += [f"about {_duration(left)} left"] if left is not None and self.done < self.total else []
        return ", ".join(parts)

    def left_s(self) -> float | None:
        """Return the remaining seconds at the pace so far; None before the first progress."""
        counted = self.done - self._begun_at
        if counted <= 0:
            return None
        return (time.monotonic() - self._began) / counted * (self.total - self.done)

    def _draw(self) -> None:
        """Draw the line. The bar is shortened first, because a wrapped line cannot be redrawn."""
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
    """Return the text, cut to a line."""
    return text if len(text) <= COLUMNS else f"{text[: COLUMNS - 1]}…"


def _count(done: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return f"{show_bytes(done)} of {show_bytes(total)}"
    return f"{done} of {total} {unit}"


def _duration(seconds: float) -> str:
    whole = max(1, round(seconds))
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{round(whole / 60)} min"
    return f"{whole / 3600:.1f} h"


class Display:
    """The progress of one run: its state as text, a meter of steps and a meter of evaluated rows."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._status = ""
        self._validation = ""
        self._is_live = False
        """True once the frames from before the command have been taken."""
        self._meter: ProgressMeter | None = None
        self._set: str | None = None
        """Task or metric that the adapter is evaluated on. Its number of rows is not known in advance."""

    def take(self, status: str, frames: list[Frame]) -> None:
        """Show a status and new frames."""
        for frame in frames:
            self._frame(frame)
        if self._meter is not None and not self._is_live:
            self._meter.count_from_here()
        self._is_live = True
        if status != self._status:
            self._status = status
            if status == "waiting":
                say(f"{self.run}: waits for a second person: appliance run authorise {self.run}")
            elif status == "queued":
                say(f"{self.run}: waits for its turn.")
            elif status not in ("running", "trained"):
                self.close()
                say(f"{self.run}: {status}.")

    def _frame(self, frame: Frame) -> None:
        kind = frame.frame
        if kind == "started":
            self._started(frame)
        elif kind == "waiting":
            self.close()
            say(f"{self.run}: {plain(frame.state)}.")
        elif kind == "step":
            if frame.validation_loss is not None:
                self._validation = f", validation {float(frame.validation_loss):.3f}"
            margin = "" if frame.margin is None else f", margin {float(frame.margin):.3f}"
            loss = "private" if frame.loss is None else f"loss {float(frame.loss):.3f}"
            note = f"{loss}{margin}{self._validation}, {_pace(frame)}"
            self._measure("trains", frame.steps, "steps").set(frame.step, note)
            if frame.spike is not None:
                rows = ", ".join(map(str, frame.spike))
                self.close()
                say(f"{self.run}: the loss spiked at step {frame.step} to {loss.split()[-1]}, rows {rows}.")
        elif kind == "progress":
            self._measure("evaluates", frame.total, "rows").set(frame.done, _pace(frame))
        elif kind == "evaluating" and frame.set != self._set:
            self._set = frame.set
            self.close()
            say(f"{self.run}: is evaluated on {plain(str(self._set))}.")

    def _started(self, frame: Frame) -> None:
        attempts, layers = frame.sandbox_probes, frame.layers
        missing = sorted(name for name, is_active in layers.items() if not is_active)
        without = f", without {', '.join(missing)}, which policy accepts" if missing else ""
        refused = sum(result == "refused" for result in attempts.values())
        say(
            f"{self.run}: the worker is in its sandbox: {sum(map(bool, layers.values()))} layers{plain(without)}; "
            f"{refused} of {len(attempts)} attempts to break out were refused."
        )

    def _measure(self, label: str, total: int, unit: str) -> ProgressMeter:
        """Return the meter of this stage, and close the one before."""
        if self._meter is None or self._meter.label != label:
            self.close()
            self._meter = ProgressMeter(label, total, unit)
        return self._meter

    def close(self) -> None:
        """Close the current meter."""
        if self._meter is not None:
            self._meter.close()
            self._meter = None


def _pace(frame: Frame) -> str:
    seconds = float(frame.seconds)
    if frame.frame == "step" and frame.loss is None:
        return "pace not measured"
    return f"{frame.tokens / seconds:.0f} tokens a second" if seconds > 0 else "first step"


class ImportDisplay:
    """The progress of an import: seconds at a terminal, otherwise one line at its beginning."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._began = time.monotonic()
        self._is_begun = False

    def take(self, state: ImportStatus) -> None:
        """Show the state of the import."""
        if self._stream.isatty():
            passed = round(time.monotonic() - self._began)
            line = f"{plain(state.subject)}: the worker reads and checks it, {passed} s"
            self._stream.write(f"\r\x1b[K{cut_line(line)}")
            self._stream.flush()
        elif not self._is_begun:
            self._stream.write(f"{plain(state.subject)}: the worker reads and checks it.\n")
        self._is_begun = True

    def close(self) -> None:
        """End the line."""
        if self._is_begun and self._stream.isatty():
            self._stream.write("\n")
