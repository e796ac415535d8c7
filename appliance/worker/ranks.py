"""Ranks of a training run: forks of the worker on this machine, and frames to the ranks on other nodes.

A fork runs no new program and opens no socket, so a run with many ranks has the same sandbox as a run with one: no exec
and no network, not even loopback. Forks are made before torch is imported, since a fork does not keep torch's threads.

Only rank 0 has the worker's frames, so only rank 0 writes the record and the training checkpoints. In a run on several
nodes, each rank on another node is a worker of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from appliance.domain.recipe.methods import list_machine_problems
from appliance.errors import ApplianceError, BadInput, Unavailable, refuse
from appliance.worker.link import Header, WorkerLink, take

Ends = tuple[tuple[int, int], ...]
"""Pipes to other ranks, as pairs of a descriptor to read and one to write.

Rank 0 has one pair for each other rank, in order; every other rank has one pair, to rank 0.
"""
RANK_ENDED = "rank-ended"
_FAILED, _OUT_OF_MEMORY = 1, 3
_PIPE_BYTES = 1 << 20
_END_S = 10.0
_CARDS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class RankLayout:
    """The distribution of a run's ranks: `count` in all, of which the first `here` are on this machine.

    `threads` is the number per rank when a run is replayed on another machine; None divides the threads of this
    machine.
    """

    count: int
    here: int
    device: str
    threads: int | None = None

    @property
    def remote_ranks(self) -> range:
        """Return the ranks on other nodes."""
        return range(self.here, self.count)


def take_shape(task: Header) -> RankLayout:
    """Return the distribution of the task's ranks.

    Raises:
        BadInput: the number of nodes does not divide the number of processes.
    """
    recipe: dict[str, Any] = take(task, "recipe", dict)
    count, nodes = recipe["processes"], take(task, "nodes", int) if "nodes" in task else 1
    if nodes < 1 or count % nodes:
        raise BadInput(f"task, nodes: expected a divisor of {count} processes, got {nodes}")
    threads = take(task, "threads", int) if "threads" in task else None
    return RankLayout(count, count // nodes, recipe["device"], threads)


@contextmanager
def start_ranks(session: WorkerLink, shape: RankLayout, follow: Callable[[int, Ends], None]) -> Iterator[Ends]:
    """Run `follow(rank, ends)` in a process for every local rank but the first, and yield the ends of the first.

    When the block ends, all other ranks are killed, since they have no work after the last step.

    Raises:
        BadInput: the machine's threads or cards cannot be divided among the ranks.
        Unavailable: a rank ended early (code `rank-ended` or `out-of-memory`).
    """
    count = shape.here
    if shape.threads is None:
        check_share(shape.device, count)
    ends: list[tuple[int, int]] = []
    children: list[int] = []
    try:
        for rank in range(1, count):
            (their_in, our_out), (our_in, their_out) = _pipe(), _pipe()
            child = os.fork()
            if child == 0:
                session.close()
                _close([*ends, (our_in, our_out)])
                _follow(follow, rank, count, shape.device, (their_in, their_out))
            children.append(child)
            _close([(their_in, their_out)])
            ends.append((our_in, our_out))
        take_card(shape.device, 0, count)
        yield tuple(ends)
    except Unavailable as error:
        raise (_explain(children) if children and error.code == RANK_ENDED else error) from None
    finally:
        _close(ends)
        for child in children:
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def check_share(device: str, count: int) -> None:
    """Check that this process's threads or cards can be divided among `count` ranks.

    Raises:
        BadInput: they cannot.
    """
    refuse("recipe", list_machine_problems(count, device, len(os.sched_getaffinity(0)), max(1, len(list_cards()))))


def list_cards() -> list[str]:
    """Return the GPUs that are visible to this process, as CUDA names them."""
    return [card for card in os.environ.get(_CARDS, "").split(",") if card]


def take_card(device: str, rank: int, count: int) -> None:
    """Restrict this process to the GPU of its rank; call it before torch initialises CUDA."""
    if device == "cuda" and count > 1:
        os.environ[_CARDS] = list_cards()[rank]


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    # A site may allow smaller pipes only, which are slower but work.
    with contextlib.suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


def _close(ends: list[tuple[int, int]]) -> None:
    for descriptor in (one for pair in ends for one in pair):
        os.close(descriptor)


def _follow(follow: Callable[[int, Ends], None], rank: int, count: int, device: str, ends: tuple[int, int]) -> NoReturn:
    """Run another rank from start to end. It reports only its exit code; tracebacks of defects go to the log."""
    code = _FAILED
    try:
        take_card(device, rank, count)
        follow(rank, (ends,))
        code = 0
    except ApplianceError as error:
        # The message is omitted, since it may quote a row.
        print(f"rank {rank} failed: {error.code}", file=sys.stderr)
    except MemoryError:
        code = _OUT_OF_MEMORY
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        code = _OUT_OF_MEMORY
    finally:
        # Log a defect and exit here, so that it does not reach the code that forked.
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def _explain(children: list[int]) -> Unavailable:
    """Return the error that describes which rank ended; its exit code arrives shortly after its pipe closes."""
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        for rank, child in enumerate(children, start=1):
            # WNOWAIT leaves the process uncollected, so that no signal can reach another process with that id.
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or (ended.si_code == os.CLD_EXITED and ended.si_status == 0):
                continue
            if ended.si_code == os.CLD_EXITED and ended.si_status == _OUT_OF_MEMORY:
                return Unavailable(f"worker, rank {rank}: expected enough memory, got too little", code="out-of-memory")
            how = "exit code" if ended.si_code == os.CLD_EXITED else "signal"
            return Unavailable(
                f"worker, rank {rank}: expected it to train to the last step, got its end by {how} {ended.si_status}; "
                "see the worker's log",
                code=RANK_ENDED,
            )
        time.sleep(0.01)
    return Unavailable("worker: expected every rank to train to the last step, got a closed pipe", code=RANK_ENDED)


SILENT_S = 1500
"""Seconds without data after which a rank has failed; the service stops a worker a little later."""
_PART_BYTES = 512 << 10
"""Bytes per frame; the launcher accepts at most 1 MiB with a frame."""


class Incoming:
    """A thread that reads the frames that arrive after the task."""

    def __init__(self, session: WorkerLink, ranks: Iterable[int] = ()) -> None:
        """Start the thread; `ranks` are those on other nodes."""
        self._session, self._asked = session, threading.Event()
        self._parts: dict[int, queue.Queue[bytes | None]] = {rank: queue.Queue() for rank in ranks}
        threading.Thread(target=self._read, name="frames", daemon=True).start()

    def take_checkpoint_request(self) -> bool:
        """Return True if a training checkpoint was requested since the last call, such as before a cluster node is
        taken away."""
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    def channels(self) -> list[FrameChannel]:
        """Return a channel for each rank on another node."""
        return [FrameChannel(self._session, rank, parts) for rank, parts in self._parts.items()]

    def _read(self) -> None:
        try:
            while (frame := self._session.receive()) is not None:
                header, blob = frame
                if header.get("frame") == "checkpoint":
                    self._asked.set()
                elif header.get("frame") == "rank" and header.get("rank") in self._parts:
                    self._parts[header["rank"]].put(blob)
        except ApplianceError as error:
            print(f"frames: {error.code}", file=sys.stderr)
        for parts in self._parts.values():
            parts.put(None)


class FrameChannel:
    """A byte stream to and from a rank on another node."""

    def __init__(
        self, session: WorkerLink, rank: int, parts: queue.Queue[bytes | None], silent_s: int = SILENT_S
    ) -> None:
        self._session, self._rank, self._parts, self._silent_s = session, rank, parts, silent_s
        self._rest = memoryview(b"")

    def write(self, data: memoryview) -> None:
        for start in range(0, len(data), _PART_BYTES):
            try:
                self._session.send({"frame": "rank", "rank": self._rank}, data[start : start + _PART_BYTES])
            except ApplianceError:
                raise EOFError from None

    def read(self, into: memoryview) -> None:
        while into:
            if not self._rest:
                self._rest = memoryview(self._next())
            count = min(len(into), len(self._rest))
            into[:count] = self._rest[:count]
            into, self._rest = into[count:], self._rest[count:]

    def _next(self) -> bytes:
        # Wait in steps of one second, so that a pause of the node counts as one second, however long it is.
        for _ in range(self._silent_s):
            try:
                part = self._parts.get(timeout=1.0)
            except queue.Empty:
                continue
            if part is None:
                raise EOFError
            return part
        raise TimeoutError
