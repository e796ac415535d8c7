"""Starts the ranks of a run on this machine: forks of its worker, inside its walls, joined to the first one by pipes.

A fork runs no new program and opens no socket, so the walls of a run with many ranks are those of a run with one: no
exec, no network, not even loopback. It must come before torch is imported, which has threads that no fork keeps.

Rank 0 alone has the worker's frames, so it alone writes the record and the training checkpoints. Where a run has
several nodes, each rank on another node than the first is a worker of its own there (`channels.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from appliance.errors import ApplianceError, BadInput, Unavailable, refuse
from appliance.worker.link import Header, Link, take

Ends = tuple[tuple[int, int], ...]
"""Pipes to other ranks, each a descriptor to read and one to write: rank 0 has one pair for each other rank, in order,
and each other rank has one pair, to rank 0."""
RANK_ENDED = "rank-ended"
_FAILED, _OUT_OF_MEMORY = 1, 3
_PIPE_BYTES = 1 << 20
_END_S = 10.0
_CARDS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Shape:
    """How a run's ranks lie: `count` of them in all, the first `here` of them on this machine. `threads` for each,
    where a run is replayed on a machine that has others; None: this machine's, shared out."""

    count: int
    here: int
    device: str
    threads: int | None = None

    @property
    def far(self) -> range:
        """The ranks on other nodes."""
        return range(self.here, self.count)


def take_shape(task: Header) -> Shape:
    recipe: dict[str, Any] = take(task, "recipe", dict)
    count, nodes = recipe["processes"], take(task, "nodes", int) if "nodes" in task else 1
    if nodes < 1 or count % nodes:
        raise BadInput(f"task, nodes: expected a divisor of {count} processes, got {nodes}")
    threads = take(task, "threads", int) if "threads" in task else None
    return Shape(count, count // nodes, recipe["device"], threads)


@contextmanager
def start_ranks(session: Link, shape: Shape, follow: Callable[[int, Ends], None]) -> Iterator[Ends]:
    """Runs `follow(rank, ends)` in a process for each rank here but the first, and gives the first its ends.

    On the way out every other rank is ended: after the last step nothing is left for it to do. BadInput where the
    machine cannot share itself out, Unavailable (`rank-ended`, `out-of-memory`) where a rank ended before the run.
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
    """BadInput where this process's threads or cards cannot be divided so."""
    from appliance.domain.recipe.processes import misfits_machine

    refuse("recipe", misfits_machine(count, device, len(os.sched_getaffinity(0)), max(1, len(list_cards()))))


def list_cards() -> list[str]:
    """The cards that this process may see, as CUDA names them."""
    return [card for card in os.environ.get(_CARDS, "").split(",") if card]


def take_card(device: str, rank: int, count: int) -> None:
    """From here on this process sees one card, its own. It must come before torch starts CUDA."""
    if device == "cuda" and count > 1:
        os.environ[_CARDS] = list_cards()[rank]


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    # A site may allow smaller pipes only: slower, nothing else.
    with contextlib.suppress(OSError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return reading, writing


def _close(ends: list[tuple[int, int]]) -> None:
    for descriptor in (one for pair in ends for one in pair):
        os.close(descriptor)


def _follow(follow: Callable[[int, Ends], None], rank: int, count: int, device: str, ends: tuple[int, int]) -> NoReturn:
    """The whole life of another rank. Its exit code is all that it reports; its defects have their trace in the log."""
    code = _FAILED
    try:
        take_card(device, rank, count)
        follow(rank, (ends,))
        code = 0
    except ApplianceError as error:
        # Its message may quote a row.
        print(f"rank {rank} failed: {error.code}", file=sys.stderr)
    except MemoryError:
        code = _OUT_OF_MEMORY
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        code = _OUT_OF_MEMORY
    finally:
        # A defect would go on to the code that forked: it ends here, with its trace.
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def _explain(children: list[int]) -> Unavailable:
    """What ended a rank, once its pipe has closed: its exit code comes a moment later."""
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        for rank, child in enumerate(children, start=1):
            # Left to be collected at the end, so that no signal can reach another process of that number.
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
