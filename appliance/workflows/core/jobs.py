"""A queue of jobs that run one after another on one thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from appliance.errors import ApplianceError
from appliance.workflows.core.defects import contain_defects

Job = Callable[[], None]
log = logging.getLogger(__name__)


class Jobs:
    """Jobs in the order in which they came. A job records its own failure; what it lets through is logged, and the
    next one's turn comes whatever that was."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._open = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, job: Job) -> None:
        with self._lock:
            self._open += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
        self._queue.put(job)

    @property
    def busy(self) -> bool:
        return self._open > 0

    def stop(self, timeout_s: float) -> None:
        """Lets the running job end; what still waits is left to the next start."""
        thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout_s)

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
