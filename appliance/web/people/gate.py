"""Before the people's app: how large and how slow a body is, who asks, and how many at once.

At the Unix socket no session is asked for before a body. Its places are its own, and an account's share of them is that
of a person on a network. Root and the service's own account are not limited there.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.web.core import bodies
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.bodies import Body, Room, authorization_of
from appliance.web.core.errors import people_body, refusal
from appliance.web.core.places import Places
from appliance.web.core.receiving import paced

MOST = 24
MOST_OF_ONE = 8
"""Requests at once of people with a session, of the 40 threads that all listeners share."""
FOLLOWING = 128
FOLLOWING_OF_ONE = 16
"""... that wait for news of work: each waits in the event loop and holds no thread."""
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
_FOLLOWED = re.compile(r"/v1/(?:imports|replays|calibrations|dataset-checks|looks)/[^/]+|/v1/runs/[^/]+/progress")


_TRUSTED = frozenset(f"unix:{account}" for account in (0, os.geteuid()))


class Gate:
    """A body is read whole, within its size and time, before anything is done with it; what is refused here is counted.

    `local`: at the Unix socket. Otherwise a session is asked for before a byte of a body is taken.
    """

    def __init__(self, app: ASGIApp, door: Doorkeeper, *, local: bool = False) -> None:
        self._app = app
        self._door = door
        self._local = local
        # Strangers have a quarter of it, which they cannot fill for people with a session.
        self._strangers_room = Room(bodies.ROOM_BYTES // 4)
        self._room = Room(bodies.ROOM_BYTES - bodies.ROOM_BYTES // 4)
        self._strangers = Places(STRANGERS)
        self._people = Places(MOST, most_of_one=MOST_OF_ONE)
        self._following = Places(FOLLOWING, most_of_one=FOLLOWING_OF_ONE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        room = self._strangers_room if scope["path"] in PUBLIC else self._room
        body = Body(receive, PUBLIC.get(scope["path"], bodies.BODY_BYTES), room)
        try:
            place = await self._place(scope)
            if _is_upload(scope):
                with place:
                    await self._app(scope, paced(receive), send)
                return
            # Read before a place is taken, so that a slow sender keeps nobody out.
            await body.read(scope)
            with place:
                await self._app(scope, body.replay, send)
            return
        except ApplianceError as error:
            self._door.count(None, error)
            response = refusal(people_body, error)
        finally:
            body.close()
        await body.drain()
        await response(scope, receive, send)

    async def _place(self, scope: Scope) -> AbstractContextManager[None]:
        """One among those of who asks, to be taken. NotAuthenticated on a network, without a session."""
        if self._local:
            if (account := str(scope["client"][0])) in _TRUSTED:
                return nullcontext()
            return self._places(scope).take(account)
        if scope["path"] in PUBLIC:
            return self._strangers.take()
        session = await run_in_threadpool(self._door.person, authorization_of(scope))
        return self._places(scope).take(session.principal)

    def _places(self, scope: Scope) -> Places:
        return self._following if _FOLLOWED.fullmatch(scope["path"]) else self._people


def _is_upload(scope: Scope) -> bool:
    return bool(scope["method"] == "PUT" and scope["path"].startswith(_UPLOADS))
