"""Workers as the service starts them, by argv and with frames, but without a sandbox, which have tests of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from appliance.formats.core.frame import read_frame, write_frame
from appliance.sandbox.escape_targets import EscapeTargets, Probes
from scripts.kit import forks
from scripts.kit.tiny_model import RECIPE, build_base, clauses, write_csv

ROOT = Path(__file__).resolve().parents[2]
Frame = dict[str, Any]


class Process:
    """A worker and its two streams; `sandbox` is what it said first. Frames of a step that came together are received
    one by one; `together` counts how often that was so."""

    def __init__(self, name: str, targets: Frame, log: IO[bytes], *, fresh: bool = False) -> None:
        """`fresh`: a process that has nothing of another's, instead of a fork that has torch already."""
        command = ["-m", "appliance.worker.run", f"appliance.worker.{name}", json.dumps(targets)]
        (theirs, stdin), (stdout, back) = os.pipe(), os.pipe()
        streams = theirs, back, log.fileno()
        self.child: forks.Forked | subprocess.Popen[bytes]
        if fresh:
            self.child = subprocess.Popen([sys.executable, *command], stdin=theirs, stdout=back, stderr=log, cwd=ROOT)
        else:
            self.child = forks.run(command, os.environ, streams, forks.TORCH)
        os.close(theirs)
        os.close(back)
        self.stdin, self.stdout = os.fdopen(stdin, "wb", buffering=0), os.fdopen(stdout, "rb", buffering=0)
        self.together = 0
        self._waiting: list[Frame] = []
        self.sandbox = self.receive()

    def send(self, header: Frame, blob: bytes = b"") -> None:
        write_frame(self.stdin, header, blob)  # type: ignore[arg-type]

    def receive(self) -> Frame | None:
        if self._waiting:
            return self._waiting.pop(0)
        frame = read_frame(self.stdout)  # type: ignore[arg-type]
        if frame and frame[0]["frame"] == "frames":
            self.together += 1
            self._waiting = frame[0]["frames"]
            return self._waiting.pop(0)
        return frame[0] if frame else None

    def lanes(self) -> list[int]:
        """Return the processes that tokenise requests, which a keeper between them and the server has forked."""
        return [lane for keeper in _children(self.child.pid) for lane in _children(keeper)]

    @contextmanager
    def stopped(self, processes: Sequence[int] = ()) -> Iterator[None]:
        """Stop the server, or these processes of it, so that what a test sends meanwhile is there as one."""
        stopped = processes or [self.child.pid]
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)

    def hang_up(self) -> int:
        self.stdin.close()
        return self.child.wait(60)

    def close(self) -> None:
        self.child.kill()
        self.child.wait(60)
        self.stdin.close()
        self.stdout.close()

    def run(self, task: Frame, blob: bytes = b"") -> tuple[Frame, list[Frame]]:
        """Return the task's last frame, and those before it."""
        self.send({"frame": "go", **task}, blob)
        frames = []
        while (frame := self.receive()) is not None:
            if frame["frame"] in ("result", "failure"):
                assert self.receive() is None
                assert self.child.wait(60) == (0 if frame["frame"] == "result" else 1)
                return frame, frames
            frames.append(frame)
        raise AssertionError("the worker ended without a result")


def _children(process: int) -> list[int]:
    threads = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


Start = Callable[..., Process]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    log = tmp_path_factory.mktemp("log") / "workers.log"
    with ExitStack() as stack:
        stream = stack.enter_context(open(log, "ab"))

        def begin(name: str, *, fresh: bool = False) -> Process:
            escape_targets = stack.enter_context(EscapeTargets(Probes()))
            process = Process(name, escape_targets.targets, stream, fresh=fresh)
            stack.callback(process.close)
            return process

        yield begin


@pytest.fixture(scope="session")
def places(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a base, a dataset and an adapter, each made by its worker: {name: folder}."""
    root = tmp_path_factory.mktemp("places")
    source = build_base(root / "source")
    names = ("base", "dataset", "adapter", "again", "evaluation", "checkpoints")
    folders = {name: root / name for name in names} | {"source": source}
    for name in names:
        folders[name].mkdir()
    task = {"task": "base", "source": str(source), "output": str(folders["base"])}
    assert start("prepare").run(task)[0]["frame"] == "result"
    write_csv(root / "clauses.csv", clauses(60))
    folders["csv"] = root / "clauses.csv"
    return folders


def dataset_task(places: dict[str, Path], **changes: Any) -> Frame:
    return {
        "task": "dataset",
        "source": str(places["csv"]),
        "format": "csv",
        "dataset_kind": "classification",
        "columns": {"text": "text", "label": "label"},
        "labels": [],
        "instruction": "Name the kind.",
        "base": str(places["base"]),
        "seed": 1,
        "held_out": "0.2",
        "output": str(places["dataset"]),
        **changes,
    }


def train_task(places: dict[str, Path], output: str, **changes: Any) -> Frame:
    recipe = {**RECIPE, "compute_dtype": "bfloat16", "save_steps": 4, **changes}
    paths = {name: str(places[name]) for name in ("base", "dataset", "checkpoints")}
    return {"recipe": recipe, "seconds": 0.0, **paths, "output": str(places[output])}
