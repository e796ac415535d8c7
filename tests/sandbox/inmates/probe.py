"""An honest worker's beginning: its probes, then nothing until the service says go."""

from __future__ import annotations

from appliance.worker.link import Header, WorkerLink


def work(session: WorkerLink) -> Header:
    session.expect("go")
    return {}
