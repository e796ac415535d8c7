"""Before the units' app, and before a byte of a body is taken: who asks, how much of it, how much, and how slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import ApplianceError
from appliance.web.core.auth import Doorkeeper
from appliance.web.core.bodies import Body, authorization_of
from appliance.web.core.errors import refusal
from appliance.web.operations.limits import Quotas
from appliance.web.units.refusals import openai_body

MOST = 128
"""Requests at once, of all units together: each has one thread at most, and people have others."""

T = TypeVar("T")


class Threads:
    """Threads in which units are answered, apart from the people's: whatever units do, people are answered."""

    def __init__(self, most: int = MOST) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="unit")

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
        body = Body(receive)
        unit: str | None = None
        try:
            caller = await self._threads.run(self._door.unit, authorization_of(scope))
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
    """The place is held until no part of the request is running, even after its client has left."""
    frames = scope["state"].get("frames")
    if frames is not None:
        frames.leave()
        await frames.ended.wait()
