"""Programs that answer prompts, each a serving_worker in a process of its own that takes commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("serving_worker.py")


class Program:
    """A serving_worker in its own process."""

    def __init__(self, process: subprocess.Popen[str], kind: str) -> None:
        self._process, self._kind = process, kind

    def __call__(self, do: str, **arguments: Any) -> list[float]:
        found: list[float] = self.told(do, **arguments)
        return found

    def told(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return json.loads(self.hear(do))

    def hear(self, what: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._kind}, {what}: expected an answer, got the end of its process")
        return line


@contextmanager
def start_program(base: Path, device: str, kind: str, python: Path = Path(sys.executable)) -> Iterator[Program]:
    task = json.dumps({"kind": kind, "base": str(base), "device": device, "quantisation": "nf4-double"})
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }
    with subprocess.Popen(
        [str(python), str(WORKER), task], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            program = Program(process, kind)
            program.hear("start")
            yield program
        finally:
            assert process.stdin is not None
            process.stdin.close()
            deadline = time.monotonic() + 20
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.kill()
