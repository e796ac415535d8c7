"""The real service, whose every second request is answered from the slot that was loaded last, whoever's it is."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from appliance.workflows.core.context import Frame
from appliance.workflows.serving.engine import Engine, Hear
from scripts.soaking import faulty


def main() -> None:
    load, ask, number, last = Engine.load, Engine.ask, count(), [""]

    def remember(self: Engine, slot: str, files: Mapping[str, bytes]) -> None:
        load(self, slot, files)
        last[0] = slot

    def misroute(self: Engine, request: str, slot: str, kind: str, parameters: Frame, hear: Hear) -> None:
        ask(self, request, last[0] if next(number) % 2 else slot, kind, parameters, hear)

    changed: Any = Engine
    changed.load, changed.ask = remember, misroute
    faulty.main()


if __name__ == "__main__":
    main()
