"""Before the people's app where it stands open to a network: who asks, how much, how slowly, and how many at once.

The Unix socket has no such gate: who may open it is an account of this machine.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.web.core import bodies
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.bodies import Body, authorization_of
from appliance.web.core.errors import people_body, refusal
from appliance.web.core.places import Places
from appliance.web.core.receiving import paced

MOST = 24
"""Requests at once of people with a session, of 40 threads, so that the Unix socket is always answered."""
STRANGERS = 32
"""Requests at once without one: opening a session, or submitting an order, which its own signature authenticates."""
_SMALL_BYTES = 65_536
PUBLIC = {
    "/v1/about": _SMALL_BYTES,
    "/v1/sessions/challenge": _SMALL_BYTES,
    "/v1/sessions": _SMALL_BYTES,
    "/v1/orders": bodies.BODY_BYTES,
}
"""Paths that need no session, and how large a body of theirs is at most."""
_UPLOADS = "/v1/uploads/"


class Gate:
    """A session is asked for before a byte of a body is taken; what is refused here is counted."""

    def __init__(self, app: ASGIApp, door: Doorkeeper) -> None:
        self._app = app
        self._door = door
        self._strangers = Places(STRANGERS)
        self._people = Places(MOST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        is_public = path in PUBLIC
        body = Body(receive, PUBLIC.get(path, bodies.BODY_BYTES))
        try:
            if not is_public:
                await run_in_threadpool(self._door.person, authorization_of(scope))
            with (self._strangers if is_public else self._people).take():
                if scope["method"] == "PUT" and path.startswith(_UPLOADS):
                    await self._app(scope, paced(receive), send)
                    return
                await body.read(scope)
                await self._app(scope, body.replay, send)
                return
        except ApplianceError as error:
            self._door.count(None, error)
            response = refusal(people_body, error)
        await body.drain()
        await response(scope, receive, send)
