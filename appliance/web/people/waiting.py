"""A service whose clock is behind its log answers people only, so that administrators can reset the clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from socket import socket

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import Unavailable
from appliance.web.core.errors import people_body, refusal
from appliance.web.core.server import Door, Heart, serve
from appliance.workflows.core.context import Context
from appliance.workflows.lifecycle.heartbeat import BEAT_S, note_stall
from appliance.workflows.lifecycle.watch import warnings

log = logging.getLogger("appliance")

_IS_RIGHT = "clock is right"


def wait_for_clock(
    context: Context,
    home: Path,
    people: ASGIApp,
    *,
    open_door: Callable[[], AbstractContextManager[socket]],
    is_up: Callable[[], object],
    ended: Callable[[], str | None],
) -> str | None:
    """Under such a clock nothing can be recorded, so nothing is started. Why the service is to end, or None once time
    is right. `is_up` is called when the listener is open."""

    def is_behind() -> bool:
        return context.ledger.clock.read_behind(context.ledger.state) is not None

    def beat() -> None:
        for text in warnings(context, home):
            log.critical("ALARM: %s", text)

    if not is_behind():
        return None
    if "people" not in context.roles:
        context.ledger.clock.read(context.ledger.state)
    beat()
    with open_door() as opened:
        is_up()
        reason = serve(
            [Door(_only_while(is_behind, people), opened, guarded=False)],
            heart=Heart(beat, BEAT_S, partial(note_stall, context)),
            ended=lambda: ended() or (None if is_behind() else _IS_RIGHT),
        )
    return None if reason == _IS_RIGHT else reason


def _only_while(is_behind: Callable[[], bool], app: ASGIApp) -> ASGIApp:
    """The listener until the clock is right. Requests that must be recorded wait until the service has started."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_behind():
            error = Unavailable("service: its clock was reset and it is starting; try again", code="starting")
            await refusal(people_body, error)(scope, receive, send)
            return
        await app(scope, receive, send)

    return answer
