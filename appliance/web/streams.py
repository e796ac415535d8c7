"""An answer goes out while it is made: one thread asks for its frames, the event loop sends them.

The thread never waits for a client: a slow one holds its own connection and nothing of the engine. An error overtakes
the frames that have not been sent, so that a cut is a cut.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from appliance.errors import ApplianceError
from appliance.web.gate import Threads
from appliance.workflows.answering import Answer

Frame = dict[str, Any]


class Frames:
    """The frames of one answer, in order; leaving early ends the answer at its next frame."""

    def __init__(self, threads: Threads, frames: Answer, ended: Callable[[Frame, int], None]) -> None:
        """`ended` is called once, with the frame `done`, empty where there was none, and the number of pieces."""
        self._frames = frames
        self._count = ended
        self._loop = asyncio.get_running_loop()
        self._heard: deque[Frame | None] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._left = threading.Event()
        self.ended = asyncio.Event()
        self._error: ApplianceError | None = None
        threads.start(self._ask)

    def _ask(self) -> None:
        """In a thread of its own, which alone touches the answer."""
        done, pieces = Frame(), 0
        try:
            for frame in self._frames:
                done, pieces = (frame, pieces) if frame["frame"] == "done" else (done, pieces + 1)
                self._tell(frame)
                if self._left.is_set():
                    self._frames.close()
        except ApplianceError as error:
            self._error = error
        finally:
            self._count(done, pieces)
            self._tell(None)

    def _tell(self, frame: Frame | None) -> None:
        with suppress(RuntimeError):  # the service has ended, and its loop with it
            self._loop.call_soon_threadsafe(self._hear, frame)

    def _hear(self, frame: Frame | None) -> None:
        self._heard.append(frame)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
        if frame is None:
            self.ended.set()

    async def each(self) -> AsyncIterator[Frame]:
        """Raises what ended the answer before its end, at once."""
        while True:
            if not self._heard:
                self._waiting = self._loop.create_future()
                await self._waiting
            frame = self._heard.popleft()
            if self._error is not None:
                raise self._error
            if frame is None:
                return
            yield frame

    def leave(self) -> None:
        """Nobody listens any more."""
        self._left.set()
