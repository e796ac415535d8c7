"""An answer goes out while it is made: the engine's thread tells its frames, the event loop sends them.

Neither waits for a client: a slow one holds its own connection and nothing of the engine. An error overtakes the frames
that have not been sent, so that a cut is a cut. Only an answer's beginning and its end, which are recorded, take a
thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.web.units.gate import Threads
from appliance.workflows.serving.answering import Answer, lost

Frame = dict[str, Any]
Act = Callable[[], None]


class Post:
    """What other threads want done in the event loop: it wakes once for all that has come together, as the tokens of a
    step do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._acts: list[Act] = []

    def put(self, loop: asyncio.AbstractEventLoop, act: Act) -> None:
        """In the order in which they are put, from any thread; always with the same loop. The act does not raise."""
        with self._lock:
            self._acts.append(act)
            first = len(self._acts) == 1
        if first:
            with suppress(RuntimeError):  # the service has ended, and its loop with it
                loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        with self._lock:
            acts, self._acts = self._acts, []
        for act in acts:
            act()


class Frames:
    """The frames of one answer, in order; leaving early ends the answer at once."""

    def __init__(self, threads: Threads, post: Post, answer: Answer, ended: Callable[[Frame, int], None]) -> None:
        """`ended` is called once, with the frame `done`, empty where there was none, and the number of pieces."""
        self._threads, self._post, self._answer, self._count = threads, post, answer, ended
        self._loop = asyncio.get_running_loop()
        self._heard: deque[Frame | None] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._pieces = 0
        self._is_ending = False
        self.ended = asyncio.Event()
        self._error: ApplianceError | None = None
        threads.start(self._start)

    def _start(self) -> None:
        try:
            self._answer.start(self._tell)
        except BaseException as error:
            known = error if isinstance(error, ApplianceError) else lost()
            self._post.put(self._loop, partial(self._begin_end, partial(_refuse, known)))
            if known is not error:
                raise

    def _tell(self, frame: Frame | None) -> None:
        """In the engine's thread."""
        self._post.put(self._loop, partial(self._hear, frame))

    # From here on, in the event loop alone.

    def _hear(self, frame: Frame | None) -> None:
        if self._is_ending:
            return
        if frame is not None and frame["frame"] == "token":
            with suppress(Exception):  # raised again by the end
                self._answer.give(frame)
                self._pieces += 1
                self._pass_on(frame)
                return
        self._begin_end(partial(self._answer.end, frame))

    def _begin_end(self, end: Callable[[], Frame]) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._threads.start(partial(self._end, end))

    def _end(self, end: Callable[[], Frame]) -> None:
        """In a thread: the end is an entry, and may wait for the disk."""
        done: Frame = {}
        error: ApplianceError | None = None
        try:
            done = end()
        except ApplianceError as found:
            error = found
        except BaseException:
            error = lost()
            raise
        finally:
            self._error = error
            self._count(done, self._pieces)
            self._post.put(self._loop, partial(self._finish, done))

    def _finish(self, done: Frame) -> None:
        if done:
            self._pass_on(done)
        self._pass_on(None)
        self.ended.set()

    def _pass_on(self, frame: Frame | None) -> None:
        self._heard.append(frame)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

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
        """The client has left."""
        self._begin_end(self._close)

    def _close(self) -> Frame:
        self._answer.close()
        return {}


class Events(Response):
    """Server-sent events as they are made. Of starlette's own response for what streams, no task group and no copy of a
    task for each: one task here listens for a client that leaves, and tells it."""

    def __init__(self, events: AsyncIterator[str], leave: Act) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._events, self._leave = events, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listening = asyncio.create_task(self._listen(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            listening.cancel()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._leave()


def _refuse(error: ApplianceError) -> Frame:
    raise error
