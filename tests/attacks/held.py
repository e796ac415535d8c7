"""The real service, whose responses to units do not go on while the file `hold` is in its home.

A response gives its first pieces at once. What the engine sends after them waits until the file is gone; an error that
ends the response does not wait. So a test can let something happen in the middle of a response.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from appliance.cli.main import main
from appliance.workflows.core.context import Frame
from appliance.workflows.serving.engine import EngineProcess, TakeFrame

HOLD = "hold"
PIECES = 2


class HeldResponse:
    """Takes a response's frames in the place of `take_frame`, and keeps them while there is a file `hold`."""

    def __init__(self, take_frame: TakeFrame, hold: Path) -> None:
        self._take_frame, self._hold = take_frame, hold
        self._lock = threading.Lock()
        self._given = 0
        self._kept: list[Frame] = []

    def __call__(self, frame: Frame | None) -> None:
        with self._lock:
            if frame is None or frame["frame"] == "failure":
                self._kept.clear()
            elif self._kept or (self._given >= PIECES and self._hold.exists()):
                if not self._kept:
                    threading.Thread(target=self._wait, daemon=True).start()
                self._kept.append(frame)
                return
            self._given += 1
            self._take_frame(frame)

    def _wait(self) -> None:
        while self._hold.exists():
            time.sleep(0.02)
        with self._lock:
            for frame in self._kept:
                self._take_frame(frame)
            self._kept.clear()


def hold_responses(hold: Path) -> None:
    """From here on this process's responses do not go on while there is a file `hold`."""
    ask = EngineProcess.ask

    def held(self: EngineProcess, request: str, slot: str, kind: str, parameters: Frame, take_frame: TakeFrame) -> None:
        ask(self, request, slot, kind, parameters, HeldResponse(take_frame, hold))

    changed: Any = EngineProcess
    changed.ask = held


if __name__ == "__main__":
    hold_responses(Path(os.environ["APPLIANCE_HOME"]) / HOLD)
    sys.argv[1:1] = ["serve"]
    main()
