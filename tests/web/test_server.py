"""A service whose heart stands still is none: it ends, in order, and says so."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from threading import Thread

import pytest
from starlette.types import Receive, Scope, Send

from appliance.web.server import Door, serve
from tests.site import Site


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
        serve([Door(app, door)], beat=beat, ended=lambda: None, beat_s=0.3)
    asking.join()
    assert b"".join(answers).endswith(b"5\r\nwhole\r\n0\r\n\r\n")
    assert beats == [True]
    assert [record.message for record in caplog.records] == ["ALARM: the heartbeat failed, the service ends"]
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1)


def test_the_service_records_that_it_ended_so_and_the_next_one_starts(start_small: Callable[..., Site]) -> None:
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
