"""Starts a worker on this machine, inside its walls, and speaks frames with it.

The receiver of a frame reads the pipe itself, with no thread or queue between. What is not received stays in the
pipe, and a worker that goes on writing waits.

The worker has three descriptors, all of them pipes: frames in on 0, frames out on 1, its log on 2. It ends with this
object, with this process however that dies, or by itself.
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
from appliance.runners.decoys import Decoys, Probes
from appliance.runners.host import visible_cards
from appliance.runners.log import WorkerLog
from appliance.runners.sandbox import DRIVER_LIBRARIES, PACKAGE, Sandbox, places_of
from appliance.runners.walls import inside, launcher
from appliance.runners.walls.inside import LAYERS
from appliance.runners.walls.launcher import Launch, Started, descriptor_errors, open_pipe

_MAX_BLOB_BYTES = 1 << 20  # from the worker; what it is sent has no limit here
_MAX_HEADER_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_KILL_S = 30.0
TEMPORARY = ".tmp"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
"""Variables by which libraries are told to ask no network, of which a worker has none."""

Frame = tuple[dict[str, Any], bytes]


def _environment(sandbox: Sandbox) -> dict[str, str]:
    """Everything the worker's environment holds: nothing of the service's own passes."""
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
        # Not a GPU more than asked for; which ones is the site's own setting.
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
    """A running worker. `layers` says for every wall whether it stands, `reasons` why one does not."""

    def __init__(self, started: Started, stdin: int, stdout: int, log: WorkerLog, decoys: Decoys) -> None:
        self.layers = started.report.layers
        self.reasons = started.report.reasons
        self.landlock_abi = started.report.landlock_abi
        self.pid = started.process.pid
        self._process = started.process
        self._control: int | None = started.control
        self._stdin: int | None = stdin
        self._log = log
        self._decoys = decoys
        self._lock = threading.RLock()
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._stdout: int | None = stdout
        self._frames = FrameBuffer(_MAX_HEADER_BYTES, _MAX_BLOB_BYTES)
        self._broken: ApplianceError | None = None
        with descriptor_errors():
            self._closing: int | None = os.eventfd(0, os.EFD_CLOEXEC)
        """Readable from the beginning of `close` on, so that nobody waits for a frame any more."""
        os.set_blocking(stdin, False)
        self._ready = select.poll()  # select takes no descriptor above 1023, and a service may have more
        self._ready.register(stdout, select.POLLIN)
        self._ready.register(self._closing, select.POLLIN)

    def send(self, header: dict[str, Any], blob: bytes = b"", *, timeout_s: float = 60.0) -> None:
        """Sends one frame. Unavailable where the worker has ended, or does not read within `timeout_s`."""
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
        """The next frame, None at the end. Unavailable (`worker-silent`) after `timeout_s`, BadInput if broken."""
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
        """What the worker wrote, none of it at the end; None where it is silent until the deadline."""
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

    def check_walls(self, timeout_s: float = 60.0) -> dict[str, str]:
        """Receives the worker's first frame and returns {probe: "refused" or "open"}; nothing may run after an "open".

        What the worker left out, or what reached the service's own listeners, is "open".
        """
        frame = self.receive(timeout_s)
        if frame is None or frame[0].get("frame") != "walls":
            got = "the end" if frame is None else frame[0].get("frame")
            raise Unavailable(f"worker {self.pid}: expected its wall probes first, got {got}")
        results = frame[0].get("results")
        judged = self._decoys.judge(results if isinstance(results, dict) else {})
        self._decoys.close()
        return judged

    def pause(self) -> None:
        """Stops every process of the worker where it stands, until `resume`."""
        self._order(inside.PAUSE)

    def resume(self) -> None:
        """Lets a paused worker go on."""
        self._order(inside.RESUME)

    def _order(self, order: bytes) -> None:
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._control, order)

    def poll(self) -> int | None:
        """The exit code where the worker has ended, None while it runs; 128 + N after signal N."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Waits for the end of every process of the worker. Unavailable after `timeout_s`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"worker {self.pid}: expected its end within {timeout_s} s", code="worker-silent"
            ) from None

    def end(self) -> None:
        """Ends every process of the worker, at once, and waits for none of them."""
        if self._close_leash():
            # One that does not end by itself is killed by this thread.
            threading.Thread(target=self.kill, name=f"end-{self.pid}", daemon=True).start()

    def _close_leash(self) -> bool:
        """False where it was closed before."""
        with self._lock:
            if self._control is None:
                return False
            os.close(self._control)
            self._control = None
            return True

    def kill(self) -> None:
        """Ends every process of the worker, at once; returns when none is left."""
        self._close_leash()
        _wait(self._process)

    def close(self) -> None:
        """Kills what still runs and frees everything. Its folders, as it left them, are their owner's to remove."""
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
        self._decoys.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _command(code: Path, module: str, decoys: Decoys) -> tuple[str, ...]:
    entry = str(PACKAGE / "runners" / "walls" / "enter.py")
    return (sys.executable, "-s", "-P", entry, str(code), module, json.dumps(decoys.targets))


def _prepare(home: Path, probes: Probes) -> Decoys:
    try:
        (home / TEMPORARY).mkdir(mode=0o700, exist_ok=True)
        return Decoys(probes)
    except OSError as error:
        raise Unavailable(f"sandbox, {home}: expected a folder and live decoys, got {error}") from None


def _start(undo: ExitStack, launch: Launch, log: WorkerLog) -> tuple[Started, int, int]:
    """The launcher with pipes on 0, 1 and 2; `undo` ends it and closes them."""
    with ExitStack() as inner:
        inner_in, stdin = open_pipe(reader=inner, writer=undo)
        stdout, inner_out = open_pipe(reader=undo, writer=inner)
        started = launcher.start(launch, stdin=inner_in, stdout=inner_out, log=log.inner)
    undo.callback(_end, started)
    if started.report.failure is not None:
        raise Unavailable(started.report.failure, code="wall-missing")
    return started, stdin, stdout


def _end(started: Started) -> None:
    """One that has no owner yet."""
    os.close(started.control)
    _wait(started.process)


def _wait(process: subprocess.Popen[bytes]) -> None:
    """For the end that a closed leash is; one that does not end is killed."""
    try:
        process.wait(_KILL_S)
    except subprocess.TimeoutExpired:
        process.kill()  # init dies with the outer process, and the namespace with init
        process.wait()


def start_worker(
    module: str,
    sandbox: Sandbox,
    *,
    log: Path,
    accepted_missing: frozenset[str] = frozenset(),
    probes: Probes | None = None,
    code: Path = PACKAGE,
    layers: frozenset[str] = LAYERS,
) -> Worker:
    """Starts `python -m module` inside the sandbox, once every wall stands that `accepted_missing` does not excuse.

    `probes` names what the worker must fail to reach. `code` is the package that holds the module, where it is not the
    appliance. `layers` is for tests: a wall left out of it is not built, as on a kernel that lacks it. Raises
    Unavailable (`wall-missing`) naming the walls, before any code of the worker ran.
    """
    if unknown := (accepted_missing | layers) - LAYERS:
        raise BadInput(f"sandbox, wall: expected one of {', '.join(sorted(LAYERS))}, got {', '.join(sorted(unknown))}")
    places = places_of(sandbox, code)
    with ExitStack() as undo:
        decoys = undo.enter_context(_prepare(sandbox.write[0], probes or Probes()))
        launch = Launch(
            command=_command(code, module, decoys),
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
        made = Worker(started, stdin, stdout, output, decoys)
        undo.pop_all()
    return made
