"""The serving worker with vLLM as its engine: the frames of `serve`, answered by another program's arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.worker.link import Header, Link, run_worker, take, take_path
from appliance.worker.serve import Service


def work(session: Link, task: Header, blob: bytes) -> Header:
    # First, so that vLLM has the torch and the transformers that it was built for.
    sys.path.insert(0, take_path(task, "packages"))
    from appliance.ml.model import machine
    from appliance.ml.vllm.engine import Engine
    from appliance.ml.vllm.loading import forget_weights, start

    base, vllm = start(
        Path(take_path(task, "base")),
        quantisation=take(task, "quantisation", str),
        compute_dtype=take(task, "compute_dtype", str),
    )
    engine = Engine(base, vllm)
    forget_weights(base)
    session.send({"frame": "ready", "context_length": base.context_length, "packages": machine.list_packages()})
    Service(session, engine).run()
    return {}


if __name__ == "__main__":
    sys.exit(run_worker(work))
