"""Starts an engine by the functions that the serving worker calls, and prints the seconds of each part as JSON."""

from __future__ import annotations

import time

BEGAN = time.monotonic()

import importlib  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    times = [task["began"], BEGAN]
    importlib.import_module("appliance.worker.serve")  # before torch, since it sets how torch's threads wait
    from appliance.ml.inference.request import InferenceRequest
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_base
    from appliance.ml.serving.engine import ServingEngine

    times.append(time.monotonic())
    machine.use_determinism(0)
    wanted = {"quantisation": "nf4-double", "compute_dtype": "bfloat16", "device": task["device"]}
    base = load_base(Path(task["base"]), **wanted, own_layers=True, keeps_dequantised=False)
    times.append(time.monotonic())
    engine = ServingEngine(base)
    times.append(time.monotonic())
    config, weights = ((Path(task["adapter"]) / name).read_bytes() for name in FILES)
    engine.load("slot", config, weights, json.loads(Path(task["logit_fingerprint"]).read_bytes()))
    times.append(time.monotonic())
    engine.start("first", "slot", InferenceRequest(({"role": "user", "content": task["prompt"]},), max_tokens=1))
    while engine.busy:
        for event in engine.step():
            if isinstance(event.content, Exception):
                raise event.content
    times.append(time.monotonic())
    parts = ("process", "libraries", "base", "engine", "adapter", "token")
    print(json.dumps({name: after - before for name, before, after in zip(parts, times, times[1:], strict=False)}))


FILES = ("adapter_config.json", "adapter_model.safetensors")

if __name__ == "__main__":
    main()
