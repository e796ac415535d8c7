"""A queue of jobs that run one after another on one thread, or a few at a time where they wait for other machines."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from appliance.errors import ApplianceError
from appliance.workflows.core.defects import contain_defects

Job = Callable[[], None]
log = logging.getLogger(__name__)


class Jobs:
    """Jobs in the order in which they came. A job records its own failure; what it lets through is logged, and the
    next one's turn comes whatever that was."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self.name = name
        self._count = threads
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._open = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def put(self, job: Job) -> None:
        with self._lock:
            self._open += 1
            if len(self._threads) < min(self._count, self._open):
                self._threads.append(threading.Thread(target=self._run, name=self.name, daemon=True))
                self._threads[-1].start()
        self._queue.put(job)

    @property
    def busy(self) -> bool:
        return self._open > 0

    def stop(self, timeout_s: float) -> None:
        """Lets the running job end; what still waits is left to the next start."""
        deadline = time.monotonic() + timeout_s
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                with contain_defects(self.name):
                    job()
            except ApplianceError as error:
                log.error("%s: %s", self.name, error.message)
            finally:
                with self._lock:
                    self._open -= 1


class InHand:
    """Names of what some thread works on now, so that no other begins with it too."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Whether it is the caller's now, who then must `leave` it."""
        with self._lock:
            free = name not in self._names
            self._names.add(name)
            return free

    def leave(self, name: str) -> None:
        with self._lock:
            self._names.discard(name)

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return name in self._names
