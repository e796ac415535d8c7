"""What a job does while the ledger cannot be written: its workers are paused, and it waits. No client waits for a job's
answer, and its result took hours. Other requests get an error at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar, Unpack

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.event import Event
from appliance.domain.core.state import State
from appliance.domain.rulebook.apply import parse_body
from appliance.errors import Unavailable
from appliance.store.ledger.queue import Appended
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import Said, append

RETRY_S = 1.0

Done = TypeVar("Done")


def append_with_retry(context: Context, body: Event, *, most_s: float = math.inf, **said: Unpack[Said]) -> Appended:
    """Like `append`, but Unavailable only once the service ends or so much time has gone by."""
    before: int | None = None

    def act() -> Appended:
        nonlocal before
        if before is not None and (found := _find(context, before, body)) is not None:
            return found
        size = context.ledger.state.size
        try:
            return append(context, body, **said)
        except Unavailable as error:
            before = size if error.code == "commit-unknown" and before is None else before
            raise

    return _with_retry(context, act, most_s)


def state_with_retry(context: Context) -> State:
    """The fold over all entries, once it is known again what these are."""
    return _with_retry(context, lambda: context.ledger.state, math.inf)


def _with_retry(context: Context, act: Callable[[], Done], most_s: float) -> Done:
    began, frozen = time.monotonic(), False
    while True:
        try:
            done = act()
        except Unavailable:
            pause_workers(context)
            frozen = True
            if time.monotonic() - began > most_s or context.closing.wait(RETRY_S):
                raise
        else:
            if frozen:
                resume_workers(context)
            return done


def _find(context: Context, since: int, body: Event) -> Appended | None:
    """The entry that was committed although the end of its commit was not seen."""
    context.ledger.refresh()
    for data in context.ledger.entries(since):
        entry = parse_entry(data)
        if entry.type == body.type and parse_body(entry) == body:
            context.appended(entry, body)
            return Appended(entry, data, context.ledger.checkpoint())
    return None


def pause_workers(context: Context) -> None:
    """Nothing acts unrecorded: every worker is paused until the ledger can be written."""
    for worker in list(context.workers.values()):
        worker.pause()


def resume_workers(context: Context) -> None:
    for worker in list(context.workers.values()):
        worker.resume()
