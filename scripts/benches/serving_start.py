"""Bench of an engine's start, part by part, from the start of its process to the first token of the first answer.

The parts are those of the serving worker, in a process without sandbox and service.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benches.measure import Row, row
from scripts.benches.programs import ROOT, Program
from scripts.benches.serving_client import PROMPT

PARTS = {
    "process": "the process",
    "libraries": "libraries",
    "base": "the base",
    "engine": "the engine around it",
    "adapter": "the adapter, its fingerprint compared",
    "token": "the first token",
}


def measure(ours: Program, base: Path, adapter: Path, folder: Path, *, device: str, rounds: int) -> Iterator[Row]:
    """Yield the rows. `ours` computes the adapter's logit fingerprint, as an evaluation does."""
    fingerprint = folder / "start-logit_fingerprint.json"
    fingerprint.write_text(json.dumps(ours.request("logit_fingerprint", folder=str(adapter))), encoding="utf-8")
    task = {
        "base": str(base),
        "adapter": str(adapter),
        "logit_fingerprint": str(fingerprint),
        "device": device,
        "prompt": PROMPT,
    }
    found = [start(task) for _ in range(rounds)]
    yield row("an engine's start, to the first token", median(sum(one.values()) for one in found), "s")
    for name, part in PARTS.items():
        yield row(f"an engine's start: {part}", median(one[name] for one in found), "s")


def start(task: dict[str, Any]) -> dict[str, float]:
    """Start an engine, and return the seconds of each part, in their order."""
    threads = str(len(os.sched_getaffinity(0)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}
    # Both processes read the same monotonic clock.
    began = time.monotonic()
    command = [sys.executable, "-m", "scripts.benches.serving_start_worker", json.dumps(task | {"began": began})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"an engine did not start: {done.stderr[-2000:]}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds
