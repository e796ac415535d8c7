"""Whether the service is in use, so that an embedded one ends when it is idle."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send


class Activity:
    """Counts the open requests of the listeners that it watches; all of them are in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = 0
        self._last = clock()

    def watching(self, app: ASGIApp) -> ASGIApp:
        """The app itself; a request is open from its headers until its answer is sent or left."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":  # the app's own lifespan is as long as the service's
                await app(scope, receive, send)
                return
            self._touch(1)
            try:
                await app(scope, receive, send)
            finally:
                self._touch(-1)

        return watched

    def idle_s(self) -> float:
        """Since the last request ended; 0 while one is open."""
        return 0.0 if self._open else self._clock() - self._last

    def _touch(self, change: int) -> None:
        self._open += change
        self._last = self._clock()
