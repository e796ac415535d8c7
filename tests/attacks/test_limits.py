"""A unit that sends too many, too large or too slow requests is refused, without an effect on other units."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import openai
import pytest

from scripts.kit.appliance import Appliance, Refused
from scripts.kit.waiting import wait_for
from tests.attacks.streaming import LONG
from tests.web.small import SMALL

LIMITS = """
[limits]
concurrent = 2
[limits.claims]
tokens_per_day = 200
"""

HEADER_S = 3.0
over_both = pytest.mark.parametrize("wire", ["plain", "tls"])


@pytest.fixture
def limited(spoil: Callable[[], Appliance]) -> Appliance:
    return start_limited(spoil())


@pytest.fixture
def hurried(spoil: Callable[[], Appliance]) -> Appliance:
    """Return a service that gives headers less time than others do."""
    site = spoil()
    site.launcher = ("-m", "tests.web.small")
    (site.home / SMALL).write_text(json.dumps({"header_s": HEADER_S}))
    return start_limited(site)


def start_limited(site: Appliance) -> Appliance:
    (site.home / "appliance.toml").write_text(LIMITS)
    site.start()
    for unit in ("legal", "claims"):
        site.approve(unit)
        site.activate(unit)
    return site


@contextmanager
def connect(site: Appliance) -> Iterator[socket.socket]:
    with socket.create_connection(site.settings.listen or ("", 0), timeout=60) as connection:
        if site.authority is None:
            yield connection
            return
        with site.authority.trusting().wrap_socket(connection, server_hostname="127.0.0.1") as secured:
            yield secured


def head_of(site: Appliance, *more: str, unit: str = "legal") -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {site.token(unit)}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def said(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    told = b""
    with connection:
        while chunk := connection.recv(65_536):
            told += chunk
    return told


@pytest.mark.thorough
def test_what_is_over_a_limit_is_refused_with_when_to_ask_again_and_counted(limited: Appliance) -> None:
    client = limited.openai("claims")
    wanted = {"model": "labels", "prompt": "the parties", "max_tokens": 30}
    with pytest.raises(openai.RateLimitError) as tokens:
        for _ in range(200):
            client.completions.create(**wanted)  # type: ignore[call-overload]
    assert tokens.value.code == "rate_limit_exceeded"
    assert int(tokens.value.response.headers["Retry-After"]) > 60
    assert tokens.value.type == "tokens"
    assert tokens.value.body["appliance_code"] == "token-limit"  # type: ignore[index]
    for _ in range(20):
        with pytest.raises(openai.RateLimitError):
            client.models.list()
    limited.chat("legal", "labels")
    before = len(limited.entries())
    assert not limited.entries(type="request.refused")
    limited.stop()
    limited.start()
    counted = limited.entries(type="request.refused")
    assert [(e["actor"], e["body"]["code"]) for e in counted] == [("claims", "token-limit")]
    assert counted[0]["body"]["count"] >= 21
    assert len(limited.entries()) < before + 10
    assert limited.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_a_unit_has_no_more_answers_at_once_than_it_may_and_others_have_theirs(limited: Appliance) -> None:
    limited.chat("legal", "labels")
    limited.chat("claims", "labels", max_tokens=1)
    text = {"model": "labels", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1000, "stream": True}
    body = {**text, "response_format": LONG, "temperature": 2.0}
    head = {"Authorization": f"Bearer {limited.token('legal')}"}
    url = "/v1/chat/completions"
    with limited.units() as client:
        with (
            client.stream("POST", url, json=body, headers=head) as first,
            client.stream("POST", url, json={**body, "seed": 1}, headers=head) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 200)
            with pytest.raises(Refused) as refused:
                limited.chat("legal", "labels")
            assert (refused.value.status, refused.value.code) == (429, "concurrent-limit")
            limited.chat("claims", "labels", max_tokens=1)

        # Both were left: their places come back.
        def is_served() -> bool:
            try:
                limited.chat("legal", "labels", max_tokens=1)
            except Refused as again:
                assert again.code == "concurrent-limit"
                return False
            return True

        wait_for(is_served, "a free place")

    def have_ended() -> bool:
        return limited.types().count("request.admitted") <= limited.types().count("request.finished")

    wait_for(have_ended, "an end of each request that was left")
    outcomes = [entry["outcome"] for entry in limited.entries(type="request.finished", actor="legal")]
    assert len(outcomes) == 4 and set(outcomes) <= {"success", "interrupted"}
    assert outcomes.count("interrupted") <= 2, "those that were left, unless they had ended"


@pytest.mark.thorough
def test_a_body_that_is_too_large_is_refused_before_it_is_read(limited: Appliance) -> None:
    with connect(limited) as connection:
        connection.sendall(head_of(limited, f"Content-Length: {1 << 40}", "Connection: close"))
        assert said(connection).startswith(b"HTTP/1.1 413 ")

    def chunks() -> Iterator[bytes]:
        for _ in range(80):
            yield b"x" * 65_536

    head = {"Authorization": f"Bearer {limited.token('legal')}"}
    answer = limited.units().post("/v1/chat/completions", content=chunks(), headers=head)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too-large")
    assert not limited.entries(type="request.admitted")


def test_an_outsider_may_send_no_body_at_all(limited: Appliance) -> None:
    client, url = limited.units(), "/v1/chat/completions"
    assert client.post(url, content=b"x" * 1_000_000).status_code == 401
    double = [("Authorization", f"Bearer {limited.token('legal')}")] * 2
    assert client.post(url, json={}, headers=double).status_code == 401


@pytest.mark.thorough
@over_both
def test_headers_have_a_size_and_a_time(hurried: Appliance) -> None:
    with connect(hurried) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nX: " + b"y" * 40_000)
        assert said(connection).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    begun = time.monotonic()
    with connect(hurried) as silent, connect(hurried) as slow, ThreadPoolExecutor(2) as pool:
        with suppress(OSError):  # a busy machine may come to the last of them too late
            slow.sendall(b"GET /v1/models HTTP/1.1\r\n")
            for _ in range(5):
                time.sleep(HEADER_S / 10)
                slow.sendall(b"X-Y: z\r\n")
        # Over TLS one thread at a time uses a connection.
        ends = [pool.submit(_until_cut, connection) for connection in (silent, slow)]
        hurried.chat("legal", "labels", max_tokens=1)
        for end in ends:
            assert HEADER_S <= end.result(60) - begun < 30


@pytest.mark.thorough
@over_both
def test_a_body_without_an_end_is_cut_after_its_refusal(hurried: Appliance) -> None:
    with connect(hurried) as connection, suppress(OSError):
        connection.sendall(head_of(hurried, "Transfer-Encoding: chunked"))
        begun = time.monotonic()
        while time.monotonic() - begun < 60:
            connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            time.sleep(0.02)
    assert time.monotonic() - begun < 40


def _until_cut(connection: socket.socket) -> float:
    with suppress(OSError):  # a reset, or over TLS an end without its goodbye
        assert connection.recv(1) == b""
    return time.monotonic()


@pytest.mark.thorough
def test_where_a_request_came_from_is_not_what_it_says_of_itself(limited: Appliance) -> None:
    head = {"Authorization": f"Bearer {limited.token('legal')}", "X-Forwarded-For": "203.0.113.9"}
    body = {"model": "labels", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    assert limited.units().post("/v1/chat/completions", json=body, headers=head).status_code == 200
    assert {entry["source"] for entry in limited.entries(type="request.finished")} == {"tcp:127.0.0.1"}


@pytest.mark.thorough
@over_both
def test_a_client_that_does_not_read_holds_nothing_of_the_engine(limited: Appliance) -> None:
    """Its answer is made and recorded while not a byte of it is taken."""
    limited.chat("legal", "labels", max_tokens=1)
    text = {"model": "labels", "messages": [{"role": "user", "content": "x"}], "max_tokens": 300, "stream": True}
    body = json.dumps({**text, "temperature": 2.0}).encode()
    with connect(limited) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head_of(limited, f"Content-Length: {len(body)}", "Content-Type: application/json") + body)
        wait_for(lambda: len(limited.entries(type="request.finished")) >= 2, "the end of two requests")
    assert limited.entries(type="request.finished")[-1]["outcome"] == "success"
