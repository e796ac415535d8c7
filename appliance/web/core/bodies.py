"""The body of a stranger's request: so large and no larger, within so long, before anything else is done with it."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Scope

from appliance.errors import BadInput, TooLarge, TooMany

BODY_BYTES = 2 * 1024 * 1024
BODY_S = 30.0
ROOM_BYTES = 256 * 1024 * 1024
_DRAINED_BYTES = 16 * 1024 * 1024


def authorization_of(scope: Scope) -> str | None:
    found = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
    return found[0] if len(found) == 1 else None


class Room:
    """How many bytes the bodies of all requests have together; all of them live in one event loop. A slow sender takes
    as much as it has sent, and no other's turn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, size: int) -> None:
        """TooMany where they would have more."""
        if self._taken + size > self._most:
            raise TooMany(f"request: expected bodies of {self._most} bytes at most at once, got more; ask again")
        self._taken += size

    def leave(self, size: int) -> None:
        self._taken -= size


class Body:
    """The request's body, whole and in time, or not at all. With a `room` its bytes count there until `close`."""

    def __init__(self, receive: Receive, most: int = BODY_BYTES, room: Room | None = None) -> None:
        self._receive = receive
        self._most = most
        self._room = room
        self._held = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._more = True
        self._given = False

    async def read(self, scope: Scope) -> None:
        """TooLarge by what the header says, before anything is read, and by what comes."""
        said = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or int(value) > self._most for value in said):
            raise TooLarge(f"request: expected at most {self._most} bytes")
        try:
            async with asyncio.timeout(BODY_S):
                while self._more:
                    await self._take()
                    if self._size > self._most:
                        self._chunks.clear()
                        raise TooLarge(f"request: expected at most {self._most} bytes")
                    self._hold(len(self._chunks[-1]))
        except TimeoutError:
            raise BadInput(f"request: expected its body within {BODY_S:.0f} s", code="too-slow") from None

    def _hold(self, size: int) -> None:
        if self._room is not None:
            self._room.take(size)
            self._held += size

    def close(self) -> None:
        """Nothing of it is kept any longer."""
        self._chunks.clear()
        if self._room is not None:
            self._room.leave(self._held)
            self._held = 0

    async def _take(self) -> None:
        message = await self._receive()
        if message["type"] != "http.request":
            raise BadInput("request: expected its whole body, got the end of the connection", code="disconnected")
        self._chunks.append(message.get("body", b""))
        self._size += len(self._chunks[-1])
        self._more = message.get("more_body", False)

    async def replay(self) -> Message:
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": b"".join(self._chunks), "more_body": False}
        return await self._receive()

    async def drain(self) -> None:
        """What a refused client still sends is thrown away, so that it reads why; for a short time, and not without
        end."""
        try:
            async with asyncio.timeout(2.0):
                while self._more and self._size < _DRAINED_BYTES:
                    await self._take()
                    self._chunks.clear()
        except (TimeoutError, BadInput):
            return
