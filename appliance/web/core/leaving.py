"""Work that takes long, and is given up where its client leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from appliance.errors import Unavailable

Answer = TypeVar("Answer")


async def run_while_awaited(request: Request, work: Callable[[Callable[[], bool]], Answer]) -> Answer:
    """What `work` returns, in a thread; it is given the question whether the client has left, or the service ends."""
    left = threading.Event()
    listening = asyncio.create_task(_listen(request, left))
    try:
        return await run_in_threadpool(work, left.is_set)
    except asyncio.CancelledError:
        # By the server, whose end waits no longer. The thread ends by itself.
        raise Unavailable(
            "service: expected it to run until the answer, got its shutdown", code="service-ends"
        ) from None
    finally:
        left.set()
        listening.cancel()


async def _listen(request: Request, left: threading.Event) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
    left.set()
