"""How a workflow talks to a sandboxed worker: walls first, then the task, then frames until a result."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadInput, Denied, NotFound, Tampered, TooLarge, Unavailable
from appliance.runners.local import Worker, start_worker
from appliance.runners.running import Running
from appliance.runners.sandbox import Limits, Sandbox
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.disk_reserve import kept_free

SERVE, SERVE_VLLM = "appliance.worker.serve", "appliance.worker.serve_vllm"
WALLS_S = 120.0
SILENCE_S = 1_800.0
"""A worker that says nothing for this long is taken for dead."""
ENDS_S = 30.0
TIME_LIMIT = "time-limit"

_CODE = re.compile(r"[a-z][a-z0-9-]{0,63}")
_ERRORS: dict[str, type[ApplianceError]] = {
    **{error.code: error for error in (BadInput, NotFound, Tampered, Unavailable)},
    "probe-differs": Tampered,
    "adapter-inactive": Tampered,
    **dict.fromkeys(
        ("out-of-memory", "cache-full", "not-finite", "answer-failed", "harness-missing", "no-vllm"), Unavailable
    ),
    "context-length": TooLarge,
    "cut-off": Denied,
}


@dataclass(frozen=True)
class Bounds:
    """What a worker may take for one task: seconds by the clock, and seconds of the CPU for each of its processes."""

    wall_s: float
    cpu_s: int


@contextmanager
def worker(
    context: Context,
    key: str,
    module: str,
    *,
    read: tuple[Path, ...],
    write: tuple[Path, ...] = (),
    gpu: bool = False,
    cpu_s: int | None = None,
    libraries: tuple[Path, ...] = (),
) -> Iterator[Worker]:
    """A started worker, findable by `key` while it lives, so that it can be stopped; ended on the way out.

    Its home is a scratch folder of its own, apart from what it is to write.
    """
    accepted = frozenset(context.ledger.state.parameters.accepted_missing_layers)
    name = f"{key.replace(':', '-')}-{module.rpartition('.')[2]}.log"
    with context.artifacts.staging() as scratch:
        limits = Limits(cpu_s=cpu_s)
        sandbox = Sandbox(read=read, write=(scratch, *write), devices=gpu, limits=limits, libraries=libraries)
        started = start_worker(
            module, sandbox, log=context.logs / name, accepted_missing=accepted, probes=context.probes
        )
        with started, kept_free(started, scratch, engine=module in (SERVE, SERVE_VLLM)):
            context.workers[key] = started
            try:
                yield started
            finally:
                # One that was ended late leaves its successor findable.
                if context.workers.get(key) is started:
                    del context.workers[key]


def check_walls(started: Running) -> dict[str, str]:
    """The probes' results; Unavailable when any got through, so that nothing runs in a broken sandbox."""
    walls = started.check_walls(WALLS_S)
    through = sorted(name for name, result in walls.items() if result != "refused")
    if through:
        raise Unavailable(f"sandbox: expected every probe refused, got through: {', '.join(through)}", code="wall-open")
    return walls


def carry_out(
    started: Running,
    task: Frame,
    blob: bytes = b"",
    *,
    bounds: Bounds | None = None,
    on_frame: Callable[[Frame], None] = lambda frame: None,
) -> Frame:
    """Sends the task and returns the result frame; a failure frame, a silent end or one that takes longer than its
    bounds is raised as an error."""
    started.send({"frame": "go", **task}, blob)
    deadline = math.inf if bounds is None else time.monotonic() + bounds.wall_s
    while (received := _receive(started, deadline)) is not None:
        frame, _ = received
        if frame.get("frame") == "result":
            return frame
        if frame.get("frame") == "failure":
            raise failure(frame)
        on_frame(frame)
    raise _ended(started, bounds)


def _ended(started: Running, bounds: Bounds | None) -> ApplianceError:
    """Why a worker ended that said nothing: its log is empty where the kernel ended it."""
    try:
        code = started.wait(ENDS_S)
    except Unavailable:
        return _no_result(", and its processes did not end")
    if bounds is not None and code == 128 + signal.SIGXCPU:
        said = f"worker: expected its result within {bounds.cpu_s} s of the CPU, got none"
        return TooLarge(said, code=TIME_LIMIT)
    if code == 128 + signal.SIGKILL:
        return _no_result(" by signal 9: it was killed, as the kernel does where memory runs out")
    return _no_result(f" with exit code {code}; its log says more")


def _no_result(how: str) -> Unavailable:
    return Unavailable(f"worker: expected a result, got its end{how}", code="worker-ended")


def _receive(started: Running, deadline: float) -> tuple[Frame, bytes] | None:
    """The next frame, None at the end; TooLarge (`time-limit`) where it does not come by the deadline."""
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
    """A worker's own refusal, as the error that it names; under `worker-failed` where that is no code, which might be
    too long for an entry."""
    code, message = str(frame.get("code")), str(frame.get("message"))
    if _CODE.fullmatch(code) is None:
        code = "worker-failed"
    return _ERRORS.get(code, BadInput)(message, code=code)
