"""Takes the CPU and never ends."""

from __future__ import annotations

from appliance.worker.link import Header, WorkerLink


def work(session: WorkerLink) -> Header:
    session.expect("go")
    while True:
        pass
