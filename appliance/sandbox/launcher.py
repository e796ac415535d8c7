"""Starting the launcher, a small separate process that builds the sandbox and then becomes the worker.

The service has threads and holds keys, so it never forks; it starts a new interpreter by argv. The parent-death pipe
carries the description to the launcher and then stays open. When it closes, such as because the service was killed, the
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
from appliance.sandbox.mounts import VisiblePath

_ROOT = str(Path(appliance.__file__).resolve().parent.parent)
_START = "import sys; sys.path.insert(0, sys.argv[1]); from appliance.sandbox.processes import main; main(sys.argv[2:])"
_BUILD_TIMEOUT_S = 60


@dataclass(frozen=True)
class Launch:
    """The launcher's input. If `command` is None, it builds the sandbox, reports and ends."""

    command: tuple[str, ...] | None
    environment: dict[str, str]
    folder: str
    places: list[VisiblePath]
    limits: dict[str, int | None]
    devices: bool
    layers: frozenset[str]
    accepted_missing: frozenset[str]

    def encode(self) -> bytes:
        """Encode as u32 big-endian length and JSON."""
        value = asdict(self) | {"layers": sorted(self.layers), "accepted_missing": sorted(self.accepted_missing)}
        data = json.dumps(value).encode()
        return struct.pack(">I", len(data)) + data


@dataclass(frozen=True)
class LaunchReport:
    """The launcher's report: which layers are in force, why others are not, and the Landlock ABI."""

    layers: dict[str, bool]
    reasons: dict[str, str]
    landlock_abi: int
    failure: str | None


@dataclass(frozen=True)
class RunningLauncher:
    """A running launcher: the outer process, the service's end of the parent-death pipe, and the report."""

    process: subprocess.Popen[bytes]
    control: int
    report: LaunchReport


def _read_report(status: int, deadline: float) -> LaunchReport:
    """Read the report to the end of the pipe, which the worker's exec closes."""
    data = b""
    reading = select.poll()  # select takes no descriptor above 1023, and a service may have more
    reading.register(status, select.POLLIN)
    while True:
        if not reading.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Unavailable(f"sandbox, launcher: expected its report within {_BUILD_TIMEOUT_S} s, got no report")
        chunk = os.read(status, 65536)
        if not chunk:
            break
        data += chunk
    lines = data.decode().splitlines()
    if not lines:
        raise Unavailable("sandbox, launcher: expected a report, got none (the worker's log says why)")
    value = json.loads(lines[0])
    failure = json.loads(lines[1])["failure"] if len(lines) > 1 else value["failure"]
    return LaunchReport(value["layers"], value["reasons"], value["landlock_abi"], failure)


def _describe(control: int, launch: Launch) -> None:
    try:
        with open(control, "wb", closefd=False) as stream:
            stream.write(launch.encode())
    except OSError as error:
        raise Unavailable(f"sandbox, launcher: expected it to read its description, got {error}") from None


def start(launch: Launch, *, stdin: int, stdout: int, log: int) -> RunningLauncher:
    """Start the launcher and wait until the worker runs or was refused (`report.failure` then has the reason)."""
    with ExitStack() as always, ExitStack() as undo:
        with ExitStack() as inner:
            control_inner, control = open_pipe(reader=inner, writer=undo)
            status, status_inner = open_pipe(reader=always, writer=inner)
            process = _spawn(stdin, stdout, log, control_inner, status_inner)
        undo.callback(_kill, process)
        _describe(control, launch)
        report = _read_report(status, time.monotonic() + _BUILD_TIMEOUT_S)
        undo.pop_all()
    return RunningLauncher(process, control, report)


def open_pipe(*, reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Open a pipe and return both ends; each is closed by its stack.

    Raises:
        Unavailable: the limit of open files is reached.
    """
    with descriptor_errors():
        ends = os.pipe()
    reader.callback(os.close, ends[0])
    writer.callback(os.close, ends[1])
    return ends


@contextmanager
def descriptor_errors() -> Iterator[None]:
    """Translate OSError to Unavailable, whose message says to raise the limit of open files."""
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


def try_sandbox(launch: Launch) -> LaunchReport:
    """Run a launch without a command and return its report."""
    started = start(launch, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, log=subprocess.DEVNULL)
    os.close(started.control)
    started.process.wait()
    return started.report
