"""Where a unit's application gets its tokens: before the gate, since who asks here has none yet.

A challenge costs nothing to make and is not remembered. A request for a token is read whole, of everybody only a few at
once, before its signature is checked; then it counts as a request of the unit's.
"""

from __future__ import annotations

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError, TooMany
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.bodies import Body
from appliance.web.core.challenges import Challenges
from appliance.web.core.errors import Foreign, refusal
from appliance.web.operations.limits import Quotas
from appliance.web.units.gate import Threads
from appliance.web.units.refusals import openai_body
from appliance.workflows.serving.serve import Serving

CHALLENGE, TOKENS = "/v1/tokens/challenge", "/v1/tokens"
MOST = 8
"""Requests for a token at once, of everybody."""
_BODY_BYTES = 16_384


class Issuing:
    """Everything but these two paths goes on to the gate."""

    def __init__(self, gate: ASGIApp, serving: Serving, door: Doorkeeper, quotas: Quotas, threads: Threads) -> None:
        self._gate = gate
        self._serving = serving
        self._door = door
        self._quotas = quotas
        self._threads = threads
        self._challenges = Challenges()
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (CHALLENGE, TOKENS):
            await self._gate(scope, receive, send)
            return
        body = Body(receive, _BODY_BYTES)
        try:
            response = await self._answer(scope, body)
        except ApplianceError as error:
            self._door.count(None, error)
            response = refusal(openai_body, error)
            await body.drain()
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, body: Body) -> Response:
        if scope["method"] != "POST":
            said = f"{scope['method']} {scope['path']}: Method Not Allowed"
            return refusal(openai_body, Foreign(said, "http", 405), {"Allow": "POST"})
        if scope["path"] == CHALLENGE:
            return JSONResponse({"nonce": self._challenges.make()})
        # Read before a place is taken, so that a slow sender blocks no other.
        await body.read(scope)
        data = (await body.replay())["body"]
        if self._running >= MOST:
            raise TooMany(f"tokens: expected fewer than {MOST} requests for one at once")
        self._running += 1
        try:
            return await self._threads.run(self._issue, data, _source(scope))
        finally:
            self._running -= 1

    def _issue(self, data: bytes, source: str) -> Response:
        """In a thread. The signature first: what no key of an application signed takes no challenge away."""
        request = self._door.token_request(data)
        self._challenges.take(request.nonce)
        try:
            with self._quotas.enter(request.signer):
                granted = self._serving.issue_token(request, data, source)
        except ApplianceError as error:
            self._door.count(request.signer, error)
            return refusal(openai_body, error)
        return JSONResponse({"token": granted.token, "id": granted.id, "expires_at": granted.expires_at})


def _source(scope: Scope) -> str:
    client = scope.get("client")
    return f"tcp:{client[0]}" if client else "unix"
