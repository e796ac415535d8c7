"""Fills its output folder, 1 MiB at a time, without an end."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.worker.link import Header, WorkerLink


def work(session: WorkerLink) -> Header:
    task, _ = session.expect("go")
    with Path(task["output"], "model.safetensors").open("wb", buffering=0) as file:
        for _ in range(500):
            file.write(bytes(1 << 20))
            time.sleep(0.02)
    return {"parameters": 1}
