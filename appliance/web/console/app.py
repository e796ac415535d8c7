"""The console's app: the pages of every audience, sign-in and sign-out, files, and streams of events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from appliance.errors import ApplianceError, NotFound
from appliance.web.console.auditors.entry import proof_routes
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.events import ChangesQuery, Next, RecentEntries, follow, follow_as_unit, stream
from appliance.web.console.core.manual import manual_routes
from appliance.web.console.core.middleware import ConsoleLimitsMiddleware
from appliance.web.console.core.page import EVERYBODY, PEOPLE, Page, parse_query
from appliance.web.console.core.render import Assets, make_environment
from appliance.web.console.core.security import ConsoleOrigin
from appliance.web.console.operators import live
from appliance.web.console.pages import PAGES
from appliance.web.console.reviewers.preview import preview_routes
from appliance.web.console.signing.identities import identity_routes
from appliance.web.console.signing.invitations import invitation_routes
from appliance.web.console.signing.orders import order_routes
from appliance.web.console.signing.passkeys import passkey_routes
from appliance.web.console.signing.sessions import passkey_sign_in_routes, session_routes, sign_in_routes
from appliance.web.console.units.ask import Playground, ask_routes
from appliance.web.core.auth import CallerAuthenticator
from appliance.workflows.core.context import Context
from appliance.workflows.queries import log


def download_routes(desk: Desk) -> list[Route]:
    """Return the routes of the log's export and of an entry's documents."""

    def export(request: Request) -> Response:
        desk.viewer(request).require("export of the log", PEOPLE)
        size = desk.context.ledger.state.size
        return StreamingResponse(
            log.export(desk.context), media_type="application/x-tar", headers=desk.named(f"ledger-{size}.tar")
        )

    def document(request: Request) -> Response:
        desk.viewer(request).require("document of an entry", PEOPLE)
        index, role = desk.entry(request), request.path_params["role"]
        documents = desk.context.ledger.documents_of(index)
        if role not in documents:
            raise NotFound(f"entry {index}, document: expected {' or '.join(documents) or 'none'}, got {role:.40}")
        return Response(
            documents[role], media_type="application/octet-stream", headers=desk.named(f"entry-{index}-{role}")
        )

    return [Route("/exports/ledger.tar", export), Route("/log/{index}/documents/{role}", document)]


Answer = Callable[[Request], Awaitable[Response]]


def stream_routes(desk: Desk) -> list[Route]:
    """Return the routes of event streams: changes of the log, progress of all runs, and steps of one run."""

    def find_change(request: Request) -> Next:
        viewer = desk.viewer(request)
        query: Any = parse_query(ChangesQuery, request.path_params, request.query_params)
        if viewer.is_unit:
            return follow_as_unit(desk.context, desk.changes, viewer.name, query.since)
        return follow(desk.changes, query.since)

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
    async def answer(request: Request) -> Response:
        secret = desk.site.read_cookie(request) or ""

        def check() -> None:
            desk.viewer_of(secret).require("stream of events", seen_by)

        await run_in_threadpool(desk.viewer, request)
        await run_in_threadpool(check)
        find = await run_in_threadpool(finder, request)
        return stream(request.headers.get("last-event-id", ""), find, check)

    return answer


def console_app(
    context: Context,
    authenticator: CallerAuthenticator,
    url: str,
    changes: RecentEntries,
    playground: Playground | None = None,
    pages: Sequence[Page] = PAGES,
) -> ASGIApp:
    """Return the app of the console.

    `url` is the one address under which browsers reach it. `playground` gives the engine and limits for requests of a
    unit's person; None refuses them.
    """
    assets = Assets()
    desk = Desk(context, authenticator, ConsoleOrigin(url), make_environment(assets), changes, pages)
    routes = [
        Route("/", _home),
        *passkey_sign_in_routes(desk),
        *identity_routes(desk),
        *sign_in_routes(desk),
        *order_routes(desk),
        *passkey_routes(desk),
        *invitation_routes(desk),
        *session_routes(desk),
        *preview_routes(desk),
        *ask_routes(desk, playground),
        *stream_routes(desk),
        *download_routes(desk),
        *proof_routes(desk),
        *(route for page in pages for route in _routes(desk, page)),
        Route("/static/{name}", assets.respond),
        *manual_routes(),
    ]
    refused = (ApplianceError, HTTPException, Exception)
    return ConsoleLimitsMiddleware(
        Starlette(routes=routes, exception_handlers=dict.fromkeys(refused, desk.refuse)), desk
    )


def _home(request: Request) -> Response:
    return RedirectResponse("/home", 303)


def _routes(desk: Desk, page: Page) -> list[Route]:
    """Return the routes of a page. JSON and CSV come first, because names in paths have no dots."""
    forms = [Route(f"{page.path}.json", desk.json(page))]
    forms += [] if page.table is None else [Route(f"{page.path}.csv", desk.csv(page))]
    return [*forms, Route(page.path, desk.html(page))]
