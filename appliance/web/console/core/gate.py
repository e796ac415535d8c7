"""Before the console: under which name it is asked, how much, how slowly, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.errors import ApplianceError, BadInput
from appliance.web.console.core.desk import Desk
from appliance.web.core.bodies import Body
from appliance.web.core.places import Places
from appliance.web.core.receiving import paced

PAGES = 24
"""Pages at once, of the 40 threads that all listeners share, so that the people's socket is always answered."""
FORMS = 16
"""Forms at once, each read whole before."""
STREAMS = 128
"""Streams of events at once; each waits in the event loop and holds no thread."""
STREAMS_OF_ONE = 16
"""Of one session, so that nobody takes those of all."""
FORM_BYTES = 65_536
FORM_S = 5.0
EVENTS = "/events"
UPLOADS = "/uploads/"
ASKS = 4
"""Answers that people of units wait for at once: each holds a thread of its own until its last token."""
ASKS_OF_ONE = 2
ASK = "/ask"
UPLOADING = 4
"""Uploads at once, one of a person."""
DOWNLOADS = "/exports/"
"""These take as long as their reader likes, too."""


class Gate:
    """Every answer that leaves here has the security headers, refusals and defects too."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app, self._desk = app, desk
        self._pages, self._forms = Places(PAGES, "pages"), Places(FORMS, "forms")
        self._streams = Places(STREAMS, "streams", STREAMS_OF_ONE)
        self._uploads = Places(UPLOADING, "uploads", 1)
        self._asks = Places(ASKS, "answers in the console", ASKS_OF_ONE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sending = _with_headers(send, self._desk.site.headers)
        body = Body(receive, FORM_BYTES)
        try:
            self._check_host(Headers(scope=scope))
            places = self._places(scope)
            who = await self._who(places, Request(scope))
            if places is self._uploads:
                with places.take(who):
                    await self._app(scope, paced(receive), sending)
                return
            # Read before a place is taken, so that a slow sender keeps nobody out.
            await _read(body, scope)
            with places.take(who):
                await self._app(scope, body.replay, sending)
            return
        except ApplianceError as error:
            response = await self._desk.refuse(Request(scope), error)
        await body.drain()
        await response(scope, receive, sending)

    async def _who(self, places: Places, request: Request) -> str:
        """Of which one has only so many of these places: a person, whose uploads and answers take long; a session of
        the streams; nobody of the others."""
        if places in (self._asks, self._uploads):
            return (await run_in_threadpool(self._desk.viewer, request)).name
        return (self._desk.site.read_cookie(request) or "") if places is self._streams else ""

    def _check_host(self, headers: Headers) -> None:
        if not self._desk.site.is_named_by(headers):
            raise BadInput(f"address: expected {self._desk.site.url}, got another host", code="wrong-host")

    def _places(self, scope: Scope) -> Places:
        if scope["path"].endswith(EVENTS) or scope["path"].startswith(DOWNLOADS):
            return self._streams
        if scope["method"] in ("GET", "HEAD"):
            return self._pages
        if scope["method"] == "PUT" and scope["path"].startswith(UPLOADS):
            return self._uploads
        return self._asks if scope["path"] == ASK else self._forms


async def _read(body: Body, scope: Scope) -> None:
    """A form's body, or that there is none."""
    headers = Headers(scope=scope)
    if scope["method"] in ("GET", "HEAD") and (
        "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    ):
        raise BadInput("request: expected no body, got one")
    try:
        async with asyncio.timeout(FORM_S):
            await body.read(scope)
    except TimeoutError:
        raise BadInput(f"form: expected it within {FORM_S:.0f} s", code="too-slow") from None


def _with_headers(send: Send, added: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
