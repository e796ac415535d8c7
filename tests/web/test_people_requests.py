"""The people's API over TLS for other machines, with limits on size and speed of unauthenticated requests."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.client.support.profile import profile_path
from appliance.config.settings import load_settings
from appliance.errors import BadInput
from appliance.formats.core.digest import digest_bytes
from scripts.kit.appliance import Appliance
from scripts.kit.certificates import Authority
from scripts.kit.ports import free_port
from tests.cli.conftest import type_alone

Start = Callable[..., Appliance]


@pytest.fixture
def start(start_small: Start) -> Start:
    """Return a starter of a service that people also reach over TLS."""

    def started(environment: dict[str, str] | None = None, **said: Any) -> Appliance:
        return start_small({"APPLIANCE_PEOPLE": f"127.0.0.1:{free_port()}", **(environment or {})}, tls=True, **said)

    return started


def address(site: Appliance) -> str:
    return site.environment["APPLIANCE_PEOPLE"]


def ca(site: Appliance) -> str:
    assert site.authority is not None
    return str(site.authority.file)


def at(site: Appliance, context: ssl.SSLContext | None = None) -> httpx.Client:
    assert site.authority is not None
    return httpx.Client(verify=context or site.authority.trusting(), base_url=f"https://{address(site)}", timeout=60)


@pytest.mark.thorough
def test_a_person_without_an_account_logs_in_and_works_over_tls(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = start()
    options = site.write_key("olga", tmp_path)
    trust = ["--trust", str(site.settings.trust)]
    told = type_alone(capsys, "login", "olga", *options, "--address", address(site), "--ca", ca(site), *trust)
    assert told.code == 0, told.err
    value = json.loads(type_alone(capsys, "whoami", "--json").out)
    assert (value["name"], value["appliance"], value["according_to"]) == ("olga", address(site), "the trust file")
    told = type_alone(capsys, "key", "revoke", "olga", "--yes", *options[2:])
    assert told.code == 0, told.err
    sources = {entry["source"] for entry in site.entries() if entry["actor"] == "olga"}
    assert sources == {"tcp:127.0.0.1"}
    assert type_alone(capsys, "logout").code == 0 and not profile_path().exists()


@pytest.mark.thorough
def test_an_upload_passes_the_gate_with_a_session_alone(start: Start) -> None:
    site = start()
    token = site.session("olga")
    data = bytes(5 * 1024 * 1024)
    path = f"/v1/uploads/{digest_bytes(data)}"
    with at(site) as client:
        assert client.put(path, content=data).status_code == 401
        assert client.put(path, content=data, headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.thorough
def test_another_certificate_is_not_spoken_to_and_nothing_is_remembered(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = start()
    options = site.write_key("olga", tmp_path)
    other = Authority(tmp_path / "other")
    told = type_alone(capsys, "login", "olga", *options, "--address", address(site), "--ca", str(other.file))
    assert told.code == 7 and "CERTIFICATE_VERIFY_FAILED" in told.err
    told = type_alone(capsys, "login", "olga", *options, "--address", address(site))
    assert told.code == 7  # in the clear nothing is answered
    told = type_alone(capsys, "login", "olga", *options, "--address", "10.0.0.7:1")
    assert told.code == 2 and "--ca FILE" in told.err
    assert not profile_path().exists()


@pytest.mark.thorough
def test_a_hosts_certificate_is_asked_for_and_names_nobody(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Authority(tmp_path / "hosts")
    site = start({"APPLIANCE_PEOPLE_CLIENT_CA": str(hosts.file)})
    assert site.authority is not None
    own, units = hosts.issue("olga", client=True), site.authority.issue("unit-host", client=True)
    for context in (site.authority.trusting(), site.authority.trusting(units)):
        with at(site, context) as client, pytest.raises(httpx.TransportError):
            client.get("/v1/about")
    with at(site, site.authority.trusting(own)) as client:
        assert client.get("/v1/about").status_code == 200
        assert client.get("/v1/principals").status_code == 401
    options = [*site.write_key("olga", tmp_path), "--address", address(site), "--ca", ca(site)]
    assert type_alone(capsys, "login", "olga", *options).code == 7
    own_files = ["--certificate", str(own.chain), "--certificate-key", str(own.key)]
    told = type_alone(capsys, "login", "olga", *options, *own_files)
    assert told.code == 0, told.err
    assert type_alone(capsys, "whoami").code == 0  # the files are remembered, too


@pytest.mark.thorough
def test_an_outsider_is_refused_before_a_body_is_taken_and_by_its_size(start: Start) -> None:
    site = start()
    with at(site) as client:
        assert client.get("/v1/principals").status_code == 401
        for path, size, status in (
            ("/v1/orders", 131_073, 413),
            ("/v1/sessions", 16_385, 413),
            ("/v1/sessions/challenge", 1_025, 413),
            ("/v1/policy/test", 2 * 1024 * 1024 + 1, 401),
        ):
            answer = client.post(path, content=bytes(size))
            assert answer.status_code == status, (path, answer.text)
        in_session = {"Authorization": f"Bearer {site.session('olga')}"}
        assert client.post("/v1/orders", content=bytes(131_073), headers=in_session).status_code == 400
        assert client.post("/v1/orders", content=b"{}", headers={"Authorization": "Bearer nobody"}).status_code == 401
    with at(site) as client:
        assert client.get("/v1/about", headers={"X": "x" * 400_000}).status_code == 400


def _raw(site: Appliance) -> ssl.SSLSocket:
    assert site.authority is not None
    host, port = address(site).split(":")
    plain = socket.create_connection((host, int(port)), timeout=60)
    return site.authority.trusting().wrap_socket(plain, server_hostname=host)


@pytest.mark.thorough
def test_slow_outsiders_are_left_and_keep_nobody_out(start: Start) -> None:
    site = start(body_s=1.0, header_s=1.0, without_session=2)
    head = b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with ExitStack() as stack:
        slow = [stack.enter_context(_raw(site)) for _ in range(4)]
        for connection in slow:
            connection.sendall(head)
        time.sleep(0.3)
        with _raw(site) as another:
            another.sendall(head + bytes(99))
            assert b" 400 " in another.recv(4096).splitlines()[0], "read, and no order"
        assert site.ask("GET", "/v1/about", None)["origin"]
        for connection in slow:
            answer = b""
            while b"too-slow" not in answer:
                answer += connection.recv(4096)
            assert b" 400 " in answer.splitlines()[0]
    with _raw(site) as headers:
        headers.sendall(b"GET /v1/about HTTP/1.1\r\nHost")
        assert headers.recv(10) == b""


@pytest.mark.thorough
def test_bodies_have_room_together_and_a_slow_one_takes_only_what_it_sent(start: Start) -> None:
    site = start(body_s=4.0, room_bytes=400_000)  # clients without a session have a quarter
    head = b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
    with _raw(site) as large, at(site) as client:
        large.sendall(head + bytes(60_000))
        answer = client.post("/v1/orders", content=bytes(50_000))
        while answer.status_code == 400:  # until the service has read what the large one sent
            answer = client.post("/v1/orders", content=bytes(50_000))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate-limited")
        assert client.post("/v1/orders", content=bytes(10_000)).status_code == 400
        assert b" 400 " in large.recv(4096).splitlines()[0]
        assert client.post("/v1/orders", content=bytes(50_000)).status_code == 400, "its room is free again"


@pytest.mark.thorough
def test_an_account_at_the_socket_has_limits_of_size_time_and_connections(start_small: Start) -> None:
    """Those that `socket_group` lets in need no session for an order, and none to send a body."""
    site = start_small(body_s=1.0, header_s=1.0, descriptors=200)

    def connect(stack: ExitStack) -> socket.socket:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(60)
        connection.connect(str(site.settings.socket))
        return connection

    with ExitStack() as stack:
        for path, size in (("/v1/orders", 131_073), ("/v1/sessions", 16_385)):
            large = connect(stack)
            large.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            assert b" 413 " in large.recv(4096).splitlines()[0], path
        slow, headers = connect(stack), connect(stack)
        slow.sendall(b"POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        headers.sendall(b"GET /v1/about HTTP/1.1\r\nHost")
        answer = b""
        while b"too-slow" not in answer:
            answer += slow.recv(4096)
        assert b" 400 " in answer.splitlines()[0]
        assert headers.recv(10) == b""
    with ExitStack() as stack:
        held = [connect(stack) for _ in range(100)]
        for connection in held[25:]:
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b"", "beyond its share it is closed at once"
    assert site.ask("GET", "/v1/about", None)["origin"]
    assert "out of system resource" not in site.log()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"APPLIANCE_PEOPLE": "0.0.0.0:8333"}, "without TLS"),
        ({"APPLIANCE_PEOPLE": "8333"}, "HOST:PORT"),
        ({"APPLIANCE_PEOPLE": "127.0.0.1:8333", "APPLIANCE_PEOPLE_CLIENT_CA": "ca.pem"}, "certificate_key beside it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        load_settings(tmp_path, settings)


def test_the_units_ca_is_not_taken_for_the_peoples(start: Start, tmp_path: Path) -> None:
    one = Authority(tmp_path / "one")
    copy = tmp_path / "copy.pem"
    copy.write_bytes(one.file.read_bytes())
    with pytest.raises(RuntimeError, match="a CA other than that of the units' hosts"):
        start({"APPLIANCE_CLIENT_CA": str(one.file), "APPLIANCE_PEOPLE_CLIENT_CA": str(copy)})
