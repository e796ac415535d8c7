"""The console's listener: the pages of every audience, sign-in and sign-out, files, and streams of events."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from appliance.errors import ApplianceError
from appliance.web.console.auditors.proof import proof_routes
from appliance.web.console.core.assets import Assets
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.events import Changes
from appliance.web.console.core.gate import Gate
from appliance.web.console.core.page import Page
from appliance.web.console.core.render import make_environment
from appliance.web.console.core.security import Site
from appliance.web.console.core.signing_in import admit, sign_in_routes
from appliance.web.console.downloads import download_routes
from appliance.web.console.pages import PAGES
from appliance.web.console.signing.orders import order_routes
from appliance.web.console.signing.passkeys import passkey_routes
from appliance.web.console.signing.sessions import session_routes
from appliance.web.console.signing.sign_in import passkey_sign_in_routes
from appliance.web.console.streams import stream_routes
from appliance.web.console.units.ask import Asks, ask_routes
from appliance.web.core.auth import Doorkeeper
from appliance.workflows.core.context import Context


def console_app(
    context: Context,
    door: Doorkeeper,
    url: str,
    changes: Changes,
    asks: Asks | None = None,
    pages: Sequence[Page] = PAGES,
) -> ASGIApp:
    """`url`: the one address under which browsers come. `asks`: how a unit's person is answered; None: not at all."""
    assets = Assets()
    desk = Desk(context, door, Site(url), make_environment(assets), pages)
    routes = [
        Route("/", _home),
        *passkey_sign_in_routes(desk, admit),
        *sign_in_routes(desk),
        *order_routes(desk),
        *passkey_routes(desk),
        *session_routes(desk),
        *ask_routes(desk, asks),
        *stream_routes(desk, changes),
        *download_routes(desk),
        *proof_routes(desk),
        *(route for page in pages for route in _routes(desk, page)),
        Route("/static/{name}", assets.respond),
    ]
    refused = (ApplianceError, HTTPException, Exception)
    return Gate(Starlette(routes=routes, exception_handlers=dict.fromkeys(refused, desk.refuse)), desk)


def _home(request: Request) -> Response:
    return RedirectResponse("/home", 303)


def _routes(desk: Desk, page: Page) -> list[Route]:
    """The forms of data first: no name that a path may hold has a dot."""
    forms = [Route(f"{page.path}.json", desk.json(page))]
    forms += [] if page.table is None else [Route(f"{page.path}.csv", desk.csv(page))]
    return [*forms, Route(page.path, desk.html(page))]
