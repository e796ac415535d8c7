"""Before the units' app, and before a byte of a body is taken: who asks, how much of it, how much, and how slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.errors import ApplianceError, BadInput, TooLarge
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.errors import openai_body, refusal
from appliance.web.operations.limits import Quotas

MOST = 128
"""Requests at once, of all units together: each has one thread at most, and people have others."""
BODY_BYTES = 2 * 1024 * 1024
BODY_S = 30.0
_DRAINED_BYTES = 16 * 1024 * 1024

T = TypeVar("T")


class Threads:
    """The threads of the units' door, apart from the people's: whatever units do, people are answered."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MOST, thread_name_prefix="unit")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *arguments))

    def start(self, function: Callable[[], None]) -> None:
        """Runs to its end, whatever becomes of the caller."""
        self._pool.submit(function)


class Gate:
    """Sets `caller` and `place` in the scope's state. What is refused here is counted, and appended as a count."""

    def __init__(self, app: ASGIApp, door: Doorkeeper, quotas: Quotas, threads: Threads) -> None:
        self._app = app
        self._door = door
        self._quotas = quotas
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        unit: str | None = None
        try:
            caller = await self._threads.run(self._door.unit, _authorization(scope))
            unit = caller.unit
            place = self._quotas.enter(unit)
            with place:
                await body.read(scope)
                scope["state"].update(caller=caller, place=place)
                await self._app(scope, body.replay, send)
                await _leave(scope)
                return
        except ApplianceError as error:
            self._door.count(unit, error)
            response = refusal(openai_body, error)
        await body.drain()
        await response(scope, receive, send)


async def _leave(scope: Scope) -> None:
    """The place is held until nothing of the request is under way, whoever has left it."""
    frames = scope["state"].get("frames")
    if frames is not None:
        frames.leave()
        await frames.ended.wait()


def _authorization(scope: Scope) -> str | None:
    found = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
    return found[0] if len(found) == 1 else None


class _Body:
    """The request's body, whole and in time, or not at all."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._chunks: list[bytes] = []
        self._size = 0
        self._more = True
        self._given = False

    async def read(self, scope: Scope) -> None:
        """TooLarge by what the header says, before anything is read, and by what comes."""
        said = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or int(value) > BODY_BYTES for value in said):
            raise TooLarge(f"request: expected at most {BODY_BYTES} bytes")
        try:
            async with asyncio.timeout(BODY_S):
                while self._more:
                    await self._take()
                    if self._size > BODY_BYTES:
                        self._chunks.clear()
                        raise TooLarge(f"request: expected at most {BODY_BYTES} bytes")
        except TimeoutError:
            raise BadInput(f"request: expected its body within {BODY_S:.0f} s", code="too-slow") from None

    async def _take(self) -> None:
        message = await self._receive()
        if message["type"] != "http.request":
            raise BadInput("request: expected its body whole, got its end", code="disconnected")
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
