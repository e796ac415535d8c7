"""The real service with short times and few descriptors, as the file `small.json` in its home sets."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.web.core import receiving, server
from appliance.web.people import middleware
from appliance.wiring import listening, serving

SMALL, CLOCK = "small.json", "clock"


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("a beat that nobody foresaw")


def read_clock(home: Path) -> float:
    """Return the seconds that have passed as a test says."""
    path = home / CLOCK
    return float(path.read_text()) if path.exists() else 0.0


@contextmanager
def serve_and_end_late(seconds: float, listener: server.Listener) -> Iterator[Callable[[], None]]:
    """Serve one listener in its own thread, whose end takes these seconds longer."""
    with server.serve_in_thread(listener) as end:

        def end_late() -> None:
            time.sleep(seconds)
            end()

        yield end_late


def main() -> None:
    settings = load_settings()
    said: dict[str, Any] = json.loads((settings.home / SMALL).read_text())
    if "descriptors" in said:
        resource.setrlimit(resource.RLIMIT_NOFILE, (said["descriptors"], said["descriptors"]))
    serving.IDLE_S = said.get("idle_s", serving.IDLE_S)
    if said.get("own_clock"):
        own_clock: Any = partial(server.Activity, lambda: read_clock(settings.home))
        serving.Activity = own_clock
    serving.BEAT_S = said.get("beat_s", serving.BEAT_S)
    server.HEADER_S = said.get("header_s", server.HEADER_S)
    receiving.BODY_S = said.get("body_s", receiving.BODY_S)
    receiving.BODY_MEMORY_BYTES = said.get("room_bytes", receiving.BODY_MEMORY_BYTES)
    middleware.WITHOUT_SESSION = said.get("without_session", middleware.WITHOUT_SESSION)
    if "late_s" in said:
        late: Any = partial(serve_and_end_late, said["late_s"])
        listening.serve_in_thread = late
    if said.get("failing_beat"):
        serving.beat = fail
    if said.get("hanging_beat"):
        serving.beat = lambda *_, **__: time.sleep(3_600)
    if said.get("hanging_probe"):
        serving._probe = lambda _: time.sleep(3_600)
    wiring.serve(settings, embedded="idle_s" in said)


if __name__ == "__main__":
    main()
