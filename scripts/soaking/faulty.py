"""The real service, whose serving worker is the real one with faults in the middle of its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance import wiring
from appliance.config.settings import load_settings
from appliance.sandbox.description import Sandbox
from appliance.sandbox.local import Worker, start_worker
from appliance.wiring import serving
from appliance.workflows.core import workers

CODE = Path(__file__).resolve().parent
BREAKING = {
    "appliance.worker.serve": "soaking.breaking",
    "appliance.worker.serve_vllm": "soaking.breaking_vllm",
}


def start(module: str, sandbox: Sandbox, **more: Any) -> Worker:
    if module in BREAKING:
        return start_worker(BREAKING[module], sandbox, code=CODE, **more)
    return start_worker(module, sandbox, **more)


def main() -> None:
    changed: Any = workers
    changed.start_worker = start
    serving.BEAT_S = 5.0
    wiring.serve(load_settings(), embedded=False)


if __name__ == "__main__":
    main()
