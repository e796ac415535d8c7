"""Threads that must continue: a queue of jobs, and containment of unexpected errors.

Jobs run one after another on one thread, or on a few threads where jobs wait for other machines.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from appliance.errors import ApplianceError, Unavailable

_alarms = logging.getLogger("appliance")
DEFECT, DISK = "defect", "disk"


@contextmanager
def contain_defects(what: str) -> Iterator[None]:
    """Convert whatever is raised within the context into an ApplianceError.

    Raises:
        Unavailable: With the code `disk`, for an error of the operating system.
        ApplianceError: With the code `defect`, for a defect of the appliance; an ALARM with the traceback is logged
            first.
    """
    try:
        yield
    except ApplianceError:
        raise
    except OSError as error:
        raise Unavailable(f"{what}, disk: expected it to work, got {error}", code=DISK) from error
    except Exception as error:
        # Threads that run jobs, repeat work or read from an engine all use this function. If such a thread died, the
        # work that is queued after it would wait for ever, without an error.
        _alarms.critical("ALARM: %s: a defect of the appliance", what, exc_info=True)
        got = type(error).__name__
        raise ApplianceError(
            f"{what}: expected no defect of the appliance, got {got}; see the service's log", code=DEFECT
        ) from error


Job = Callable[[], None]
log = logging.getLogger(__name__)


class Jobs:
    """A queue of jobs whose owners take turns.

    The next job is the oldest one of the owner whose last job began longest ago. A job records its own failure. An
    error that it raises is logged, and the next job runs in any case.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self.name = name
        self._count = threads
        self._waiting: dict[str, deque[Job]] = {}
        self._turns: dict[str, int] = {}
        """Number of the last job that began, by owner."""
        self._began = 0
        self._open = 0
        self._ending = False
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def put(self, job: Job, owner: str = "") -> None:
        """Add a job of this owner, and start a thread for it if fewer threads than allowed are running."""
        with self._changed:
            self._open += 1
            self._waiting.setdefault(owner, deque()).append(job)
            if len(self._threads) < min(self._count, self._open):
                self._threads.append(threading.Thread(target=self._run, name=self.name, daemon=True))
                self._threads[-1].start()
            self._changed.notify()

    @property
    def busy(self) -> bool:
        """Return True if a job is running or queued."""
        return self._open > 0

    def stop(self, timeout_s: float) -> None:
        """Wait for the jobs to end, at most `timeout_s` seconds. The next start runs those that are left."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _take(self) -> Job | None:
        """Wait for the next job and return it, or None once the queue is stopped and empty."""
        with self._changed:
            while not self._waiting:
                if self._ending:
                    return None
                self._changed.wait()
            owner = min(self._waiting, key=lambda name: self._turns.get(name, 0))
            self._began += 1
            self._turns[owner] = self._began
            job = self._waiting[owner].popleft()
            if not self._waiting[owner]:
                del self._waiting[owner]
            return job

    def _run(self) -> None:
        while (job := self._take()) is not None:
            try:
                with contain_defects(self.name):
                    job()
            except ApplianceError as error:
                log.error("%s: %s", self.name, error.message)
            finally:
                with self._changed:
                    self._open -= 1


class ItemsInProgress:
    """Names of the items that a thread works on now, so that no other thread starts on them too."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Return True if the item was free and now belongs to the caller, who must `leave` it afterwards."""
        with self._lock:
            free = name not in self._names
            self._names.add(name)
            return free

    def leave(self, name: str) -> None:
        """Release the item."""
        with self._lock:
            self._names.discard(name)

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return name in self._names
