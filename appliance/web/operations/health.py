"""The operations listener: liveness, readiness, metrics and the feed of entries.

It is a separate listener, so that units cannot see each other's numbers. Metrics and feed each need a token from a
file. Liveness and readiness need none.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance.build import build_version
from appliance.domain.core.entry import parse_entry
from appliance.domain.queries.ocsf import encode_event
from appliance.errors import ApplianceError, Conflict
from appliance.formats.core.fields import MAX_DECIMAL
from appliance.formats.log.export import read_removed
from appliance.web.core.errors import MalformedRequest
from appliance.web.core.openapi import TEXT, Operation, describe_operations
from appliance.web.operations.metrics import CONTENT_TYPE, Metrics
from appliance.workflows.core.context import LedgerContext

LEAST_TOKEN = 20
"""Minimum characters of the operations token."""
PROBE_S = 5.0
"""Maximum age of a check of the ledger, and maximum duration of one, in seconds. Each check costs a commit."""


class Readiness:
    """The readiness check.

    The service is ready while the ledger can be written, no entry that witnesses have seen is missing, and the
    heartbeat is on time.
    """

    def __init__(self, context: LedgerContext) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._checked_s = -PROBE_S
        self._problem: str | None = None

    async def find_problem(self) -> str | None:
        """Return why the service is not ready, or None if it is."""
        if self._context.missing_from_log:
            return "ledger lost entries"
        if self._context.contact.is_lost:
            return "no contact with the ledger"
        if self._context.stalled:
            return "no recent heartbeat"
        async with self._lock:
            if time.monotonic() - self._checked_s >= PROBE_S:
                self._problem = await self._probe()
                self._checked_s = time.monotonic()
        return self._problem

    async def _probe(self) -> str | None:
        try:
            async with asyncio.timeout(PROBE_S):
                await run_in_threadpool(self._context.ledger.probe)
        except (ApplianceError, TimeoutError):
            return "ledger cannot be written"
        return None


def _readiness(problem: str | None) -> Response:
    return PlainTextResponse(f"{problem or 'ready'}\nbuild {build_version()}\n", 200 if problem is None else 503)


async def _health(request: Request) -> Response:
    return PlainTextResponse("ok\n")


class NotReady:
    """The responses of the operations listener while the service starts or stops. `reason` is what it does."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def app(self) -> Starlette:
        """Return the app for this time."""

        async def not_ready(request: Request) -> Response:
            return _readiness(self.reason)

        others = (Route(path, not_ready) for path in ("/readyz", "/metrics", "/feed"))
        return Starlette(routes=[Route("/healthz", _health), *others])


MAX_LINES = 1_000
"""Most lines of one response."""


class FeedPage(BaseModel):
    """The request of a part of the feed: entries after an index, at most `limit`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    after: int = Field(default=-1, ge=-1, le=MAX_DECIMAL)
    limit: int = Field(default=MAX_LINES, ge=1, le=MAX_LINES)


def parse_feed_page(query: Mapping[str, str]) -> FeedPage:
    """Parse the parameters `after` (-1 unless given) and `limit`.

    Raises:
        MalformedRequest: One is malformed, or there is another one.
    """
    try:
        return FeedPage.model_validate(dict(query))
    except ValidationError as error:
        raise MalformedRequest.of(error) from None


def read_feed(context: LedgerContext, page: FeedPage) -> bytes:
    """Return the entries after the page's index as lines of JSON; empty if there is none yet.

    An archived entry has no line. The next line has the number of those before it, so that a reader finds an entry that
    was left out.

    Raises:
        Conflict: With the code `feed-ahead`, if the log has no such entry. An older copy of it may have been restored.
    """
    context.refresh()  # another process may have served the last part
    ledger = context.ledger
    size, origin, version = ledger.state.size, ledger.state.site.origin, context.code.version
    if page.after >= size:
        message = f"feed: expected an index below {size}, the size of the log, got {page.after}"
        raise Conflict(f"{message}; ask an auditor whether the log lost entries", code="feed-ahead")
    last, lines = page.after, []
    present = (data for data in ledger.entries(page.after + 1, size) if read_removed(data) is None)
    for entry in map(parse_entry, islice(present, page.limit)):
        event = encode_event(entry, origin, version, archived=entry.index - last - 1)
        lines.append(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        last = entry.index
    return b"".join(lines)


OPERATIONS: Mapping[str, Operation] = {
    "GET /healthz": Operation(media=TEXT, needs_session=False),
    "GET /readyz": Operation(media=TEXT, needs_session=False),
    "GET /metrics": Operation(media=TEXT),
    "GET /feed": Operation(media="application/x-ndjson", query=FeedPage),
}
"""The operations of the listener. Tests compare them with the routes."""


def describe() -> dict[str, Any]:
    """Return the OpenAPI document of the listener, which does not serve it."""
    return describe_operations("appliance, operations", OPERATIONS, {"type": "http", "scheme": "bearer"})


class OperationsTokens(NamedTuple):
    """The tokens that clients send as `Authorization: Bearer`. Without a token, its path does not exist."""

    metrics: bytes | None = None
    feed: bytes | None = None


def operations_app(
    readiness: Readiness, metrics: Metrics, feed: Callable[[FeedPage], bytes], tokens: OperationsTokens
) -> Starlette:
    """Return the app for probes, scrapers, and the reader of the feed."""

    async def ready(request: Request) -> Response:
        return _readiness(await readiness.find_problem())

    async def numbers(request: Request) -> Response:
        if not _has_token(request, tokens.metrics):
            return PlainTextResponse("expected Authorization: Bearer and the operations token\n", 401)
        return Response(await run_in_threadpool(metrics.encode), media_type=CONTENT_TYPE)

    async def lines(request: Request) -> Response:
        if not _has_token(request, tokens.feed):
            return PlainTextResponse("expected Authorization: Bearer and the feed token\n", 401)
        try:
            page = await run_in_threadpool(feed, parse_feed_page(request.query_params))
        except ApplianceError as error:
            return PlainTextResponse(f"{error.code}: {error.message}\n", error.status)
        return Response(page, media_type="application/x-ndjson")

    routes = [Route("/healthz", _health), Route("/readyz", ready)]
    routes += [] if tokens.metrics is None else [Route("/metrics", numbers)]
    routes += [] if tokens.feed is None else [Route("/feed", lines)]
    return Starlette(routes=routes)


def _has_token(request: Request, token: bytes | None) -> bool:
    shown = request.headers.get("authorization", "").encode("latin-1")
    return token is not None and hmac.compare_digest(shown, b"Bearer " + token)
