"""The real service with short times and few descriptors: what the file `small.json` in its home says."""

from __future__ import annotations

import json
import resource
import time
from typing import Any, NoReturn

from appliance import wiring
from appliance.config.load import load_settings
from appliance.web.core import bodies, server
from appliance.web.people import gate
from appliance.wiring import serving

SMALL = "small.json"


def fail(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("a beat that nobody foresaw")


def main() -> None:
    settings = load_settings()
    said: dict[str, Any] = json.loads((settings.home / SMALL).read_text())
    if "descriptors" in said:
        resource.setrlimit(resource.RLIMIT_NOFILE, (said["descriptors"], said["descriptors"]))
    serving.IDLE_S = said.get("idle_s", serving.IDLE_S)
    serving.BEAT_S = said.get("beat_s", serving.BEAT_S)
    server.HEADER_S = said.get("header_s", server.HEADER_S)
    bodies.BODY_S = said.get("body_s", bodies.BODY_S)
    bodies.ROOM_BYTES = said.get("room_bytes", bodies.ROOM_BYTES)
    gate.STRANGERS = said.get("strangers", gate.STRANGERS)
    if said.get("failing_beat"):
        serving.beat = fail
    if said.get("hanging_beat"):
        serving.beat = lambda *_, **__: time.sleep(3_600)
    wiring.serve(settings, embedded="idle_s" in said)


if __name__ == "__main__":
    main()
