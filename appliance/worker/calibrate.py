"""The calibrating worker: a few short steps that measure the machine for plans. Only the times are kept."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.worker.link import Header, Link, run_worker, take, take_path


def work(session: Link, task: Header, blob: bytes) -> Header:
    from appliance.ml.model import machine
    from appliance.ml.training.calibration import calibrate

    recipe = take(task, "recipe", dict)
    machine.use_determinism(recipe["seed"])

    def report(done: int, total: int) -> None:
        session.send({"frame": "progress", "done": done, "total": total})

    return calibrate(Path(take_path(task, "base")), recipe, report)


if __name__ == "__main__":
    sys.exit(run_worker(work))
