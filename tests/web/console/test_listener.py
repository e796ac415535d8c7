"""The console's own listener, in a real service: a link from the command line, a browser, an end."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.config.settings import load_settings
from appliance.domain.governance.people import RevokePrincipal
from appliance.errors import BadInput
from scripts.kit.appliance import Appliance
from scripts.kit.ports import free_port
from tests.cli.conftest import type_alone

Start = Callable[..., Appliance]
FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin", "Origin": "null"}


def _sign_in(
    site: Appliance, name: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str, verify: Any = True
) -> httpx.Client:
    told = type_alone(
        capsys, "console", "--json", "--as", name, *site.write_key(name, folder), "--home", str(site.home), *more
    )
    assert told.code == 0, told.err
    assert f"signs a browser in as {name}" in told.err
    url = json.loads(told.out)["url"]
    client = httpx.Client(base_url=url.partition("/sign-in/")[0], verify=verify, timeout=60)
    assert client.post(url, headers=FORM).status_code == 303
    return client


@pytest.mark.thorough
def test_the_command_signs_a_browser_in_and_keeps_nothing(
    start_small: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    site = start_small({"APPLIANCE_CONSOLE": f"127.0.0.1:{port}"})
    with closing(_sign_in(site, "olga", tmp_path, capsys)) as client:
        assert client.base_url == f"http://localhost:{port}"
        answer = client.get("/home")
        assert answer.status_code == 200 and "olga" in answer.text
        assert httpx.get(f"http://127.0.0.1:{port}/home").status_code == 400, "one name, and not the address"
        # The session is the browser's alone, and outlives the service.
        site.stop()
        site.start()
        assert client.get("/home").status_code == 200
    assert site.verify()["verdict"] == "verified"


@pytest.mark.thorough
def test_the_link_is_in_no_argument_of_the_browsers_process(
    start_small: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every account of the machine can read those, and the first to use the link has the session."""
    given: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: given.append(url) or True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    site = start_small({"APPLIANCE_CONSOLE": f"127.0.0.1:{free_port()}"})
    for _ in range(2):
        with closing(_sign_in(site, "olga", tmp_path, capsys, "--open")) as client:
            assert client.get("/home").status_code == 200
    page = tmp_path / "appliance" / "console.html"
    assert given == [page.as_uri()] * 2
    assert (page.stat().st_mode & 0o777, page.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert f"url={client.base_url}/sign-in/" in page.read_text()


@pytest.mark.thorough
def test_under_tls_the_console_has_the_hosts_name(
    start_small: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    url = f"https://localhost:{port}"
    site = start_small({"APPLIANCE_CONSOLE": f"127.0.0.1:{port}", "APPLIANCE_CONSOLE_URL": url}, tls=True)
    assert site.authority is not None
    with closing(_sign_in(site, "olga", tmp_path, capsys, verify=site.authority.trusting())) as client:
        answer = client.get("/home")
        assert answer.status_code == 200 and "strict-transport-security" in answer.headers
        assert [cookie.name for cookie in client.cookies.jar] == [
            f"__Host-appliance-{port}",
            f"__Host-appliance-{port}-name",
        ]
        assert all(cookie.secure for cookie in client.cookies.jar)


@pytest.mark.thorough
def test_an_open_page_is_told_of_an_entry_within_a_second_and_of_nothing_after_the_sign_out(
    start_small: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = start_small({"APPLIANCE_CONSOLE": f"127.0.0.1:{free_port()}"})
    with closing(_sign_in(site, "olga", tmp_path, capsys)) as client, client.stream("GET", "/changes/events") as stream:
        lines = stream.iter_lines()
        _skip_to(lines, "event: changed")
        took: list[float] = []
        for name in ("rita", "lou", "cleo"):
            site.order(RevokePrincipal(principal=name, **site.terms("anna")))
            began = time.monotonic()
            _skip_to(lines, "event: changed")
            took.append(time.monotonic() - began)
        assert sorted(took)[1] < 1.0, took  # another process may have the processor once
        csrf = re.search(r'name="csrf" value="([^"]+)"', client.get("/home").text)
        assert csrf is not None
        assert client.post("/sign-out", data={"csrf": csrf[1]}, headers=FORM).status_code == 303
        site.order(RevokePrincipal(principal="rob", **site.terms("anna")))
        assert [line for line in lines if line.startswith("event")] == ["event: end"]


def _skip_to(lines: Iterator[str], wanted: str) -> None:
    assert wanted in lines, "the stream ended"


@pytest.mark.thorough
def test_without_the_setting_there_is_no_console_and_no_session_is_left(
    start_small: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = start_small()
    told = type_alone(capsys, "console", "--as", "olga", *site.write_key("olga", tmp_path), "--home", str(site.home))
    assert told.code == 7 and "[console-off]" in told.err and 'such as "127.0.0.1:8330"' in told.err
    with sqlite3.connect(site.settings.database_file or "") as database:
        assert database.execute("SELECT principal FROM sessions").fetchall() == []
    database.close()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"APPLIANCE_CONSOLE": "0.0.0.0:8330"}, "expected console_url beside it"),
        ({"APPLIANCE_CONSOLE": "0.0.0.0:8330", "APPLIANCE_CONSOLE_URL": "https://desk.example"}, "without TLS"),
        ({"APPLIANCE_CONSOLE": "127.0.0.1:8330", "APPLIANCE_CONSOLE_URL": "http://desk.example:8330"}, "https://NAME"),
        ({"APPLIANCE_CONSOLE": "127.0.0.1:8330", "APPLIANCE_CONSOLE_URL": "http://localhost:8330/"}, "without a path"),
        ({"APPLIANCE_CONSOLE": "127.0.0.1:8330", "APPLIANCE_CONSOLE_URL": "https://Desk.example"}, "lower case"),
        ({"APPLIANCE_CONSOLE": "8330"}, "HOST:PORT"),
    ],
)
def test_settings_under_which_browsers_would_be_refused_are_refused_first(
    home: Path, given: dict[str, str], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        load_settings(home, given)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, None),
        ({"APPLIANCE_CONSOLE": "127.0.0.1:8330"}, "http://localhost:8330"),
        (
            {"APPLIANCE_CONSOLE": "127.0.0.1:8330", "APPLIANCE_CONSOLE_URL": "https://desk.example"},
            "https://desk.example",
        ),
    ],
)
def test_without_tls_the_console_is_at_localhost_or_behind_a_proxy(
    home: Path, given: dict[str, str], url: str | None
) -> None:
    assert load_settings(home, given).console_url == url
