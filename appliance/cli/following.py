"""What is under way, as its frames come in: a run's stages, an import's."""

from __future__ import annotations

from typing import Any

from appliance.cli.output import plain, say
from appliance.cli.progress import Meter


class Display:
    """One run: its state in prose, a meter for steps and one for evaluated rows."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._status = ""
        self._meter: Meter | None = None

    def take(self, status: str, frames: list[dict[str, Any]]) -> None:
        for frame in frames:
            self._frame(frame)
        if status != self._status:
            self._status = status
            if status == "queued":
                say(f"{self.run}: waits for its turn.")
            elif status not in ("running", "trained"):
                self.close()
                say(f"{self.run}: {status}.")

    def _frame(self, frame: dict[str, Any]) -> None:
        kind = frame.get("frame")
        if kind == "started":
            self._started(frame)
        elif kind == "step":
            note = f"loss {float(frame['loss']):.3f}, {_pace(frame)}"
            self._measure("trains", int(frame["steps"]), "steps").set(int(frame["step"]), note)
        elif kind == "progress":
            self._measure("evaluates", int(frame["total"]), "answers").set(int(frame["done"]))

    def _started(self, frame: dict[str, Any]) -> None:
        walls, layers = frame.get("walls") or {}, frame.get("layers") or {}
        missing = sorted(name for name, stands in layers.items() if not stands)
        without = f", without {', '.join(missing)}, which policy accepts" if missing else ""
        say(
            f"{self.run}: the worker stands behind {sum(map(bool, layers.values()))} walls{plain(without)}; "
            f"it tried {len(walls)} ways out, and every one was refused."
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
    return f"{int(frame.get('tokens') or 0) / seconds:.0f} tokens a second" if seconds > 0 else "first step"


def show_import(state: dict[str, Any]) -> None:
    """A line for each new stage that an import tells of."""
    for frame in state["progress"]:
        told = frame.get("stage") or frame.get("message")
        if told:
            say(f"{state['subject']}: {plain(told)}")
