"""How a browser gets a session, and gives it back.

A link that the command line was given is one way. A passkey is another (console/signing/sign_in.py): it ends in `admit`
too, with a session that its assertion opened.
"""

from __future__ import annotations

from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.errors import ApplianceError
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.render import seconds_since
from appliance.web.console.core.security import source_of
from appliance.web.core.auth import Session


def sign_in_routes(desk: Desk) -> list[Route]:
    return [
        Route("/sign-in", _Page(desk).show),
        Route("/sign-in/{code}", _Link(desk).show),
        Route("/sign-in/{code}", _Link(desk).take, methods=["POST"]),
        Route("/sign-out", _SignOut(desk).take, methods=["POST"]),
    ]


class _Page:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def show(self, request: Request) -> Response:
        return self._desk.render("core/sign_in.html", shell=None, origin=self._origin(), link=None)

    def _origin(self) -> str:
        return self._desk.context.ledger.state.site.origin


class _Link(_Page):
    """A look at it uses nothing up: whatever loads addresses ahead of a person must not sign anybody in."""

    def show(self, request: Request) -> Response:
        code = request.path_params["code"]
        name = self._desk.door.whose_link(code)
        return self._desk.render("core/sign_in.html", shell=None, origin=self._origin(), link=(code, name))

    async def take(self, request: Request) -> Response:
        await self._desk.form(request, in_session=False)
        cookie, session = await run_in_threadpool(self._desk.door.admit, request.path_params["code"])
        return await run_in_threadpool(admit, self._desk, request, cookie, session)


class _SignOut(_Page):
    async def take(self, request: Request) -> Response:
        await self._desk.form(request)
        site = self._desk.site
        await run_in_threadpool(self._desk.door.sign_out, site.read_cookie(request) or "", source_of(request))
        return RedirectResponse("/sign-in", 303, {"Set-Cookie": site.set_cookie("", 0)})


def admit(desk: Desk, request: Request, cookie: str, session: Session) -> Response:
    """The first page, with the session's cookie; a session that this browser had before ends."""
    with suppress(ApplianceError):
        if (before := desk.site.read_cookie(request)) is not None:
            desk.door.sign_out(before, source_of(request))
    left = seconds_since(desk.context.now(desk.context.ledger.state), session.expires_at)
    return RedirectResponse("/home", 303, {"Set-Cookie": desk.site.set_cookie(cookie, max(round(left), 1))})
