"""The serving worker with vLLM as its engine; it has the same frames as `serve`, and other arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.worker.link import Header, WorkerLink, run_worker, take, take_path
from appliance.worker.serve import Service, open_lanes, start_lanes


def work(session: WorkerLink, task: Header, blob: bytes) -> Header:
    """Load the base in vLLM, report that the worker is ready, and serve until the stream ends."""
    # First in the path, so that vLLM imports the torch and transformers versions that it was built for.
    packages, folder = take_path(task, "packages"), Path(take_path(task, "base"))
    lanes = open_lanes(folder, packages)
    sys.path.insert(0, packages)
    from appliance.ml.model import machine
    from appliance.ml.vllm.engine import VllmEngine
    from appliance.ml.vllm.loading import forget_weights, start

    base, vllm = start(
        folder,
        quantisation=take(task, "quantisation", str),
        compute_dtype=take(task, "compute_dtype", str),
    )
    engine = VllmEngine(base, vllm)
    forget_weights(base)
    session.send({"frame": "ready", "context_length": base.context_length, "packages": machine.list_packages()})
    Service(session, engine, lanes).run()
    return {}


if __name__ == "__main__":
    sys.exit(run_worker(work, start_lanes))
