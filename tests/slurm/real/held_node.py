"""The real node of a job, which pauses its worker at a frame. Usage: held_node.py FOLDER JOB-FOLDER

While the file `hold` in FOLDER names a kind of frame, the worker is paused as soon as the node has received one, and
until the file is gone or names another. Everything else goes on. The worker is at most a few steps further by then.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from appliance.sandbox import local
from tests.kit.holding import read_hold, say_held, shrink_pipes


def pause_workers(folder: Path) -> None:
    receive = local.Worker.receive
    paused: list[int] = []

    def receive_and_pause(self: local.Worker, timeout_s: float | None = None) -> Any:
        if paused and read_hold(folder)[1] != paused[-1]:
            paused.clear()
            self.resume()
        received = receive(self, timeout_s)
        point, since = read_hold(folder)
        if received is not None and received[0].get("frame") == point and not paused:
            self.pause()
            paused.append(since)
            say_held(folder, since)
        return received

    worker: Any = local.Worker
    worker.receive = receive_and_pause


if __name__ == "__main__":
    shrink_pipes()
    pause_workers(Path(sys.argv.pop(1)))
    runpy.run_module("appliance.slurm.node", run_name="__main__", alter_sys=True)
