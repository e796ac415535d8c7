"""The protocol between a workflow and a sandboxed worker, and the watch over the disk while the worker runs.

The protocol is: the sandbox check, the task, then frames until a result. Workers are ended before they use the disk
space that the ledger needs, since without it the ledger could not even record how a worker ended. The space that a
single worker uses cannot be measured, because a file that was removed but is still open has no name. So the workers of
jobs are ended first, whichever of them used the space. An engine, which writes no files, is ended only if that did not
help.
"""

from __future__ import annotations

import json
import logging
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from appliance.errors import ApplianceError, BadInput, Denied, NotFound, Tampered, TooLarge, Unavailable
from appliance.sandbox.description import ResourceLimits, Sandbox
from appliance.sandbox.host import RunningWorker
from appliance.sandbox.local import Worker, start_worker
from appliance.sandbox.program import run_program
from appliance.store.files.space import Reserve, measure_space
from appliance.workflows.core.context import Frame, WorkerContext
from appliance.workflows.core.jobs import DISK

Parsed = TypeVar("Parsed")

SERVE, SERVE_VLLM = "appliance.worker.serve", "appliance.worker.serve_vllm"
SANDBOX_CHECK_S = 120.0
"""Seconds that the check of the sandbox may take."""
LOADING_S = 120.0
"""Seconds that a worker may take to import its libraries before it reads its task."""
SILENCE_S = 1_800.0
"""Seconds without a frame after which a worker counts as dead."""
ENDS_S = 30.0
"""Seconds that the end of a worker's processes may take."""
TIME_LIMIT = "time-limit"
"""Error code of a task that exceeds its bounds."""

_CODE = re.compile(r"[a-z][a-z0-9-]{0,63}")
_ERRORS: dict[str, type[ApplianceError]] = {
    **{error.code: error for error in (BadInput, NotFound, Tampered, Unavailable)},
    "fingerprint-differs": Tampered,
    "adapter-inactive": Tampered,
    **dict.fromkeys(
        ("out-of-memory", "cache-full", "not-finite", "answer-failed", "harness-missing", "no-vllm"), Unavailable
    ),
    "context-length": TooLarge,
    "cut-off": Denied,
}


@dataclass(frozen=True)
class Bounds:
    """The limits of one task: seconds by the clock, and seconds of CPU time for each process of the worker."""

    wall_s: float
    cpu_s: int


@contextmanager
def worker(
    context: WorkerContext,
    key: str,
    module: str,
    *,
    read: tuple[Path, ...],
    write: tuple[Path, ...] = (),
    gpu: bool = False,
    cpu_s: int | None = None,
    libraries: tuple[Path, ...] = (),
) -> Iterator[Worker]:
    """Start a worker, register it under `key` while it runs so that others can stop it, and end it on exit.

    Its home is a scratch folder of its own, separate from the folders that it writes its result to.

    Raises:
        Unavailable: With the code `closing`, if the service has begun to end; its end stops registered workers only.
    """
    accepted = frozenset(context.ledger.state.parameters.accepted_missing_layers)
    name = f"{key.replace(':', '-')}-{module.rpartition('.')[2]}.log"
    with context.artifacts.staging() as scratch:
        limits = ResourceLimits(cpu_s=cpu_s)
        sandbox = Sandbox(read=read, write=(scratch, *write), devices=gpu, limits=limits, libraries=libraries)
        started = start_worker(
            module, sandbox, log=context.logs / name, accepted_missing=accepted, probes=context.probes
        )
        with started, keep_disk_free(started, scratch, context.reserve, engine=module in (SERVE, SERVE_VLLM)):
            context.workers[key] = started
            try:
                if context.closing.is_set():
                    raise Unavailable(
                        "worker: expected the service to run until its end, got the end of the service; repeat the "
                        "work after the next start",
                        code="closing",
                    )
                yield started
            finally:
                # If a successor has registered under the same key, it stays registered.
                if context.workers.get(key) is started:
                    del context.workers[key]


def check_sandbox(started: RunningWorker) -> dict[str, str]:
    """Return the results of the sandbox probes.

    Raises:
        Unavailable: with the code `sandbox-escape`, a probe reached its target.
    """
    probes = started.check_sandbox(SANDBOX_CHECK_S)
    through = sorted(name for name, result in probes.items() if result != "refused")
    if through:
        raise Unavailable(
            f"sandbox: expected every probe refused, got through: {', '.join(through)}", code="sandbox-escape"
        )
    return probes


def carry_out(
    started: RunningWorker,
    task: Frame,
    blob: bytes = b"",
    *,
    bounds: Bounds | None = None,
    on_frame: Callable[[Frame], None] = lambda frame: None,
) -> Frame:
    """Send the task to the worker, pass its frames to `on_frame`, and return its result frame.

    Raises:
        ApplianceError: The worker reports a failure or ends without a result.
        TooLarge: With the code `time-limit`, if the task takes longer than its bounds.
    """
    started.send({"frame": "go", **task}, blob, timeout_s=LOADING_S)
    deadline = math.inf if bounds is None else time.monotonic() + bounds.wall_s
    while (received := _receive(started, deadline)) is not None:
        frame, _ = received
        if frame.get("frame") == "result":
            return frame
        if frame.get("frame") == "failure":
            raise failure(frame)
        on_frame(frame)
    raise _error_of_end(started, bounds)


def _error_of_end(started: RunningWorker, bounds: Bounds | None) -> ApplianceError:
    """Return the error of a worker that ended without a result. Its log is empty if the kernel ended it."""
    try:
        code = started.wait(ENDS_S)
    except Unavailable:
        return _no_result(", and its processes did not end")
    if bounds is not None and code == 128 + signal.SIGXCPU:
        message = f"worker: expected its result within {bounds.cpu_s} s of the CPU, got none"
        return TooLarge(message, code=TIME_LIMIT)
    if code == 128 + signal.SIGKILL:
        return _no_result(" by signal 9: it was killed, as the kernel does where memory runs out")
    return _no_result(f" with exit code {code}; its log says more")


def _no_result(how: str) -> Unavailable:
    return Unavailable(f"worker: expected a result, got its end{how}", code="worker-ended")


def _receive(started: RunningWorker, deadline: float) -> tuple[Frame, bytes] | None:
    """Return the next frame, or None at the end."""
    left = deadline - time.monotonic()
    try:
        received = started.receive(max(0.0, min(SILENCE_S, left)))
    except Unavailable as error:
        if error.code == "worker-silent" and left < SILENCE_S:
            raise TooLarge("worker: expected its result within the time for it, got none", code=TIME_LIMIT) from None
        raise
    if received is not None and left <= 0:
        raise TooLarge("worker: expected its result within the time for it, got only frames", code=TIME_LIMIT)
    return received


def failure(frame: dict[str, Any]) -> ApplianceError:
    """Return the error that a worker's failure frame names.

    A malformed code, which could be too long for an entry, becomes `worker-failed`.
    """
    code, message = str(frame.get("code")), str(frame.get("message"))
    if _CODE.fullmatch(code) is None:
        code = "worker-failed"
    return _ERRORS.get(code, BadInput)(message, code=code)


def ask_program(
    module: str,
    task: str,
    lines: Iterable[bytes],
    parse: Callable[[dict[str, Any]], Parsed],
    *,
    log: Path,
    most_bytes: int,
    cancelled: Callable[[], bool],
) -> Parsed:
    """Run a program that answers one question, and return its parsed reply (see `run_program`).

    `task` says what it computes, for messages.

    Raises:
        Unavailable: The reply is incomplete (code `program-ended`).
        ApplianceError: The failure that the program reports.
    """
    output = run_program(module, lines, log=log, most_bytes=most_bytes, cancelled=cancelled)
    try:
        reply: dict[str, Any] = json.loads(output)
        if "failure" not in reply:
            return parse(reply)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = type(error).__name__
        raise Unavailable(f"{task}: expected a whole reply, got {got}", code="program-ended") from None
    raise failure(reply["failure"])


log = logging.getLogger("appliance")

_ENGINE_SHARE = 8
"""Divisor of the bytes that the ledger needs, which gives the free bytes below which engines are ended, too."""
_CHECK_S = 0.25
"""Seconds between two checks of the disk."""


def disk_shortage(folder: Path, reserve: Reserve | None, *, engine: bool) -> str | None:
    """Return the reason to end a worker that writes below this folder, or None if there is enough disk space."""
    _, free, needed = measure_space(folder, reserve)
    needed //= _ENGINE_SHARE if engine else 1
    if free >= needed:
        return None
    return (
        f"worker, disk: expected {needed} bytes free beside what it writes, got {free}; make room, then resume a run "
        "that has a training checkpoint (appliance run resume), and order anything else again"
    )


@contextmanager
def keep_disk_free(started: RunningWorker, folder: Path, reserve: Reserve | None, *, engine: bool) -> Iterator[None]:
    """End the worker if the folder's disk has too little free space.

    Raises:
        Unavailable: With the code `disk`, in place of the error that the end of the worker caused.
    """
    over, why = threading.Event(), ""

    def watch_disk() -> None:
        nonlocal why
        while not over.wait(_CHECK_S):
            try:
                why = disk_shortage(folder, reserve, engine=engine) or ""
            except OSError:
                continue  # the disk is missing, and the code that uses it reports that
            if why:
                log.critical("ALARM: a worker is ended: %s", why)
                started.kill()
                return

    thread = threading.Thread(target=watch_disk, name=f"disk-watch-{started.pid}", daemon=True)
    thread.start()
    try:
        yield
    except ApplianceError as error:
        if why:
            raise Unavailable(why, code=DISK) from error
        raise
    finally:
        over.set()
        thread.join()
