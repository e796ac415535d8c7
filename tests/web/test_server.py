"""A service whose heartbeat stalls ends in order and reports it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from appliance.web.core import server
from appliance.web.core.server import SMALL_CHUNKS, Heart, Listener, serve
from appliance.web.operations.health import NotReady
from scripts.kit.appliance import Appliance
from scripts.kit.certificates import Authority
from scripts.kit.ports import free_port
from scripts.kit.waiting import wait_for


@pytest.mark.thorough
def test_a_beat_that_raises_ends_the_listeners_after_what_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        is_open.set()
        await asyncio.sleep(1.0)
        await send({"type": "http.response.body", "body": b"whole"})

    beats: list[bool] = []
    is_open = Event()

    def beat() -> None:
        assert is_open.wait(60)
        beats.append(True)
        raise RuntimeError("once")

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()

    def ask() -> None:
        with socket.create_connection(address, timeout=90) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while data := connection.recv(4096):
                answers.append(data)

    asking = Thread(target=ask)
    asking.start()
    with caplog.at_level(logging.CRITICAL, "appliance"), pytest.raises(RuntimeError, match="once"):
        serve([Listener(app, listener)], heart=Heart(beat, 0.3, lambda _: None), ended=lambda: None)
    asking.join()
    assert b"".join(answers).endswith(b"5\r\nwhole\r\n0\r\n\r\n")
    assert beats == [True]
    assert [record.message for record in caplog.records] == ["ALARM: the heartbeat failed, the service ends"]
    with pytest.raises(OSError):
        socket.create_connection(address, timeout=1)


@pytest.mark.thorough
def test_a_service_that_stops_refuses_connections_and_cuts_what_has_not_ended_in_its_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "GRACE_S", 1)
    is_open, is_cut, seen = Event(), Event(), list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        is_open.set()
        await asyncio.to_thread(is_cut.wait)
        await send({"type": "http.response.body", "body": b"cut"})

    units, operations = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    addresses = [f"http://127.0.0.1:{one.getsockname()[1]}" for one in (units, operations)]

    def cut() -> None:
        with pytest.raises(httpx.ConnectError):
            httpx.get(addresses[0])
        answer = httpx.get(f"{addresses[1]}/readyz")
        assert answer.status_code == 503
        seen.append(answer.text.splitlines()[0])
        is_cut.set()

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.get, addresses[0], timeout=90)
        serve(
            [Listener(app, units), Listener(_nothing, operations, stopping=NotReady("stopping").app())],
            heart=Heart(lambda: None, 60.0, lambda _: None),
            ended=lambda: "stopped" if is_open.is_set() else None,
            end_responses=cut,
        )
        assert answer.result().text == "cut" and seen == ["stopping"]
    for address in addresses:
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)


@pytest.mark.thorough
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

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()

    def ask() -> None:
        for lengths in (b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked"):
            with socket.create_connection(address, timeout=90) as connection:
                first = b"POST /first HTTP/1.1\r\nHost: x\r\n" + lengths + b"\r\n\r\n0\r\n\r\n"
                connection.sendall(first + b"GET /smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answers.append(b"".join(iter(lambda: connection.recv(4096), b"")))
        asked.set()

    asking = Thread(target=ask)
    asking.start()
    heart = Heart(lambda: None, 60.0, lambda _: None)
    serve([Listener(app, listener)], heart=heart, ended=lambda: "asked" if asked.is_set() else None)
    asking.join()
    refused, framed = answers
    assert refused.startswith(b"HTTP/1.1 400 ") and refused.count(b"HTTP/1.1 ") == 1
    assert framed.count(b"HTTP/1.1 200 ") == 2 and paths == ["/first", "/smuggled"]


def _exchange(requests: list[bytes]) -> tuple[list[bytes], list[int], float]:
    """Serve an app that reads bodies without a limit. Return the responses, bytes per body and CPU seconds."""
    sizes: list[int] = []
    asked, answers = Event(), list[bytes]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        sizes.append(size)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def ask() -> None:
        for request in requests:
            with socket.create_connection(listener.getsockname(), timeout=90) as connection:
                with suppress(OSError):  # refused before all of it was sent
                    connection.sendall(request)
                answers.append(b"")
                with suppress(OSError):
                    while data := connection.recv(4096):
                        answers[-1] += data
        asked.set()

    asking = Thread(target=ask)
    asking.start()
    begun = time.thread_time()
    heart = Heart(lambda: None, 60.0, lambda _: None)
    serve([Listener(app, listener)], heart=heart, ended=lambda: "asked" if asked.is_set() else None)
    spent = time.thread_time() - begun
    asking.join()
    return answers, sizes, spent


POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def chunked(chunk: bytes, count: int) -> bytes:
    return POST + (b"%x\r\n%s\r\n" % (len(chunk), chunk)) * count + b"0\r\n\r\n"


@pytest.mark.thorough
def test_a_body_of_many_small_chunks_is_refused_at_little_cost() -> None:
    answers, sizes, spent = _exchange([chunked(b"x", 60_000)] * 40)
    assert len(answers) == 40
    for answer in answers:  # a connection that is closed with unread bytes may lose its response
        assert answer == b"" or (answer.startswith(b"HTTP/1.1 400 ") and b"chunks of 512 bytes" in answer)
    assert any(answers)
    assert max(sizes) <= SMALL_CHUNKS
    assert spent / 40 < 0.05


@pytest.mark.thorough
def test_bodies_of_usual_chunks_and_pipelined_requests_are_read_whole() -> None:
    following = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    first = chunked(b"y" * 700, 700).replace(b"Connection: close\r\n", b"", 1)
    requests = [
        chunked(b"x", SMALL_CHUNKS),
        chunked(b"x" * 600, 2000),
        first + following * 2 + chunked(b"z" * 70_000, 4),
    ]
    answers, sizes, _ = _exchange(requests)
    assert [answer.count(b"HTTP/1.1 200 ") for answer in answers] == [1, 1, 4]
    assert sizes == [SMALL_CHUNKS, 1_200_000, 490_000, 0, 0, 280_000]


@pytest.mark.thorough
def test_a_pipelined_request_begins_once_the_response_before_it_is_read() -> None:
    """A request has a place of its listener, so a client that reads nothing would keep it from others."""
    begun, size, count = list[str](), 16_000_000, 3
    is_begun, is_read = Event(), Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])
        is_begun.set()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})

    listener = socket.create_server(("127.0.0.1", 0))
    address, begun_unread = listener.getsockname(), list[int]()

    def ask() -> None:
        with suppress(OSError), socket.create_connection(address, timeout=90) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * count)
            assert is_begun.wait(60)
            time.sleep(0.5)
            begun_unread.append(len(begun))
            got = 0
            while got < count * size:
                got += len(connection.recv(1 << 20))
        is_read.set()

    asking = Thread(target=ask)
    asking.start()
    serve(
        [Listener(app, listener)],
        heart=Heart(lambda: None, 60.0, lambda _: None),
        ended=lambda: "read" if is_read.is_set() else None,
    )
    asking.join()
    assert begun_unread == [1] and len(begun) == count


@pytest.mark.thorough
def test_headers_have_their_limit_also_in_one_read_and_behind_another_request() -> None:
    large = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 30_000 + b"\r\n"
    answers, sizes, _ = _exchange([large, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + large])
    assert sizes == [0]
    assert [answer.count(b"HTTP/1.1 200 ") for answer in answers] == [0, 1]


BLOCKED = """
import os, socket
from appliance.web.core.server import Listener, Heart, serve

async def app(scope, receive, send):
    print("blocked", flush=True)
    while True:
        pass

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
ended = dict(ended=lambda: None, signalled=lambda: os._exit(7))
serve([Listener(app, listener)], heart=Heart(lambda: None, 60, print), **ended)
"""


def test_a_signal_is_obeyed_while_the_event_loop_is_blocked() -> None:
    with subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), timeout=90) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert process.stdout.readline() == "blocked\n"
                process.send_signal(signal.SIGTERM)
                assert process.wait(90) == 7
        finally:
            process.kill()


@pytest.mark.thorough
def test_a_beat_that_hangs_is_told_until_it_ends_and_does_not_hold_up_the_end() -> None:
    told: list[float] = []
    goes_on, never = Event(), Event()
    waited = iter([goes_on, never])

    def ended() -> str | None:
        if len(told) >= 2:
            goes_on.set()
        return "enough" if 0.0 in told and told[-1] > 0 else None

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    heart = Heart(lambda: next(waited).wait() and None, 0.2, told.append)
    began = time.monotonic()
    assert serve([Listener(_nothing, listener)], heart=heart, ended=ended) == "enough"
    assert time.monotonic() - began < 60
    first = told[: told.index(0.0)]
    assert len(first) >= 2 and first == sorted(first) and first[0] >= 0.2
    never.set()


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError


@pytest.mark.thorough
def test_a_heart_that_hangs_makes_the_service_unready_and_says_alarm(
    start_small: Callable[..., Appliance], tmp_path: Path
) -> None:
    port = free_port()
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("t" * 32)
    environment = {"APPLIANCE_OPERATIONS": f"127.0.0.1:{port}", "APPLIANCE_OPERATIONS_TOKEN": str(token)}
    site = start_small(environment, beat_s=1.0, hanging_beat=True)

    def find_failure() -> httpx.Response | None:
        answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60)
        return None if answer.status_code == 200 else answer

    answer = wait_for(find_failure, "an answer other than 200", pause_s=0.1)
    assert answer is not None
    assert (answer.status_code, answer.text.splitlines()[0]) == (503, "no recent heartbeat")
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).status_code == 200
    assert "ALARM: the heartbeat has not ended for" in site.log()
    assert site.stop() == 0


@pytest.mark.thorough
def test_the_service_records_that_it_ended_so_and_the_next_one_starts(start_small: Callable[..., Appliance]) -> None:
    site = start_small(beat_s=1.0, failing_beat=True)
    assert site.service is not None
    assert site.service.wait(90) == 1
    assert "ALARM: the heartbeat failed" in site.log() and "a beat that nobody foresaw" in site.log()
    site.service = None
    site.launcher = ("-m", "appliance", "serve")
    site.start()
    (stop,) = site.entries(type="service.stopped")[-1:]
    assert stop["body"]["reason"] == "failed"
    # What logrotate sends by default reloads: the service neither ends nor leaves its end unrecorded.
    assert site.service is not None
    site.service.send_signal(signal.SIGHUP)
    assert site.entries(type="service.stopped")[-1] == stop and site.service.poll() is None
    assert site.verify()["verdict"] == "verified"


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.thorough
def test_a_hangup_has_a_new_certificate_and_log_level_used_without_a_restart(
    start_small: Callable[..., Appliance], tmp_path: Path
) -> None:
    authority, port = Authority(tmp_path / "ca"), free_port()
    files = authority.issue("appliance")
    tls = {"APPLIANCE_CERTIFICATE": str(files.chain), "APPLIANCE_CERTIFICATE_KEY": str(files.key)}
    site = start_small({**tls, "APPLIANCE_LISTEN": f"127.0.0.1:{port}"})
    shown = partial(ssl.get_server_certificate, ("127.0.0.1", port))
    settings = site.home / "appliance.toml"

    def hang_up(expected: str) -> None:
        before = site.log().count(expected)
        assert site.service is not None
        site.service.send_signal(signal.SIGHUP)
        wait_for(lambda: site.log().count(expected) > before, expected)

    old, good = shown(), (files.chain.read_bytes(), files.key.read_bytes())
    authority.issue("appliance", days=60)
    settings.write_text('log_level = "warning"\nbackup_days = 3\n')
    settings.chmod(0o600)
    assert shown() == old
    hang_up("settings that wait for a restart: backup_days")
    new = shown()
    assert ssl.PEM_cert_to_DER_cert(new) == ssl.PEM_cert_to_DER_cert(files.chain.read_text()) and new != old
    quiet = len(site.log())
    site.session("axel")
    assert "session.opened" not in site.log()[quiet:]

    # Half of a pair, an ended certificate, a key that others can read, a mistake in the settings, a pipe, whose reader
    # waits for ever: nothing changes.
    whole = files.chain.read_bytes(), files.key.read_bytes()
    for spoil in (
        lambda: files.key.write_bytes(good[1]),
        lambda: authority.issue("appliance", days=-1),
        lambda: files.key.chmod(0o644),
        lambda: settings.write_text('log_level = "loud"\n'),
        lambda: replace_by_pipe(files.chain),
        lambda: replace_by_pipe(files.key),
    ):
        spoil()
        hang_up("ALARM: the reload was refused, and nothing changed")
        assert shown() == new
        for path in (files.chain, files.key):
            if path.is_fifo():
                path.unlink()
        files.chain.write_bytes(whole[0])
        files.key.write_bytes(whole[1])
        files.key.chmod(0o600)
    settings.write_text('log_level = "info"\n')
    hang_up("settings that wait for a restart: none")
    site.sessions.clear()
    site.session("axel")
    assert "session.opened" in site.log()[quiet:]
