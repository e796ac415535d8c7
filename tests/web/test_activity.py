"""A service with open requests or long work does not count as idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from appliance.formats.core.digest import digest_bytes
from appliance.web.core.server import Activity
from scripts.kit.appliance import Appliance
from scripts.kit.ports import free_port
from tests.web.small import CLOCK

LOOKED_S = 1.2
"""Seconds within which a service looks whether it is idle."""


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


@pytest.mark.thorough
def test_an_embedded_service_ends_when_units_and_slow_requests_have_and_whoever_probes_it_needs_none(
    start_small: Callable[..., Appliance], tmp_path: Path
) -> None:
    operations = f"127.0.0.1:{free_port()}"
    token = tmp_path / "operations.token"
    token.touch(0o600)
    token.write_text("x" * 20)
    environment = {"APPLIANCE_OPERATIONS": operations, "APPLIANCE_OPERATIONS_TOKEN": str(token)}
    site = start_small(environment, idle_s=100.0, own_clock=True)
    assert site.service is not None
    Thread(target=probe, args=[f"http://{operations}"], daemon=True).start()
    site.session("olga")
    passed = 0.0

    def let_pass(seconds: float) -> None:
        nonlocal passed
        passed += seconds
        (tmp_path / CLOCK).write_text(str(passed))
        (tmp_path / CLOCK).replace(site.home / CLOCK)

    head = {"Authorization": f"Bearer {site.token('legal')}"}
    for _ in range(3):
        let_pass(60)
        time.sleep(LOOKED_S)
        assert site.units().get("/v1/models", headers=head).status_code == 200, "a unit that asks now and then"
    data = b"weights" * 10

    def slowly() -> Iterator[bytes]:
        yield data[:10]
        time.sleep(LOOKED_S)  # until the service has the request
        let_pass(130)
        time.sleep(LOOKED_S)
        yield data[10:]

    head = {"Authorization": f"Bearer {site.session('olga')}", "Content-Length": str(len(data))}
    with site.http() as client:
        answer = client.put(f"/v1/uploads/{digest_bytes(data)}", content=slowly(), headers=head)
    assert answer.status_code == 200, "a request that takes longer than the service waits"
    let_pass(90)
    time.sleep(LOOKED_S)
    assert site.service.poll() is None, "the time counts from the end of the last request"
    let_pass(110)
    assert site.service.wait(60) == 0
    site.service = None
    site.launcher = ("-m", "appliance", "serve")
    site.start()
    (stop,) = site.entries(type="service.stopped")[-1:]
    assert stop["body"]["reason"] == "idle"
