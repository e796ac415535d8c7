"""The serving worker, which answers the requests of all slots with one base.

Here is what precedes torch: the processes that tokenise requests are forks, and OpenMP reads its settings once.
`worker/serving.py` does the rest.
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.worker.link import Header, WorkerLink, take, take_path
from appliance.worker.reader import Lanes

# A step has about two thousand operations of some microseconds each, and waking a sleeping thread takes as long.
# So threads spin for about 50 microseconds before they sleep. A step is twice as fast alone, and half as fast beside
# another engine on the same cores. torch's OpenMP reads this variable when it is loaded.
os.environ["GOMP_SPINCOUNT"] = "2000"


def work(session: WorkerLink) -> Header:
    """Load the base, report that the worker is ready, and serve until the stream ends.

    Importing torch is the longest part of a start. Meanwhile the service checks the inputs of the task.
    """
    lanes = Lanes()
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_for
    from appliance.ml.serving.engine import ServingEngine
    from appliance.worker.serving import Service

    task, _ = session.expect("go")
    machine.use_determinism(0)
    folder = Path(take_path(task, "base"))
    lanes.open(folder)
    base = load_for(folder, task, keeps_dequantised=False)
    engine = ServingEngine(base, take(task, "prompt_cache_bytes", int))
    session.send({"frame": "ready", "context_length": base.context_length, "packages": machine.list_packages()})
    Service(session, engine, lanes.lanes).run()
    return {}
