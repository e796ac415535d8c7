"""Checks before the console: the host's name, size and speed of a body, and the number of concurrent requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.errors import ApplianceError, BadInput, NotAuthenticated, RateLimited
from appliance.web.console.core.desk import FILES, Desk
from appliance.web.core.receiving import Body, RequestLimit, limit_pace, source_of
from appliance.workflows.serving.places import SharedPlaces, count_units

PAGES = 20
"""Maximum concurrent pages, of the 40 threads that all listeners share, so that the people's socket always responds."""
PAGES_OF_ONE = 12
"""Maximum concurrent pages of one person. A browser requests six at a time."""
TURNS = 8
"""Maximum concurrent pages and forms of all browsers without a session. Further ones wait."""
TURNS_OF_ONE = 4
"""Maximum concurrent pages and forms of one client's address without a session."""
TURN_S = 10.0
"""Maximum seconds that a request without a session waits."""
FORMS = 12
"""Maximum concurrent forms. Each is read as a whole before it counts."""
FORMS_OF_ONE = 8
"""Maximum concurrent forms of one person."""
STREAMS = 128
"""Maximum concurrent event streams. Each waits in the event loop and uses no thread."""
STREAMS_OF_ONE = 16
"""Maximum concurrent event streams of one person."""
FORM_BYTES = 65_536
"""Maximum bytes of a form."""
SIGN_IN_BYTES = 16_384
"""Maximum bytes of a form from a browser without a session."""
FORM_S = 5.0
"""Seconds in which a form must arrive."""
EVENTS = "/events"
UPLOADS = "/uploads/"
ASKS = 4
"""Concurrent requests of units' people to the engine. A unit with less than its share is accepted beyond this. Each
uses a thread until its last token."""
ASK = "/ask"
UPLOADING = 4
"""Maximum concurrent uploads; one per person."""
DOWNLOADS = "/exports/"
"""Prefix of downloads, which take as long as their reader needs."""
DOWNLOADING = 4
"""Maximum concurrent downloads, one of each person: each reads the whole log."""


class Turns:
    """The turns of browsers without a session, used in one event loop.

    A request waits where a person's would be refused. Many requests can delay a sign-in, but they cannot prevent it.
    Requests of one address wait for each other first, so that other addresses pass them.
    """

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(TURNS)
        self._of_address: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def take(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it during the block.

        Raises: RateLimited after `TURN_S` seconds.
        """
        own = self._of_address.setdefault(address, asyncio.Semaphore(TURNS_OF_ONE))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(TURN_S):
                    await held.enter_async_context(own)
                    await held.enter_async_context(self._all)
            except TimeoutError:
                raise RateLimited(
                    f"requests without a session: expected a turn within {TURN_S:.0f} s, got none; ask again"
                ) from None
            yield


class ConsoleLimitsMiddleware:
    """The middleware that applies the limits.

    Every response, also of refusals and defects, gets the security headers.
    """

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk
        self._pages, self._forms = (
            RequestLimit(PAGES, "pages", PAGES_OF_ONE),
            RequestLimit(FORMS, "forms", FORMS_OF_ONE),
        )
        self._turns = Turns()
        self._streams = RequestLimit(STREAMS, "streams", STREAMS_OF_ONE)
        self._downloads = RequestLimit(DOWNLOADING, "downloads", 1)
        self._uploads = RequestLimit(UPLOADING, "uploads", 1)
        self._playground_places = SharedPlaces(
            "answers in the console", ASKS, lambda: count_units(self._desk.context.ledger.state)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sending = _with_headers(send, self._desk.site.headers)
        body = Body(receive, SIGN_IN_BYTES, within_s=FORM_S)
        try:
            self._check_host(Headers(scope=scope))
            if scope["path"].startswith(FILES) and scope["method"] in ("GET", "HEAD"):
                # A file and its refusal wait for nothing, so clients without a session take no place from others.
                await _read(body, scope)
                await self._app(scope, body.replay, sending)
                return
            places = self._places(scope)
            who = await self._who(places, Request(scope))
            if who:
                body = Body(receive, FORM_BYTES, within_s=FORM_S)
            if places is self._uploads:
                with places.take(who):
                    await self._app(scope, limit_pace(receive), sending)
                return
            # The body is read before the place is taken, so that a slow sender does not block others.
            await _read(body, scope)
            if not who and places in (self._pages, self._forms):
                async with self._turns.take(source_of(scope)):
                    if not await Request(scope, receive).is_disconnected():
                        await self._app(scope, body.replay, sending)
                return
            with places.take(who):
                await self._app(scope, body.replay, sending)
            return
        except ApplianceError as error:
            response = await self._desk.refuse(Request(scope), error)
        await body.drain()
        await response(scope, receive, sending)

    async def _who(self, places: RequestLimit | SharedPlaces, request: Request) -> str:
        """Return the person of the request's session, or "" without one. Uploads and questions need a session."""
        needs_session = places in (self._playground_places, self._uploads)
        if self._desk.site.read_cookie(request) is None and not needs_session:
            return ""
        try:
            return (await run_in_threadpool(self._desk.viewer, request)).name
        except NotAuthenticated:
            if needs_session:
                raise
        except Exception:  # noqa: BLE001 - the page meets the same defect, and its refusal is logged and sent
            pass
        return ""

    def _check_host(self, headers: Headers) -> None:
        if not self._desk.site.is_named_by(headers):
            raise BadInput(f"address: expected {self._desk.site.url}, got another host", code="wrong-host")

    def _places(self, scope: Scope) -> RequestLimit | SharedPlaces:
        if scope["path"].startswith(DOWNLOADS):
            return self._downloads
        if scope["path"].endswith(EVENTS):
            return self._streams
        if scope["method"] in ("GET", "HEAD"):
            return self._pages
        if scope["method"] == "PUT" and scope["path"].startswith(UPLOADS):
            return self._uploads
        return self._playground_places if scope["path"] == ASK else self._forms


async def _read(body: Body, scope: Scope) -> None:
    """Read a form's body.

    Raises: BadInput for a body of a GET request; and the errors of `Body.read`.
    """
    headers = Headers(scope=scope)
    if scope["method"] in ("GET", "HEAD") and (
        "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    ):
        raise BadInput("request: expected no body, got one")
    await body.read(scope)


def _with_headers(send: Send, added: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
