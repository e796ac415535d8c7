"""A service that somebody needs is not idle: a unit that asks, and whatever takes long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import httpx
from starlette.types import Receive, Scope, Send

from appliance.formats.core.digest import digest_bytes
from appliance.web.core.activity import Activity
from scripts.kit.appliance import Appliance, free_port


def test_nothing_is_idle_while_a_request_is_open_and_time_counts_from_the_end_of_the_last() -> None:
    now = [100.0]
    activity = Activity(lambda: now[0])
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        if scope.get("fails"):
            raise ZeroDivisionError

    async def nothing(*_: object) -> None:
        return None

    async def ask() -> None:
        watched, other = activity.watching(app), activity.watching(app)
        wanted = [
            asyncio.create_task(watched({"type": "http"}, nothing, nothing)),  # type: ignore[arg-type]
            asyncio.create_task(other({"type": "http", "fails": True}, nothing, nothing)),  # type: ignore[arg-type]
        ]
        await asyncio.sleep(0)
        now[0] += 3600
        assert activity.idle_s() == 0
        release.set()
        await asyncio.wait(wanted)

    assert activity.idle_s() == 0
    now[0] += 7
    assert activity.idle_s() == 7
    asyncio.run(ask())
    assert activity.idle_s() == 0
    now[0] += 5
    assert activity.idle_s() == 5


def test_that_an_app_lives_is_no_request() -> None:
    now = [0.0]
    activity = Activity(lambda: now[0])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        now[0] += 7
        assert activity.idle_s() == 7

    asyncio.run(activity.watching(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]


def probe(url: str) -> None:
    """Whoever looks four times a second whether the service lives, until it does not."""
    try:
        while httpx.get(f"{url}/healthz", timeout=10).status_code == 200:
            time.sleep(0.25)
    except httpx.TransportError:
        return


def test_an_embedded_service_ends_when_units_and_slow_requests_have_and_whoever_probes_it_needs_none(
    start_small: Callable[..., Appliance], tmp_path: Path
) -> None:
    idle_s, operations = 1.5, f"127.0.0.1:{free_port()}"
    token = tmp_path / "operations.token"
    token.touch(0o600)
    token.write_text("x" * 20)
    environment = {"APPLIANCE_OPERATIONS": operations, "APPLIANCE_OPERATIONS_TOKEN": str(token)}
    site = start_small(environment, idle_s=idle_s)
    assert site.service is not None
    Thread(target=probe, args=[f"http://{operations}"], daemon=True).start()
    site.session("olga")
    head, until = {"Authorization": f"Bearer {site.token('legal')}"}, time.monotonic() + 3 * idle_s
    while time.monotonic() < until:
        assert site.units().get("/v1/models", headers=head).status_code == 200, "a unit that asks now and then"
        time.sleep(idle_s / 3)
    data = b"weights" * 10

    def slowly() -> Iterator[bytes]:
        yield data[:10]
        time.sleep(2.5 * idle_s)
        yield data[10:]

    head = {"Authorization": f"Bearer {site.session('olga')}", "Content-Length": str(len(data))}
    with site.http() as client:
        answer = client.put(f"/v1/uploads/{digest_bytes(data)}", content=slowly(), headers=head)
    assert answer.status_code == 200, "a request that takes longer than the service waits"
    ended = time.monotonic()
    assert site.service.wait(30) == 0
    assert time.monotonic() - ended > 0.9 * idle_s
    site.service = None
    site.launcher = ("-m", "appliance", "serve")
    site.start()
    (stop,) = site.entries(type="service.stopped")[-1:]
    assert stop["body"]["reason"] == "idle"
