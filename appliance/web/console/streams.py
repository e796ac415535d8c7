"""Streams of events: what changed anywhere, and how far a run is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.web.console.core.desk import Desk
from appliance.web.console.core.events import Changes, Event, Next, stream
from appliance.web.console.core.page import EVERYBODY, PEOPLE, Page, Query, Value
from appliance.web.console.operators import live

Answer = Callable[[Request], Awaitable[Response]]


def stream_routes(desk: Desk, changes: Changes) -> list[Route]:
    def find_change(request: Request) -> Next:
        def find(after: str) -> Event | None:
            count = str(changes.count)
            return None if after == count else Event(count, "changed", {})

        return find

    def find_steps(request: Request) -> Next:
        return live.follow(desk.context, request.path_params["run"])

    def find_progress(request: Request) -> Next:
        return live.follow_all(desk.context)

    return [
        Route("/changes/events", _answer(desk, EVERYBODY, find_change)),
        Route("/runs/events", _answer(desk, PEOPLE, find_progress)),
        Route("/runs/{run}/events", _answer(desk, PEOPLE, find_steps)),
    ]


def _answer(desk: Desk, seen_by: tuple[str, ...], finder: Callable[[Request], Next]) -> Answer:
    rights = Page("stream", "", seen_by, Query, lambda context, viewer, query: Value(), "")

    async def answer(request: Request) -> Response:
        secret = desk.site.read_cookie(request) or ""

        def check() -> None:
            rights.check(desk.viewer_of(secret))

        await run_in_threadpool(desk.viewer, request)
        await run_in_threadpool(check)
        find = await run_in_threadpool(finder, request)
        return stream(request.headers.get("last-event-id", ""), find, check)

    return answer
