"""What is under way, as its frames come in: a run's stages, an import's."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from appliance.cli.support.output import plain, say
from appliance.cli.support.progress import Meter, cut_line


class Display:
    """One run: its state in prose, a meter for steps and one for evaluated rows."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._status = ""
        self._validation = ""
        self._is_live = False
        """Whether the frames that were there before somebody followed have been taken."""
        self._meter: Meter | None = None
        self._set: str | None = None
        """The task or metric that is judged on; how many rows it has is not known before."""

    def take(self, status: str, frames: list[dict[str, Any]]) -> None:
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

    def _frame(self, frame: dict[str, Any]) -> None:
        kind = frame.get("frame")
        if kind == "started":
            self._started(frame)
        elif kind == "waiting":
            self.close()
            say(f"{self.run}: {plain(str(frame['state']))}.")
        elif kind == "step":
            if frame.get("validation_loss") is not None:
                self._validation = f", validation {float(frame['validation_loss']):.3f}"
            margin = "" if frame.get("margin") is None else f", margin {float(frame['margin']):.3f}"
            loss = "private" if frame["loss"] is None else f"loss {float(frame['loss']):.3f}"
            note = f"{loss}{margin}{self._validation}, {_pace(frame)}"
            self._measure("trains", int(frame["steps"]), "steps").set(int(frame["step"]), note)
            if frame.get("spike") is not None:
                rows = ", ".join(str(int(row)) for row in frame["spike"])
                self.close()
                say(f"{self.run}: the loss spiked at step {int(frame['step'])} to {loss.split()[-1]}, rows {rows}.")
        elif kind == "progress":
            self._measure("evaluates", int(frame["total"]), "rows").set(int(frame["done"]), _pace(frame))
        elif kind == "judging" and frame["set"] != self._set:
            self._set = frame["set"]
            self.close()
            say(f"{self.run}: is judged on {plain(str(self._set))}.")

    def _started(self, frame: dict[str, Any]) -> None:
        walls, layers = frame.get("walls") or {}, frame.get("layers") or {}
        missing = sorted(name for name, stands in layers.items() if not stands)
        without = f", without {', '.join(missing)}, which policy accepts" if missing else ""
        refused = sum(result == "refused" for result in walls.values())
        say(
            f"{self.run}: the worker is in its sandbox: {sum(map(bool, layers.values()))} layers{plain(without)}; "
            f"{refused} of {len(walls)} attempts to break out were refused."
        )

    def _measure(self, label: str, total: int, unit: str) -> Meter:
        """The meter of this stage; the one before is closed."""
        if self._meter is None or self._meter.label != label:
            self.close()
            self._meter = Meter(label, total, unit)
        return self._meter

    def close(self) -> None:
        if self._meter is not None:
            self._meter.close()
            self._meter = None


def _pace(frame: dict[str, Any]) -> str:
    seconds = float(frame.get("seconds") or 0)
    if frame.get("loss", 0) is None:
        return "no pace told"
    return f"{int(frame.get('tokens') or 0) / seconds:.0f} tokens a second" if seconds > 0 else "first step"


class ImportDisplay:
    """An import: a line that counts the seconds on a terminal, one line when it begins anywhere else."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._began = time.monotonic()
        self._told = False

    def take(self, state: dict[str, Any]) -> None:
        if self._stream.isatty():
            passed = round(time.monotonic() - self._began)
            line = f"{plain(state['subject'])}: the worker reads and checks it, {passed} s"
            self._stream.write(f"\r\x1b[K{cut_line(line)}")
            self._stream.flush()
        elif not self._told:
            self._stream.write(f"{plain(state['subject'])}: the worker reads and checks it.\n")
        self._told = True

    def close(self) -> None:
        if self._told and self._stream.isatty():
            self._stream.write("\n")
