"""Workers on this machine: starting one in its sandbox and exchanging frames with it.

The receiver of frames reads the pipe directly, without a thread or queue. Frames that are not received stay in the
pipe, and a worker that continues to write blocks.

The worker has three descriptors, all of them pipes: incoming frames on 0, outgoing frames on 1, its log on 2. It ends
with this object, with this process however that dies, or by itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance.errors import ApplianceError, BadInput, Unavailable
from appliance.formats.core.frame import FrameBuffer, write_frame
from appliance.sandbox import launcher, processes
from appliance.sandbox.description import DRIVER_LIBRARIES, PACKAGE, Sandbox, places_of
from appliance.sandbox.escape_targets import EscapeTargets, Probes
from appliance.sandbox.host import visible_cards
from appliance.sandbox.launcher import Launch, RunningLauncher, descriptor_errors, open_pipe
from appliance.sandbox.output import ConfinedPath, WorkerLog
from appliance.sandbox.processes import LAYERS

_MAX_BLOB_BYTES = 1 << 20  # received from the worker; frames that are sent to it are not limited here
_MAX_HEADER_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_KILL_S = 30.0
TEMPORARY = ".tmp"
ENTRY = "appliance.worker.run"
"""Module that tests the sandbox and then runs the worker's own module."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
"""Variables that make libraries work offline, since a worker has no network."""

Frame = tuple[dict[str, Any], bytes]


def _environment(sandbox: Sandbox) -> dict[str, str]:
    """Return the worker's complete environment; no variable of the service is passed on."""
    home = str(sandbox.write[0])
    threads = str(sandbox.threads or len(os.sched_getaffinity(0)))
    temporary = f"{home}/{TEMPORARY}"
    drivers = [path for path in DRIVER_LIBRARIES if os.path.isdir(path)] if sandbox.devices else []
    return {
        **({"LD_LIBRARY_PATH": ":".join(drivers)} if drivers else {}),
        "PATH": os.path.dirname(sys.executable),
        "HOME": home,
        "TMPDIR": temporary,
        "USER": "worker",
        "LOGNAME": "worker",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "XDG_CACHE_HOME": temporary,
        "CUDA_CACHE_PATH": temporary,
        # Only the GPUs that the site configured, and none if the worker does not ask for them.
        "CUDA_VISIBLE_DEVICES": ",".join(visible_cards()) if sandbox.devices else "",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        **dict.fromkeys(OFFLINE, "1"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
    }


class Worker:
    """A running worker. `layers` has True for each layer of its sandbox that is in force, `reasons` why one is not."""

    def __init__(
        self, started: RunningLauncher, stdin: int, stdout: int, log: WorkerLog, escape_targets: EscapeTargets
    ) -> None:
        self.layers = started.report.layers
        self.reasons = started.report.reasons
        self.landlock_abi = started.report.landlock_abi
        self.pid = started.process.pid
        self._process = started.process
        self._control: int | None = started.control
        self._stdin: int | None = stdin
        self._log = log
        self._escape_targets = escape_targets
        self._lock = threading.RLock()
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._stdout: int | None = stdout
        self._frames = FrameBuffer(_MAX_HEADER_BYTES, _MAX_BLOB_BYTES)
        self._broken: ApplianceError | None = None
        with descriptor_errors():
            self._closing: int | None = os.eventfd(0, os.EFD_CLOEXEC)
        # The event is readable once `close` has begun, so that no thread waits for a frame any longer.
        os.set_blocking(stdin, False)
        self._ready = select.poll()  # select takes no descriptor above 1023, and a service may have more
        self._ready.register(stdout, select.POLLIN)
        self._ready.register(self._closing, select.POLLIN)

    def send(self, header: dict[str, Any], blob: bytes = b"", *, timeout_s: float = 60.0) -> None:
        """Send one frame.

        Raises:
            Unavailable: the worker has ended, or does not read within `timeout_s`.
        """
        buffer = io.BytesIO()
        write_frame(buffer, header, blob)
        data = buffer.getbuffer()
        deadline = time.monotonic() + timeout_s
        with self._sending:
            while data:
                data = data[self._write(data, deadline) :]

    def _write(self, data: memoryview, deadline: float) -> int:
        if self._stdin is None:
            raise Unavailable(f"worker {self.pid}: expected it to read its input, got a closed pipe")
        writing = select.poll()  # select takes no descriptor above 1023, and a service may have more
        writing.register(self._stdin, select.POLLOUT)
        if not writing.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Unavailable(
                f"worker {self.pid}: expected it to read its input in time, got no read", code="worker-silent"
            )
        try:
            return os.write(self._stdin, data[: 1 << 16])
        except BlockingIOError:
            return 0
        except OSError:
            raise Unavailable(
                f"worker {self.pid}: expected it to read its input, got its end", code="worker-ended"
            ) from None

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """Return the next frame, or None at the end of the stream.

        Raises:
            Unavailable: there is none within `timeout_s` (code `worker-silent`).
            BadInput: the frame is malformed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._receiving:
            if self._broken is not None:
                raise self._broken
            try:
                while (frame := self._frames.take()) is None:
                    data = self._read(deadline)
                    if data is None:
                        raise Unavailable(
                            f"worker {self.pid}: expected a frame within {timeout_s} s, got none", code="worker-silent"
                        )
                    if not data:
                        return None
                    self._frames.add(data)
            except BadInput as error:
                self._broken = error
                raise
        return frame

    def _read(self, deadline: float | None) -> bytes | None:
        """Return bytes from the worker, empty at the end of the stream, or None if there are none before the
        deadline."""
        if self._stdout is None:
            return b""
        ready = self._ready.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            return None
        if any(descriptor == self._closing for descriptor, _ in ready):
            return b""
        data = os.read(self._stdout, _READ_BYTES)
        if not data:
            self._frames.end()
        return data

    def check_sandbox(self, timeout_s: float = 60.0) -> dict[str, str]:
        """Receive the worker's first frame and return {probe: "refused" or "open"}; stop the worker if any is "open".

        Probes that the worker did not report, or that reached the service's own listeners, are "open".
        """
        frame = self.receive(timeout_s)
        if frame is None or frame[0].get("frame") != "sandbox":
            got = "the end" if frame is None else frame[0].get("frame")
            raise Unavailable(f"worker {self.pid}: expected its sandbox probes first, got {got}")
        results = frame[0].get("results")
        results = self._escape_targets.evaluate(results if isinstance(results, dict) else {})
        self._escape_targets.close()
        return results

    def pause(self) -> None:
        """Stop every process of the worker until `resume`."""
        self._order(processes.PAUSE)

    def resume(self) -> None:
        """Continue a paused worker."""
        self._order(processes.RESUME)

    def _order(self, order: bytes) -> None:
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._control, order)

    def poll(self) -> int | None:
        """Return the exit code if the worker has ended (128 + N after signal N), or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end of all processes of the worker and return the exit code.

        Raises:
            Unavailable: they run for longer than `timeout_s`.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"worker {self.pid}: expected its end within {timeout_s} s", code="worker-silent"
            ) from None

    def end(self) -> None:
        """Kill all processes of the worker without waiting for them."""
        if self._close_parent_pipe():
            # This thread kills a worker that does not end by itself.
            threading.Thread(target=self.kill, name=f"end-{self.pid}", daemon=True).start()

    def _close_parent_pipe(self) -> bool:
        """Close the parent-death pipe; return False if it was closed before."""
        with self._lock:
            if self._control is None:
                return False
            os.close(self._control)
            self._control = None
            return True

    def kill(self) -> None:
        """Kill all processes of the worker and return once none is left."""
        self._close_parent_pipe()
        _wait(self._process)

    def close(self) -> None:
        """Kill what still runs and free all resources. The caller removes the folders that the worker wrote."""
        self.kill()
        with self._lock:
            if self._closing is not None:
                os.eventfd_write(self._closing, 1)
        with self._sending:
            if self._stdin is not None:
                os.close(self._stdin)
                self._stdin = None
        with self._receiving, self._lock:
            for descriptor in (self._stdout, self._closing):
                if descriptor is not None:
                    os.close(descriptor)
            self._stdout = self._closing = None
        self._log.join(_KILL_S)
        self._escape_targets.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _command(code: Path, entry: str, module: str, escape_targets: EscapeTargets) -> tuple[str, ...]:
    enter = str(PACKAGE / "sandbox" / "enter.py")
    return (sys.executable, "-s", "-P", enter, str(code), entry, module, json.dumps(escape_targets.targets))


def _prepare(home: Path, probes: Probes) -> EscapeTargets:
    try:
        (home / TEMPORARY).mkdir(mode=0o700, exist_ok=True)
        return EscapeTargets(probes)
    except OSError as error:
        raise Unavailable(f"sandbox, {home}: expected a folder and live escape targets, got {error}") from None


def _start(undo: ExitStack, launch: Launch, log: WorkerLog) -> tuple[RunningLauncher, int, int]:
    """Start the launcher with pipes on 0, 1 and 2; `undo` ends it and closes them."""
    with ExitStack() as inner:
        inner_in, stdin = open_pipe(reader=inner, writer=undo)
        stdout, inner_out = open_pipe(reader=undo, writer=inner)
        started = launcher.start(launch, stdin=inner_in, stdout=inner_out, log=log.inner)
    undo.callback(_end, started)
    if started.report.failure is not None:
        raise Unavailable(started.report.failure, code="sandbox-unavailable")
    return started, stdin, stdout


def _end(started: RunningLauncher) -> None:
    """End a launcher that no Worker owns yet."""
    os.close(started.control)
    _wait(started.process)


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end that closing the parent-death pipe causes; kill a process that does not end in time."""
    try:
        process.wait(_KILL_S)
    except subprocess.TimeoutExpired:
        process.kill()  # init dies with the outer process, and the namespace with init
        process.wait()


def start_worker(
    module: str,
    sandbox: Sandbox,
    *,
    log: Path | ConfinedPath,
    accepted_missing: frozenset[str] = frozenset(),
    probes: Probes | None = None,
    code: Path = PACKAGE,
    entry: str = ENTRY,
    layers: frozenset[str] = LAYERS,
) -> Worker:
    """Start a worker module in the sandbox if every layer is in force that `accepted_missing` does not excuse.

    `probes` are additional escape targets. `code` is the package of the module, if it is not this one. `entry` and
    `layers` are for tests: another module that runs first, with the worker module and the escape targets as its
    arguments; and a layer that is omitted is not built, as on a kernel that lacks it.

    Raises:
        Unavailable: layers are missing (code `sandbox-unavailable`); no code of the worker has run.
    """
    if unknown := (accepted_missing | layers) - LAYERS:
        raise BadInput(f"sandbox, layer: expected one of {', '.join(sorted(LAYERS))}, got {', '.join(sorted(unknown))}")
    places = places_of(sandbox, code)
    with ExitStack() as undo:
        escape_targets = undo.enter_context(_prepare(sandbox.write[0], probes or Probes()))
        launch = Launch(
            command=_command(code, entry, module, escape_targets),
            environment=_environment(sandbox),
            folder=str(sandbox.write[0]),
            places=places,
            limits=sandbox.limits.by_name(),
            devices=sandbox.devices,
            layers=layers,
            accepted_missing=accepted_missing,
        )
        output = WorkerLog(log)
        undo.callback(output.join, _KILL_S)
        try:
            started, stdin, stdout = _start(undo, launch, output)
        finally:
            output.release()
        worker = Worker(started, stdin, stdout, output, escape_targets)
        undo.pop_all()
    return worker
