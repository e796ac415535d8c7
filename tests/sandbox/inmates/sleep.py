"""Takes nothing of the CPU and never ends."""

from __future__ import annotations

import time

from appliance.worker.link import Header, WorkerLink


def work(session: WorkerLink) -> Header:
    session.expect("go")
    while True:
        session.send({"frame": "progress"})
        time.sleep(0.05)
