"""Checks before the people's app: size and speed of a body, the session, and the number of concurrent requests.

At the Unix socket, a body is read without a session. The socket has its own limits, and an account there has the same
share as a person on a network. Root and the service's own account have no limit there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from socket import socket
from typing import TypeVar
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.domain.core.roles import is_unit
from appliance.errors import ApplianceError, Denied, RefusalCode, Unavailable
from appliance.web.core import receiving
from appliance.web.core.auth import CallerAuthenticator, Session
from appliance.web.core.errors import people_body, refusal
from appliance.web.core.receiving import Body, BodyMemory, RequestLimit, authorization_of, limit_pace
from appliance.web.core.server import Heart, Listener, serve
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.core.progress import Progress
from appliance.workflows.lifecycle.running import BEAT_S, log_alarms, note_stall
from appliance.workflows.queries.log import OWN_ENTRIES_ONLY

FOR_PEOPLE = RefusalCode(
    "for-people", "rule", "{id} is a unit. This part of the API is for people.", "Use the API for units."
)

MOST = 24
"""Maximum concurrent requests of people with a session, of the 40 threads that all listeners share."""
MOST_OF_ONE = 3
"""Maximum concurrent requests of one person. Threads share one interpreter, so each delays all other callers."""
FOLLOWING = 128
"""Maximum concurrent requests that wait for news of work. They wait in the event loop and use no thread."""
FOLLOWING_OF_ONE = 16
"""Maximum concurrent requests of one person that wait for news."""
SPANS = 4
"""Maximum concurrent questions about the effective access during a span, one of each person: they take the most
time."""
EXPORTS = 4
"""Maximum concurrent exports of the log, one of each person: each reads all entries and takes minutes."""
UPLOADING = 16
"""Maximum concurrent uploads. Each holds a place until its last byte, and uses a thread only while it writes."""
UPLOADING_OF_ONE = 2
"""Maximum concurrent uploads of one person."""
WITHOUT_SESSION = 32
"""Maximum concurrent requests without a session: opening one, or submitting an order, which its signature
authenticates."""
_ORDERS = "/v1/orders"
PUBLIC = {
    "/v1/about": 1_024,
    "/v1/sessions/challenge": 1_024,
    "/v1/sessions": 16_384,
    _ORDERS: 131_072,
}
"""Paths that need no session, and the maximum bytes of a body from a client without one.

An order with larger documents is submitted in a session.
"""
_UPLOADS = "/v1/uploads/"
_FOLLOWED = re.compile(r"/v1/(?:imports|replays|calibrations|dataset-checks|previews)/[^/]+|/v1/runs/[^/]+/progress")
"""Paths of requests that wait for news."""
_EXPORT = "/v1/ledger/export"
_ACCESS = re.compile(r"/v1/units/[^/]+/effective-access")


_TRUSTED = frozenset(f"unix:{account}" for account in (0, os.geteuid()))
"""Accounts without limits at the Unix socket: root and the service's own."""


class PeopleLimitsMiddleware:
    """The middleware that applies the limits and reads bodies as a whole. It counts the requests that it refuses.

    With `local`, it is at the Unix socket. Otherwise it checks the session before it reads any of a body.
    """

    def __init__(self, app: ASGIApp, authenticator: CallerAuthenticator, *, local: bool = False) -> None:
        self._app = app
        self._authenticator = authenticator
        self._local = local
        # Clients without a session have a quarter of the memory, separate from that of people with a session.
        self._public_memory = BodyMemory(receiving.BODY_MEMORY_BYTES // 4)
        self._memory = BodyMemory(receiving.BODY_MEMORY_BYTES - receiving.BODY_MEMORY_BYTES // 4)
        self._public = RequestLimit(WITHOUT_SESSION)
        self._people = RequestLimit(MOST, most_of_one=MOST_OF_ONE)
        self._following = RequestLimit(FOLLOWING, most_of_one=FOLLOWING_OF_ONE)
        self._spans = RequestLimit(SPANS, "questions about a span", most_of_one=1)
        self._exports = RequestLimit(EXPORTS, "exports of the log", most_of_one=1)
        self._uploads = RequestLimit(UPLOADING, "uploads", UPLOADING_OF_ONE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_public = scope["path"] in PUBLIC and not _is_order_in_session(scope)
        memory = self._public_memory if is_public else self._memory
        body = Body(receive, PUBLIC[scope["path"]] if is_public else receiving.BODY_BYTES, memory)
        try:
            place = await self._place(scope, is_public)
            if _is_upload(scope):
                with place:
                    await self._app(scope, limit_pace(receive), send)
                return
            # The body is read before the place is taken, so that a slow sender does not block others.
            await body.read(scope)
            with place:
                await self._app(scope, body.replay, send)
            return
        except ApplianceError as error:
            self._authenticator.count(None, error)
            response = refusal(people_body, error)
        finally:
            body.close()
        await body.drain()
        await response(scope, receive, send)

    async def _place(self, scope: Scope, is_public: bool) -> AbstractContextManager[None]:
        """Return the caller's place, to be entered.

        Raises: NotAuthenticated without a session where one is needed: on a network, and for an order with large
        documents.
        """
        in_session = _is_order_in_session(scope) or not (self._local or is_public)
        session = await run_in_threadpool(self._authenticator.person, authorization_of(scope)) if in_session else None
        if self._local:
            if (account := str(scope["client"][0])) in _TRUSTED:
                return nullcontext()
            return self._places(scope).take(account)
        return self._public.take() if session is None else self._places(scope).take(session.principal)

    def _places(self, scope: Scope) -> RequestLimit:
        if _is_span(scope):
            return self._spans
        if scope["path"] == _EXPORT:
            return self._exports
        if _is_upload(scope):
            return self._uploads
        return self._following if _FOLLOWED.fullmatch(scope["path"]) else self._people


def _is_order_in_session(scope: Scope) -> bool:
    return scope["path"] == _ORDERS and authorization_of(scope) is not None


def _is_span(scope: Scope) -> bool:
    is_access = _ACCESS.fullmatch(scope["path"]) is not None
    return is_access and "since" in parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _is_upload(scope: Scope) -> bool:
    return bool(scope["method"] == "PUT" and scope["path"].startswith(_UPLOADS))


A = TypeVar("A")


async def follow(
    progress: Progress,
    key: str,
    look: Callable[[], A],
    wait_s: float,
    is_news: Callable[[A], bool] = attrgetter("ended"),
) -> A:
    """Return the result of `look` for the stream `key`, when it is news or `wait_s` seconds have passed.

    By default the end of the work is news. It waits in the event loop and uses no thread meanwhile.
    """
    until = time.monotonic() + wait_s
    while True:
        seen = progress.changes_of(key)
        answer = await run_in_threadpool(look)
        left_s = until - time.monotonic()
        if left_s <= 0 or is_news(answer):
            return answer
        await progress.wait(key, seen, left_s)


_IS_OVER = "wait is over"


@dataclass(frozen=True)
class Obstacle:
    """A reason why a service waits with its start until administrators end it by an order.

    `is_present` returns True until then. `text` says what the service waits for, and `after` what has happened. `paths`
    are those that are served meanwhile, or None for all.
    """

    is_present: Callable[[], bool]
    text: str
    after: str
    paths: frozenset[str] | None = None


def wrong_clock(context: LedgerContext) -> Obstacle:
    """Return the obstacle of a clock that is behind the log, under which nothing can be recorded.

    Raises: Unavailable if the clock is behind and this process serves no people, who could reset it.
    """

    def is_behind() -> bool:
        return context.ledger.clock.read_behind(context.ledger.state) is not None

    if is_behind() and "people" not in context.roles:
        context.ledger.clock.read(context.ledger.state)
    return Obstacle(is_behind, "clock is behind the ledger", "clock was reset")


_RESTORATION_PATHS = frozenset({"/v1/about", "/v1/clock", "/v1/restoration", _ORDERS})
"""Paths that are served while the service waits for a restoration. None of them makes an entry but its orders."""


def missing_entries(context: LedgerContext) -> Obstacle:
    """Return the obstacle of entries that others have seen and this log lacks, in a service that awaits their
    restoration.
    """
    return Obstacle(
        lambda: context.awaits_restoration and bool(context.missing_from_log),
        "ledger lacks entries that others have seen",
        "log was restored",
        _RESTORATION_PATHS,
    )


def serve_while_blocked(
    obstacle: Obstacle,
    context: LedgerContext,
    people: ASGIApp,
    *,
    open_socket: Callable[[], AbstractContextManager[socket]],
    is_up: Callable[[str], object],
    ended: Callable[[], str | None],
) -> str | None:
    """Wait until the obstacle is gone. Meanwhile only the people's listener runs.

    Return None at the end, or the reason for which the service ends before. `is_up` is called with the obstacle's text
    when the listener is open.
    """
    if not obstacle.is_present():
        return None
    beat = partial(log_alarms, context)
    beat()
    with open_socket() as opened:
        is_up(obstacle.text)
        reason = serve(
            [Listener(_only_while(obstacle, people), opened, guarded=False)],
            heart=Heart(beat, BEAT_S, partial(note_stall, context)),
            ended=lambda: ended() or (None if obstacle.is_present() else _IS_OVER),
        )
    return None if reason == _IS_OVER else reason


def _only_while(obstacle: Obstacle, app: ASGIApp) -> ASGIApp:
    """Return the people's app until the obstacle is gone. Later requests are refused until the service has started."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not obstacle.is_present():
            error = Unavailable(f"service: its {obstacle.after} and it is starting; try again", code="starting")
            await refusal(people_body, error)(scope, receive, send)
            return
        if scope["type"] == "http" and obstacle.paths is not None and scope["path"] not in obstacle.paths:
            error = Unavailable(
                f"service: its {obstacle.text}; only a restoration is possible: appliance restoration show",
                code="awaits-restoration",
            )
            await refusal(people_body, error)(scope, receive, send)
            return
        await app(scope, receive, send)

    return answer


_FOR_UNITS = re.compile(
    r"/v1/(?:console/links|orders/(?:check|waiting)|policy|principals|rules|ledger(?:/[0-9]+|/state)?)"
)
"""Paths that units may request. They give no sealed files or rows, take no upload and start no worker."""
_WHOLE_LOG = re.compile(r"/v1/(?:ledger/export|documents/[^/]+)")
"""Paths that a unit may request only if the policy parameter `units_read` is `all`."""


def check_unit(context: LedgerContext, session: Session, path: str) -> None:
    """Check that a unit requests only what it may.

    Raises: Denied for a path that is for people only.
    """
    state = context.ledger.state
    if not is_unit(state, session.principal) or _FOR_UNITS.fullmatch(path):
        return
    if _WHOLE_LOG.fullmatch(path) is None:
        raise Denied(f"{path:.80}, which is for people", refusals=(FOR_PEOPLE(f"unit:{session.principal}"),))
    if state.parameters.units_read == "own":
        refused = (OWN_ENTRIES_ONLY(f"unit:{session.principal}"),)
        raise Denied("the whole log is for people; ask an auditor for an export", refusals=refused)
