"""For operations: whether the service is alive, whether it is ready, and its metrics.

A separate listener, so that units cannot see each other's numbers. The metrics need a token from a file. Liveness and
readiness need none, and show nothing else.
"""

from __future__ import annotations

import asyncio
import hmac
import time

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance.errors import ApplianceError
from appliance.web.operations.metrics import CONTENT_TYPE, Metrics
from appliance.workflows.core.context import Context

LEAST_TOKEN = 20
PROBE_S = 5.0
"""How old a look at the ledger may be, and how long one may take: each costs a commit."""


class Readiness:
    """Ready only while the ledger can be written and holds all that its witnesses have seen, and the heart beats."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._seen = -PROBE_S
        self._against: str | None = None

    async def against(self) -> str | None:
        """Why the service is not ready, in a word, or None while it is."""
        if self._context.closing.is_set():
            return "closing"
        if self._context.missing_from_log:
            return "ledger lost entries"
        if self._context.contact.is_lost:
            return "no contact with the ledger"
        if self._context.stalled:
            return "no recent heartbeat"
        async with self._lock:
            if time.monotonic() - self._seen >= PROBE_S:
                self._against = await self._probe()
                self._seen = time.monotonic()
        return self._against

    async def _probe(self) -> str | None:
        try:
            async with asyncio.timeout(PROBE_S):
                await run_in_threadpool(self._context.ledger.probe)
        except (ApplianceError, TimeoutError):
            return "ledger cannot be written"
        return None


def operations_app(readiness: Readiness, metrics: Metrics, token: bytes) -> Starlette:
    """`token`: what a scraper shows as `Authorization: Bearer` for the numbers."""

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(request: Request) -> Response:
        against = await readiness.against()
        return PlainTextResponse("ready\n" if against is None else f"{against}\n", 200 if against is None else 503)

    async def numbers(request: Request) -> Response:
        shown = request.headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(shown, b"Bearer " + token):
            return PlainTextResponse("expected Authorization: Bearer and the operations token\n", 401)
        return Response(await run_in_threadpool(metrics.encode), media_type=CONTENT_TYPE)

    return Starlette(
        routes=[Route("/healthz", health), Route("/readyz", ready), Route("/metrics", numbers)],
    )
