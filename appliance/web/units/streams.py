"""Streamed responses: the engine's thread passes on frames, and the event loop sends them.

A slow client holds its own connection and nothing of the engine. An error overtakes the frames that have not been sent,
so that no further token leaves. Only the recorded beginning and end of a response use a thread.
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
from appliance.web.core.receiving import wait_for_disconnect
from appliance.web.units.middleware import Threads
from appliance.workflows.serving.answering import AnswerStream, make_lost_error

Frame = dict[str, Any]
Act = Callable[[], None]


class CallQueue:
    """A queue of calls from other threads to the event loop.

    The loop wakes once for all calls that have accumulated, such as those for the tokens of a step.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._acts: list[Act] = []

    def put(self, loop: asyncio.AbstractEventLoop, act: Act) -> None:
        """Add a call from any thread. Calls run in order, always in the same loop. `act` must not raise."""
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
    """The frames of one response, in order."""

    def __init__(
        self, threads: Threads, calls: CallQueue, answer: AnswerStream, ended: Callable[[Frame, int], None]
    ) -> None:
        """Start the response.

        `ended` is called once, with the frame `done` (empty without one) and the number of pieces.
        """
        self._threads, self._calls, self._answer, self._count = threads, calls, answer, ended
        self._loop = asyncio.get_running_loop()
        self._frames: deque[Frame | None] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._pieces = 0
        self._is_ending = False
        self.ended = asyncio.Event()
        self._error: ApplianceError | None = None
        threads.start(self._start)

    def _start(self) -> None:
        try:
            self._answer.start(self._queue_frame)
        except BaseException as error:
            known = error if isinstance(error, ApplianceError) else make_lost_error()
            self._calls.put(self._loop, partial(self._begin_end, partial(_refuse, known)))
            if known is not error:
                raise

    def _queue_frame(self, frame: Frame | None) -> None:
        """Pass on a frame. This is called in the engine's thread."""
        self._calls.put(self._loop, partial(self._process_frame, frame))

    # The methods below run in the event loop, except `_end` and `_close`.

    def _process_frame(self, frame: Frame | None) -> None:
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
        """End the response in a thread, because its end is an entry and may wait for the disk."""
        done: Frame = {}
        error: ApplianceError | None = None
        try:
            done = end()
        except ApplianceError as known:
            error = known
        except BaseException:
            error = make_lost_error()
            raise
        finally:
            self._error = error
            self._count(done, self._pieces)
            self._calls.put(self._loop, partial(self._finish, done))

    def _finish(self, done: Frame) -> None:
        if done:
            self._pass_on(done)
        self._pass_on(None)
        self.ended.set()

    def _pass_on(self, frame: Frame | None) -> None:
        self._frames.append(frame)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def each(self) -> AsyncIterator[Frame]:
        """Yield the frames.

        Raises: the error that ended the response early, at once.
        """
        while True:
            if not self._frames:
                self._waiting = self._loop.create_future()
                await self._waiting
            frame = self._frames.popleft()
            if self._error is not None:
                raise self._error
            if frame is None:
                return
            yield frame

    def leave(self) -> None:
        """End the response because the client has left."""
        self._begin_end(self._close)

    def _close(self) -> Frame:
        self._answer.close()
        return {}


class Events(Response):
    """A response of server-sent events.

    One task waits for the client's disconnect. Starlette's own streaming response would need a task group for each.
    """

    def __init__(self, events: AsyncIterator[str], leave: Act) -> None:
        """Create the response. `leave` is called when the client disconnects."""
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
        await wait_for_disconnect(receive)
        self._leave()


def _refuse(error: ApplianceError) -> Frame:
    raise error
