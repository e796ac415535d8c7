"""A service whose heart stands still is none: it ends, in order, and says so."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from appliance.web.core.server import Door, Heart, serve
from scripts.kit.appliance import Appliance, free_port


def test_a_beat_that_raises_ends_the_doors_after_what_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(1.0)
        await send({"type": "http.response.body", "body": b"whole"})

    beats: list[bool] = []

    def beat() -> None:
        beats.append(True)
        raise RuntimeError("once")

    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen()
    address = door.getsockname()

    def ask() -> None:
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while data := connection.recv(4096):
                answers.append(data)

    asking = Thread(target=ask)
    asking.start()
    with caplog.at_level(logging.CRITICAL, "appliance"), pytest.raises(RuntimeError, match="once"):
        serve([Door(app, door)], heart=Heart(beat, 0.3, lambda _: None), ended=lambda: None)
    asking.join()
    assert b"".join(answers).endswith(b"5\r\nwhole\r\n0\r\n\r\n")
    assert beats == [True]
    assert [record.message for record in caplog.records] == ["ALARM: the heartbeat failed, the service ends"]
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1)


def test_a_request_of_two_lengths_is_refused_and_what_follows_it_is_no_request() -> None:
    """A proxy that reads the other length would let one person's request begin another's."""
    paths: list[str] = []
    asked, answers = Event(), list[bytes]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen()
    address = door.getsockname()

    def ask() -> None:
        for lengths in (b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked"):
            with socket.create_connection(address, timeout=30) as connection:
                first = b"POST /first HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n\r\n0\r\n\r\n"
                connection.sendall(first + b"GET /smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answers.append(b"".join(iter(lambda: connection.recv(4096), b"")))
        asked.set()

    asking = Thread(target=ask)
    asking.start()
    heart = Heart(lambda: None, 60.0, lambda _: None)
    serve([Door(app, door)], heart=heart, ended=lambda: "asked" if asked.is_set() else None)
    asking.join()
    refused, framed = answers
    assert refused.startswith(b"HTTP/1.1 400 ") and refused.count(b"HTTP/1.1 ") == 1
    assert framed.count(b"HTTP/1.1 200 ") == 2 and paths == ["/first", "/smuggled"]


def test_a_beat_that_hangs_is_told_until_it_ends_and_does_not_hold_up_the_end() -> None:
    told: list[float] = []
    goes_on, never = Event(), Event()
    waited = iter([goes_on, never])

    def ended() -> str | None:
        if len(told) >= 2:
            goes_on.set()
        return "enough" if 0.0 in told and told[-1] > 0 else None

    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen()
    heart = Heart(lambda: next(waited).wait() and None, 0.2, told.append)
    began = time.monotonic()
    assert serve([Door(_nothing, door)], heart=heart, ended=ended) == "enough"
    assert time.monotonic() - began < 10
    first = told[: told.index(0.0)]
    assert len(first) >= 2 and first == sorted(first) and first[0] >= 0.2
    never.set()


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError


def test_a_heart_that_hangs_makes_the_service_unready_and_says_alarm(
    start_small: Callable[..., Appliance], tmp_path: Path
) -> None:
    port = free_port()
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("t" * 32)
    environment = {"APPLIANCE_OPERATIONS": f"127.0.0.1:{port}", "APPLIANCE_OPERATIONS_TOKEN": str(token)}
    site = start_small(environment, beat_s=1.0, hanging_beat=True)
    deadline = time.monotonic() + 20
    while (answer := httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=20)).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert (answer.status_code, answer.text) == (503, "no recent heartbeat\n")
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=20).status_code == 200
    assert "ALARM: the heartbeat has not ended for" in site.log()
    assert site.stop() == 0


def test_the_service_records_that_it_ended_so_and_the_next_one_starts(start_small: Callable[..., Appliance]) -> None:
    site = start_small(beat_s=1.0, failing_beat=True)
    assert site.service is not None
    assert site.service.wait(30) == 1
    assert "ALARM: the heartbeat failed" in site.log() and "a beat that nobody foresaw" in site.log()
    site.service = None
    site.launcher = ("-m", "appliance", "serve")
    site.start()
    (stop,) = site.entries(type="service.stopped")[-1:]
    assert stop["body"]["reason"] == "failed"
    assert site.verify()["verdict"] == "verified"
