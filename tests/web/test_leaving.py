"""Long work ends when its client has disconnected."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from appliance.errors import Unavailable
from appliance.web.core.receiving import run_while_awaited
from appliance.web.units.middleware import Threads, openai_body


class Work:
    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, left: Callable[[], bool]) -> None:
        self.begun.set()
        while not left():
            time.sleep(0.005)
        self.ended.set()


def ask(*told: dict[str, Any]) -> Request:
    """Return the request of a client that sends this and then nothing."""
    messages = iter(told)

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        return cast(dict[str, Any], await asyncio.Event().wait())

    return cast(Request, SimpleNamespace(receive=receive))


def test_work_ends_when_its_client_leaves() -> None:
    work = Work()
    asyncio.run(run_while_awaited(ask({"type": "http.request"}, {"type": "http.disconnect"}), work))
    assert work.ended.is_set()


def test_the_client_of_a_service_that_ends_is_told_so() -> None:
    work = Work()

    async def end() -> None:
        task = asyncio.create_task(run_while_awaited(ask(), work))
        await asyncio.to_thread(work.begun.wait, 60)
        task.cancel()
        await task

    with pytest.raises(Unavailable) as caught:
        asyncio.run(end())
    assert caught.value.code == "service-ends"
    assert work.ended.wait(60)


def test_the_client_of_a_unit_that_waits_for_an_engine_is_told_of_the_end_of_the_service() -> None:
    """A balancer repeats such a request at another gateway (503), and none that ended with a defect (500)."""
    begun, started = threading.Event(), threading.Event()

    def start_engine() -> None:
        begun.set()
        started.wait(60)

    async def end() -> None:
        task = asyncio.create_task(Threads(1).run(start_engine))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        await task

    with pytest.raises(Unavailable) as caught:
        asyncio.run(end())
    started.set()
    assert openai_body(caught.value)[0] == 503 and caught.value.code == "service-ends"


def test_what_work_returns_and_raises_passes() -> None:
    assert asyncio.run(run_while_awaited(ask(), lambda _left: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        asyncio.run(run_while_awaited(ask(), lambda _left: 1 / 0))
