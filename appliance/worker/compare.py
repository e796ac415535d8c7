"""The comparison worker, which measures how much the end of a replayed window differs from the recorded one."""

from __future__ import annotations

from pathlib import Path

from appliance.ml.training.checkpoint import compare_checkpoints
from appliance.worker.link import Header, WorkerLink, take_path


def work(session: WorkerLink) -> Header:
    """Return the largest difference between the expected and the replayed checkpoint."""
    task, _ = session.expect("go")
    checkpoints = [Path(take_path(task, name)).read_bytes() for name in ("before", "expected", "got")]
    difference = compare_checkpoints(*checkpoints)
    return {"largest_difference": None if difference is None else f"{difference:.12f}"}
