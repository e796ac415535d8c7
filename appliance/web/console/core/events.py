"""Server-sent events for an open page, while its session is valid."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from appliance.domain.core.entry import Entry
from appliance.domain.queries.unit_reading import find_unit_reader
from appliance.errors import ApplianceError
from appliance.web.console.core.page import Query
from appliance.workflows.core.context import LedgerContext

TICK_S = 0.5
"""Seconds between two searches for events, so that a page learns of a change within a second."""
QUIET_S = 5.0
"""Seconds without an event after which the session is checked and a comment keeps the connection open."""
RETRY_MS = 2_000
"""Milliseconds before a browser reconnects."""
KEPT_S = 600.0
"""Seconds after which a stream ends. The browser reconnects and continues."""
_QUIET_TYPES = (
    *("heartbeat", "request.admitted", "request.finished", "session.opened", "session.closed", "auth.refused"),
)
"""Types of entries that change no open page."""
_MOST_RECENT = 1_024
"""Maximum number of entries that are kept for streams that have not seen them."""
_CONNECT_S = 60.0
"""Maximum seconds between a page and its stream. A later stream begins with an event."""


class ServerSentEvent(NamedTuple):
    """An event. `id` is sent back by the browser as Last-Event-ID, `data` is JSON, and `last` ends the stream."""

    id: str
    name: str
    data: Any
    last: bool = False


class ChangesQuery(Query):
    """`since` is the moment of the page, as in its `data-since`."""

    since: str = ""


class RecentEntries:
    """The recorded entries that an open page may show: their count, and the last ones with their times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, Entry]] = deque(maxlen=_MOST_RECENT)
        self._process = secrets.token_hex(8)
        self.count = 0

    def note(self, entry: Entry) -> None:
        """Count an entry and keep it for a while."""
        if entry.type not in _QUIET_TYPES:
            with self._lock:
                self._recent.append((time.monotonic_ns(), entry))
                self.count += 1

    def take_after(self, count: int) -> tuple[int, list[Entry]]:
        """Return the count, and the entries since it was `count`; of many, the last ones."""
        with self._lock:
            new = self.count - count
            return self.count, [entry for _, entry in list(self._recent)[-new:]] if new else []

    def moment(self) -> str:
        """Return this moment. A page has the one before it was made, so that its stream misses no entry since."""
        return f"{self._process}.{time.monotonic_ns()}"

    def event_id(self, count: int) -> str:
        """Return the id of the event that tells a page of this count. Another process does not use it again."""
        return f"{self._process}.{count}"

    def count_at(self, moment: str) -> int | None:
        """Return the count at a moment, or None if it is of another process or too long ago."""
        match = re.fullmatch(r"([0-9a-f]{16})\.([0-9]{1,20})", moment)
        if match is None or match[1] != self._process:
            return None
        at = int(match[2])
        if time.monotonic_ns() - at > _CONNECT_S * 1e9:
            return None
        with self._lock:
            return self.count - sum(noted >= at for noted, _ in self._recent)


Next = Callable[[str], ServerSentEvent | None]
"""A function that returns the next event after the one with this id ("" before the first), or None."""


def follow(changes: RecentEntries, moment: str) -> Next:
    """Return the events of a person's open page: one after each change since the moment of the page, or since the last
    event. The first comes at once if the moment is not known.
    """
    first = changes.count_at(moment)

    def find(after: str) -> ServerSentEvent | None:
        current = changes.event_id(changes.count)
        seen = after or ("" if first is None else changes.event_id(first))
        return None if seen == current else ServerSentEvent(current, "changed", {})

    return find


def follow_as_unit(context: LedgerContext, changes: RecentEntries, unit: str, moment: str) -> Next:
    """Return the events of a unit's open page: one after entries since the moment of the page that the unit may read.
    The first comes at once if the moment is not known.

    The events have no id, since a count would tell the unit how much other people and units do.
    """
    seen = changes.count_at(moment)

    def find(after: str) -> ServerSentEvent | None:
        nonlocal seen
        event = ServerSentEvent("", "changed", {})
        if seen is None:
            seen = changes.count
            return event
        seen, entries = changes.take_after(seen)
        if not entries:
            return None
        reader = find_unit_reader(context.ledger.state, unit)
        return event if reader is None or any(map(reader.may_read, entries)) else None

    return find


def stream(after: str, find: Next, check: Callable[[], object]) -> StreamingResponse:
    """Return the response with the events. `check` raises once the session has ended, which ends the stream."""
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


def _turn(after: str, find: Next, check: Callable[[], object], must_check: bool) -> ServerSentEvent | None:
    """Return the next event. This runs in a thread, because finding it may wait for the ledger."""
    event = find(after)
    if event is not None or must_check:
        check()
    return event
