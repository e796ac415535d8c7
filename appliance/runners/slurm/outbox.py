"""Frames on their way to a worker, which a thread of their own sends: whoever puts one in can read on, also while the
worker is paused and its pipe is full. Otherwise the word that lets it go on would never be read.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import Any

from appliance.errors import Unavailable
from appliance.runners.local import Worker

MOST_BYTES = 64 << 20
"""So much waits for a worker that runs. For a paused one more may come: what was under way when all were paused."""
SEND_S = 86_400.0
"""A paused worker reads later."""


class Outbox:
    """Of one worker; its frames are sent in the order in which they were put in. Used by one thread."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker = worker
        self._frames: deque[tuple[dict[str, Any], bytes]] = deque()
        self._bytes = 0
        self._is_paused = False
        self._changed = threading.Condition()
        threading.Thread(target=self._send, name=name, daemon=True).start()

    def put(self, header: dict[str, Any], blob: bytes) -> None:
        """Waits while too much waits for a worker that reads slowly."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_paused or self._bytes < MOST_BYTES)
            self._frames.append((header, blob))
            self._bytes += len(blob)
            self._changed.notify_all()

    def pause(self) -> None:
        self._is_paused = True
        self._worker.pause()

    def resume(self) -> None:
        self._is_paused = False
        self._worker.resume()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames)
                header, blob = self._frames.popleft()
            # One that has ended is reported by the thread that reads from it.
            with suppress(Unavailable):
                self._worker.send(header, blob, timeout_s=SEND_S)
            with self._changed:
                self._bytes -= len(blob)
                self._changed.notify_all()
