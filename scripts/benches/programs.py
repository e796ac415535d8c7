"""The servers that the serving benches compare. Each runs as serving_worker.py in a process of its own."""

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
    """A running serving_worker.py. It reads commands as JSON lines and answers each with one line."""

    def __init__(self, process: subprocess.Popen[str], kind: str) -> None:
        self._process, self._kind = process, kind

    def __call__(self, command: str, **arguments: Any) -> list[float]:
        """Run a command that measures, and return its samples."""
        found: list[float] = self.request(command, **arguments)
        return found

    def request(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its decoded answer."""
        assert self._process.stdin is not None
        print(json.dumps({"do": command, **arguments}), file=self._process.stdin, flush=True)
        return json.loads(self.read_line(command))

    def read_line(self, command: str) -> str:
        """Return the next line of the program.

        Raises:
            RuntimeError: The program has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._kind}, {command}: the program ended before it answered; see its error output")
        return line


@contextmanager
def start_program(base: Path, device: str, kind: str, python: Path = Path(sys.executable)) -> Iterator[Program]:
    """Start the program of a kind and yield it once it is ready. It gets 20 seconds to end, and is then killed."""
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
            program.read_line("start")
            yield program
        finally:
            assert process.stdin is not None
            process.stdin.close()
            deadline = time.monotonic() + 20
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.kill()
