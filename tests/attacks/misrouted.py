"""The real service with a defect: every second request is answered from the slot that was loaded last."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from appliance.workflows.core.context import Frame
from appliance.workflows.serving.engine import EngineProcess, TakeFrame
from scripts.soaking import faulty


def main() -> None:
    load, ask, number, last = EngineProcess.load, EngineProcess.ask, count(), [""]

    def remember(self: EngineProcess, slot: str, files: Mapping[str, bytes]) -> None:
        load(self, slot, files)
        last[0] = slot

    def misroute(
        self: EngineProcess, request: str, slot: str, kind: str, parameters: Frame, take_frame: TakeFrame
    ) -> None:
        ask(self, request, last[0] if next(number) % 2 else slot, kind, parameters, take_frame)

    changed: Any = EngineProcess
    changed.load, changed.ask = remember, misroute
    faulty.main()


if __name__ == "__main__":
    main()
