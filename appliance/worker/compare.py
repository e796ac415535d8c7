"""The comparison worker, which measures how much the end of a replayed window differs from the recorded one."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.worker.link import Header, WorkerLink, run_worker, take_path


def work(session: WorkerLink, task: Header, blob: bytes) -> Header:
    """Return the largest difference between the expected and the replayed checkpoint."""
    from appliance.ml.training.checkpoint import compare_checkpoints

    checkpoints = [Path(take_path(task, name)).read_bytes() for name in ("before", "expected", "got")]
    difference = compare_checkpoints(*checkpoints)
    return {"largest_difference": None if difference is None else f"{difference:.12f}"}


if __name__ == "__main__":
    sys.exit(run_worker(work))
