"""Events that the server sends to an open page, for as long as its session stands."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from appliance.errors import ApplianceError

TICK_S = 0.5
"""A page is told of a change within a second."""
QUIET_S = 5.0
"""After so long without an event the session is looked at, and a comment keeps the connection open."""
RETRY_MS = 2_000
KEPT_S = 600.0
"""A stream ends then, and the browser opens it again where it was."""
_QUIET_TYPES = (
    *("heartbeat", "request.admitted", "request.finished", "session.opened", "session.closed", "auth.refused"),
)
"""Entries that change no page that is open."""


class Event(NamedTuple):
    """`id`: what the browser sends as Last-Event-ID when it comes again; `data`: JSON. `last`: nothing follows."""

    id: str
    name: str
    data: Any
    last: bool = False


class Changes:
    """Counts what was recorded that an open page may show."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def note(self, kind: str) -> None:
        if kind not in _QUIET_TYPES:
            with self._lock:
                self.count += 1


Next = Callable[[str], Event | None]
"""The next event after the one with this id ("" before the first), or None while there is none."""


def stream(after: str, find: Next, check: Callable[[], object]) -> StreamingResponse:
    """`check` raises once the session has ended: nothing is sent after it."""
    return StreamingResponse(
        _events(after, find, check), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _events(after: str, find: Next, check: Callable[[], object]) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    quiet = ticked = 0.0
    while ticked < KEPT_S:
        try:
            event = await run_in_threadpool(_turn, after, find, check, quiet >= QUIET_S)
        except ApplianceError:
            yield "event: end\ndata: {}\n\n"
            return
        if event is not None:
            after, quiet = event.id, 0.0
            yield f"id: {event.id}\nevent: {event.name}\ndata: {json.dumps(event.data)}\n\n"
            if event.last:
                return
        elif quiet >= QUIET_S:
            quiet = 0.0
            yield ": open\n\n"
        await asyncio.sleep(TICK_S)
        quiet, ticked = quiet + TICK_S, ticked + TICK_S


def _turn(after: str, find: Next, check: Callable[[], object], look: bool) -> Event | None:
    """In a thread: finding an event may wait for the ledger, for which no other answer waits."""
    event = find(after)
    if event is not None or look:
        check()
    return event
