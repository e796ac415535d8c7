"""Who connects to a run's first node: greeted at once, beside what the node copies, and beside those who are slow."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from appliance.runners.slurm import peer as connections
from appliance.runners.slurm.peer import Peer

AT_ONCE = 64
"""So many are greeted at the same time; others wait in the kernel until one of them has joined or is let go."""
_AGAIN_S = 0.1

Arrival = tuple[Peer, dict[str, Any]]
"""A launcher that has the job's key, and what it said of itself."""


class Arrivals:
    """Listens from its start to `close`."""

    def __init__(self, address: str, secret: bytes, attempt: int) -> None:
        """`address`: by which the cluster knows this node; Unavailable where that is not its own."""
        self._listener = connections.listen(address)
        self.port: int = self._listener.getsockname()[1]
        self._secret, self._attempt = secret, attempt
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._greeted: set[socket.socket] = set()
        self._joined: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._closed = False
        threading.Thread(target=self._accept, name="arrivals", daemon=True).start()

    def take(self, timeout_s: float) -> Arrival | None:
        """The next launcher; None where none joined in time."""
        with suppress(queue.Empty):
            return self._joined.get(timeout=timeout_s)
        return None

    def close(self) -> None:
        """Nobody else joins; those who were not taken are let go."""
        with self._lock:
            self._closed = True
            # Threads that wait for these sockets wake up, and close them.
            for waited_for in (self._listener, *self._greeted):
                with suppress(OSError):
                    waited_for.shutdown(socket.SHUT_RDWR)
        while (left := self.take(0)) is not None:
            left[0].close()

    def _accept(self) -> None:
        with self._listener:
            while not self._closed:
                self._places.acquire()
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    # The listener's end, or too many open files.
                    self._places.release()
                    time.sleep(_AGAIN_S)
                    continue
                threading.Thread(target=self._greet, args=(connection,), name="arrival", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            if self._begin(connection):
                found = connections.greet(connection, self._secret, self._attempt)
                self._end(connection, found)
        finally:
            self._places.release()

    def _begin(self, connection: socket.socket) -> bool:
        with self._lock:
            if self._closed:
                connection.close()
            else:
                self._greeted.add(connection)
            return not self._closed

    def _end(self, connection: socket.socket, found: Arrival | None) -> None:
        with self._lock:
            self._greeted.discard(connection)
            if found is None:
                return
            if self._closed:
                found[0].close()
            else:
                self._joined.put(found)
