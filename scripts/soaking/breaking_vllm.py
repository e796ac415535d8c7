"""The serving worker with vLLM and injected faults: a step fails, which ends the worker, or it dies in one."""

from __future__ import annotations

import sys
from typing import Any

from appliance.worker import serve_vllm
from appliance.worker.link import Header, WorkerLink
from appliance.worker.reader import Lanes
from soaking.breaking import say

STEP_EVERY = 4001
"""Steps of one worker."""


class Breaking:
    """Wraps vLLM's step, and injects faults."""

    def __init__(self, real: Any) -> None:
        self._real, self._steps = real, 0

    def __call__(self) -> Any:
        self._steps += 1
        if self._steps == STEP_EVERY:
            say("step")
            raise RuntimeError("injected")
        return self._real()


def work(session: WorkerLink) -> Header:
    lanes = Lanes()
    task, _ = session.expect("go")
    sys.path.insert(0, str(task["packages"]))
    from appliance.ml.vllm import loading

    start: Any = loading.start

    def start_breaking(*given: Any, **more: Any) -> Any:
        base, vllm = start(*given, **more)
        vllm.step = Breaking(vllm.step)
        return base, vllm

    changed: Any = loading
    changed.start = start_breaking
    return serve_vllm.serve(session, lanes, task)
