"""Clients that follow work use no thread, receive news at once, and leave places to others."""

from __future__ import annotations

import asyncio
import os
import time
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import pytest
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from appliance.web.people import middleware
from appliance.web.people.middleware import follow
from appliance.workflows.core.progress import Progress


def look(progress: Progress) -> dict[str, Any]:
    stream = progress.read("r-000001")
    return {"frames": list(stream.frames), "ended": stream.ended}


def is_news(answer: dict[str, Any]) -> bool:
    return bool(answer["frames"] or answer["ended"])


@pytest.mark.thorough
def test_twenty_who_follow_leave_the_two_threads_to_others_and_hear_of_a_step_at_once() -> None:
    progress = Progress()

    async def followed() -> list[dict[str, Any]]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 2
        asked = [
            asyncio.create_task(follow(progress, "r-000001", lambda: look(progress), 60, is_news)) for _ in range(20)
        ]
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await run_in_threadpool(progress.publish, "r-000002", {"frame": "step"})
        await asyncio.sleep(0.1)
        assert not any(one.done() for one in asked), "another run's step is no news"
        await run_in_threadpool(progress.publish, "r-000001", {"frame": "step"})
        answers = await asyncio.gather(*asked)
        assert time.monotonic() - began < 30
        return answers

    answers = asyncio.run(followed())
    assert [answer["frames"][0]["frame"] for answer in answers] == ["step"] * 20
    assert progress._waiting == {}


@pytest.mark.parametrize("ends", [True, False])
def test_who_follows_is_answered_at_the_end_of_the_work_or_of_the_wait(ends: bool) -> None:
    progress = Progress()

    async def followed() -> dict[str, Any]:
        asked = asyncio.create_task(follow(progress, "r-000001", lambda: look(progress), 60 if ends else 0.2, is_news))
        await asyncio.sleep(0.05)
        if ends:
            progress.end("r-000001")
        return await asyncio.wait_for(asked, 30)

    assert asyncio.run(followed()) == {"frames": [], "ended": ends}


class Asked:
    """The app behind the middleware: it answers once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        await self.may.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def ask(people_app: middleware.PeopleLimitsMiddleware, path: str, who: str, account: int) -> int:
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"authorization", who.encode())]
    method = "PUT" if path.startswith("/v1/uploads/") else "GET"
    path, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
    scope["client"] = (f"unix:{account}", 1)
    await people_app(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("/v1/runs", middleware.MOST_OF_ONE),
        ("/v1/runs/r-000001/progress", middleware.FOLLOWING_OF_ONE),
        ("/v1/units/legal/effective-access?at=5", middleware.MOST_OF_ONE),
        ("/v1/units/legal/effective-access?since=0", 1),
        ("/v1/units/legal/effective-access?until=5&%73ince=0", 1),
        ("/v1/ledger/export", 1),
        ("/v1/uploads/x", middleware.UPLOADING_OF_ONE),
    ],
)
def test_nobody_takes_every_place(path: str, most: int, local: bool) -> None:
    """At the Unix socket a person is an account, and on a network the principal of the session."""
    counted = SimpleNamespace(person=lambda who: SimpleNamespace(principal=who), count=lambda *_: None)

    async def asked() -> None:
        app = Asked()
        people_app = middleware.PeopleLimitsMiddleware(app, counted, local=local)  # type: ignore[arg-type]
        first = [asyncio.create_task(ask(people_app, path, "mallory", 4242)) for _ in range(most)]
        while app.inside < most:
            await asyncio.sleep(0.01)
        assert await ask(people_app, path, "mallory", 4242) == 429
        others = [
            asyncio.create_task(ask(people_app, path, who, account)) for who, account in (("rita", 4243), ("rob", 0))
        ]
        others += [
            asyncio.create_task(ask(people_app, path, "axel", os.geteuid())) for _ in range(most if local else 1)
        ]
        app.may.set()
        assert set(await asyncio.gather(*first, *others)) == {200}
        assert await ask(people_app, path, "mallory", 4242) == 200

    asyncio.run(asked())


def test_uploads_take_no_place_of_other_requests() -> None:
    counted = SimpleNamespace(person=lambda who: SimpleNamespace(principal=who), count=lambda *_: None)

    async def asked() -> None:
        app = Asked()
        people_app = middleware.PeopleLimitsMiddleware(app, counted)  # type: ignore[arg-type]
        people = [f"person-{number}" for number in range(middleware.UPLOADING // middleware.UPLOADING_OF_ONE)]
        uploads = [
            asyncio.create_task(ask(people_app, "/v1/uploads/x", who, 0))
            for who in people * middleware.UPLOADING_OF_ONE
        ]
        while app.inside < middleware.UPLOADING:
            await asyncio.sleep(0.01)
        assert await ask(people_app, "/v1/uploads/x", "rob", 0) == 429
        others = [asyncio.create_task(ask(people_app, "/v1/runs", who, 0)) for who in people * middleware.MOST_OF_ONE]
        while app.inside < middleware.UPLOADING + middleware.MOST:
            await asyncio.sleep(0.01)
        app.may.set()
        assert set(await asyncio.gather(*uploads, *others)) == {200}

    asyncio.run(asyncio.wait_for(asked(), 60))
