"""Starts the launcher, a small separate process that builds the walls and then becomes the worker.

The service is threaded and holds keys, so it never forks: it starts a fresh interpreter by argv. One pipe, the leash,
carries the description to the launcher and then stays open. When it closes, also because the service was killed, the
worker ends.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import appliance
from appliance.errors import Unavailable
from appliance.runners.walls.mounts import Place

_ROOT = str(Path(appliance.__file__).resolve().parent.parent)
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from appliance.runners.walls.inside import main; main(sys.argv[2:])"
)
_BUILD_TIMEOUT_S = 60


@dataclass(frozen=True)
class Launch:
    """The launcher's input. `command` None builds the walls, reports and ends."""

    command: tuple[str, ...] | None
    environment: dict[str, str]
    folder: str
    places: list[Place]
    limits: dict[str, int | None]
    devices: bool
    layers: frozenset[str]
    accepted_missing: frozenset[str]

    def encode(self) -> bytes:
        """u32 big-endian length, then JSON."""
        value = asdict(self) | {"layers": sorted(self.layers), "accepted_missing": sorted(self.accepted_missing)}
        data = json.dumps(value).encode()
        return struct.pack(">I", len(data)) + data


@dataclass(frozen=True)
class Report:
    """The launcher's report: whether each layer is in force, why one is not, and the Landlock ABI in use."""

    layers: dict[str, bool]
    reasons: dict[str, str]
    landlock_abi: int
    failure: str | None


@dataclass(frozen=True)
class Started:
    """A running launcher: the outer process, the service's end of the leash, and the report."""

    process: subprocess.Popen[bytes]
    control: int
    report: Report


def _read_report(status: int, deadline: float) -> Report:
    """Reads to the end, which comes when the worker's exec closes the pipe."""
    data = b""
    reading = select.poll()  # select takes no descriptor above 1023, and a service may have more
    reading.register(status, select.POLLIN)
    while True:
        if not reading.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Unavailable(f"sandbox, launcher: expected its walls within {_BUILD_TIMEOUT_S} s, got no report")
        chunk = os.read(status, 65536)
        if not chunk:
            break
        data += chunk
    lines = data.decode().splitlines()
    if not lines:
        raise Unavailable("sandbox, launcher: expected a report, got none (the worker's log says why)")
    value = json.loads(lines[0])
    failure = json.loads(lines[1])["failure"] if len(lines) > 1 else value["failure"]
    return Report(value["layers"], value["reasons"], value["landlock_abi"], failure)


def _describe(control: int, launch: Launch) -> None:
    try:
        with open(control, "wb", closefd=False) as stream:
            stream.write(launch.encode())
    except OSError as error:
        raise Unavailable(f"sandbox, launcher: expected it to read its description, got {error}") from None


def start(launch: Launch, *, stdin: int, stdout: int, log: int) -> Started:
    """Starts the launcher and waits until the worker runs, or was refused (then `report.failure` has the reason)."""
    with ExitStack() as always, ExitStack() as undo:
        with ExitStack() as inner:
            control_inner, control = open_pipe(reader=inner, writer=undo)
            status, status_inner = open_pipe(reader=always, writer=inner)
            process = _spawn(stdin, stdout, log, control_inner, status_inner)
        undo.callback(_kill, process)
        _describe(control, launch)
        report = _read_report(status, time.monotonic() + _BUILD_TIMEOUT_S)
        undo.pop_all()
    return Started(process, control, report)


def open_pipe(*, reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Both ends, each of which its stack closes. Unavailable at the limit of descriptors."""
    with descriptor_errors():
        ends = os.pipe()
    reader.callback(os.close, ends[0])
    writer.callback(os.close, ends[1])
    return ends


@contextmanager
def descriptor_errors() -> Iterator[None]:
    """The limit of descriptors is Unavailable."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"sandbox, pipes: expected to open those of one more worker, got {error.strerror or error}; raise the "
            "service's limit of open files"
        ) from None


def _spawn(stdin: int, stdout: int, log: int, control: int, status: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, _ROOT, str(control), str(status)],
            stdin=stdin,
            stdout=stdout,
            stderr=log,
            pass_fds=(control, status),
            env={"LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"sandbox, launcher: expected a new process, got {error}") from None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def try_walls(launch: Launch) -> Report:
    """The report of a launch without a command."""
    started = start(launch, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, log=subprocess.DEVNULL)
    os.close(started.control)
    started.process.wait()
    return started.report
