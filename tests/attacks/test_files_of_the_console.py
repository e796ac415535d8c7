"""A client without a session that requests the console's files or pages does not block people or sign-in."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.web.console import app
from appliance.web.console.core import manual
from appliance.web.console.core.desk import Desk
from appliance.web.console.core.middleware import PAGES
from appliance.web.console.core.security import POLICY
from scripts.kit.ports import free_port
from tests.kit.console import Console, console, listening

INDEX = "search/search_index.json"
"""The largest file of the manual."""
SETTLE_S = 1.0


@pytest.fixture
def desk(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    folder = tmp_path / "manual"
    (folder / INDEX).parent.mkdir(parents=True)
    (folder / INDEX).write_bytes(b"1" * 2_000_000)
    monkeypatch.setattr(app, "manual_routes", lambda: manual.manual_routes(folder))
    port = free_port()
    with console("staffed", home, f"http://localhost:{port}") as made, listening(made, port):
        yield made


def ask(desk: Console, path: str, cookie: str, times: int = 1) -> socket.socket:
    """Send a request several times on one connection whose client reads nothing."""
    host = desk.url.removeprefix("http://")
    name = f"appliance-{host.partition(':')[2]}"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    connection.connect(("127.0.0.1", int(host.partition(":")[2])))
    connection.settimeout(90)
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {name}={cookie}\r\n\r\n"
    connection.sendall(request.encode() * times)
    return connection


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(1_024).split()[1])


@pytest.mark.thorough
def test_unread_files_take_no_place_of_a_page(desk: Console) -> None:
    """Each connection asks for more than the machine's buffers hold, under a cookie of its own."""
    secret = next(iter(desk.signed_in("rita").http.cookies.values()))
    with ExitStack() as open_ones:
        for number in range(PAGES + 8):
            open_ones.enter_context(ask(desk, f"/docs/{INDEX}", f"made-up-{number}", times=4))
        time.sleep(SETTLE_S)
        for _ in range(3):
            with ask(desk, "/home", secret) as page:
                assert status_of(page) == 200


@pytest.mark.parametrize("path", ["/docs/nowhere", "/static/nowhere.js"])
def test_a_file_that_does_not_exist_takes_no_place_and_no_thread(
    desk: Console, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Pages without their scripts sign nothing, so clients without a session must not use up the places of files."""

    def refuse(*given: object) -> None:
        raise AssertionError("the refusal of a file was made in a thread")

    monkeypatch.setattr(Desk, "_refuse", refuse)
    answer = desk.browser().get(path)
    assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-security-policy"] == POLICY


def test_files_are_sent_while_many_outsiders_ask_for_others(desk: Console) -> None:
    found = re.search(r'"(/static/htmx\.[0-9a-f]{16}\.js)"', desk.browser().get("/sign-in").text)
    assert found is not None
    with ExitStack() as open_ones:
        asked = [open_ones.enter_context(ask(desk, "/docs/nowhere", "made-up", times=4)) for _ in range(64)]
        with ask(desk, found[1], "made-up") as file:
            assert status_of(file) == 200
        assert {status_of(one) for one in asked} == {404}


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["/nowhere", "/home", "/sign-in"])
def test_many_outsiders_keep_nobody_from_signing_in(desk: Console, path: str) -> None:
    with ExitStack() as open_ones:
        asked = [open_ones.enter_context(ask(desk, path, "made-up", times=2)) for _ in range(64)]
        for page in ("/sign-in", "/sign-in/passkey.json?name=rita"):
            with ask(desk, page, "") as one:
                assert status_of(one) == 200
        assert 429 not in {status_of(one) for one in asked}


def test_a_file_of_the_manual_is_packed_once(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    compress = manual.gzip.compress

    def counting(data: bytes, *rest: int, **named: int) -> bytes:
        packed.append(len(data))
        return compress(data, *rest, **named)

    monkeypatch.setattr(manual.gzip, "compress", counting)
    browser = desk.browser()
    for _ in range(5):
        assert browser.get(f"/docs/{INDEX}", **{"Accept-Encoding": "gzip"}).status_code == 200
    assert packed == [2_000_000]
