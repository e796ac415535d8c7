"""A request says its length once. A proxy that reads the other of two lengths sees another end of it, and takes what
follows for the next request, of another person (RFC 9112, 6.1)."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_LENGTHS = {b"content-length", b"transfer-encoding"}


def once_framed(app: ASGIApp) -> ASGIApp:
    """Refuses a request with both lengths, and ends its connection."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and {name for name, _ in scope["headers"]} >= _LENGTHS:
            said = "request: expected Content-Length or Transfer-Encoding, got both\n"
            await PlainTextResponse(said, 400, {"Connection": "close"})(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer
