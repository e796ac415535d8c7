"""The serving worker with vLLM as its engine; it has the same frames as `serve`, and other arithmetic."""

from __future__ import annotations

import sys
from pathlib import Path

import appliance.worker.serve  # noqa: F401 # sets how long torch's threads spin
from appliance.worker.link import Header, WorkerLink, take, take_path
from appliance.worker.reader import Lanes


def work(session: WorkerLink) -> Header:
    """Load the base in vLLM, report that the worker is ready, and serve until the stream ends."""
    lanes = Lanes()
    task, _ = session.expect("go")
    return serve(session, lanes, task)


def serve(session: WorkerLink, lanes: Lanes, task: Header) -> Header:
    """Serve with these lanes, which were forked before torch is imported."""
    # First in the path, so that vLLM imports the torch and transformers versions that it was built for.
    packages, folder = take_path(task, "packages"), Path(take_path(task, "base"))
    lanes.open(folder, packages)
    sys.path.insert(0, packages)
    from appliance.ml.model import machine
    from appliance.ml.vllm.engine import VllmEngine
    from appliance.ml.vllm.loading import forget_weights, start
    from appliance.worker.serving import Service

    base, vllm = start(
        folder,
        quantisation=take(task, "quantisation", str),
        compute_dtype=take(task, "compute_dtype", str),
    )
    engine = VllmEngine(base, vllm)
    forget_weights(base)
    session.send({"frame": "ready", "context_length": base.context_length, "packages": machine.list_packages()})
    Service(session, engine, lanes.lanes).run()
    return {}
