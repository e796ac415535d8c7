"""The manual at /docs: for everybody, with the console's headers, and only the files that were built."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from appliance.web.console import app
from appliance.web.console.core import manual
from appliance.web.console.core.security import HEADERS
from tests.kit.console import Browser, Console, console

FILES = {
    "index.html": "<h1>Start</h1>",
    "guides/units/index.html": "<h1>Units</h1>",
    "assets/search.js": "let a;",
    "assets/manual.css": "a { color: red }",
    "search/search_index.json": "{}",
    "pictures/one.svg": "<svg/>",
    "notes.txt": "not sent",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small manual, beside a file that does not belong to it."""
    made = tmp_path / "manual"
    for name, text in FILES.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (tmp_path / "secret.html").write_text("of another")
    (made / "link.html").symlink_to(tmp_path / "secret.html")
    return made


@pytest.fixture
def desk(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    monkeypatch.setattr(app, "manual_routes", lambda: manual.manual_routes(folder))
    with console("staffed", home) as made:
        yield made


@pytest.fixture
def anyone(desk: Console) -> Browser:
    return desk.browser()


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/docs/", "index.html", "text/html; charset=utf-8"),
        ("/docs/guides/units/", "guides/units/index.html", "text/html; charset=utf-8"),
        ("/docs/assets/search.js", "assets/search.js", "text/javascript; charset=utf-8"),
        ("/docs/assets/manual.css", "assets/manual.css", "text/css; charset=utf-8"),
        ("/docs/search/search_index.json", "search/search_index.json", "application/json"),
        ("/docs/pictures/one.svg", "pictures/one.svg", "image/svg+xml"),
    ],
)
def test_anyone_reads_it_with_the_headers_of_the_console(anyone: Browser, path: str, name: str, kind: str) -> None:
    answer = anyone.get(path)
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, FILES[name], kind)
    assert {header: answer.headers[header] for header in HEADERS} == HEADERS
    assert "set-cookie" not in answer.headers


def test_a_signed_in_person_reads_it_too(desk: Console) -> None:
    assert desk.signed_in("audrey").get("/docs/").text == FILES["index.html"]


@pytest.mark.parametrize(("path", "to"), [("/docs", "/docs/"), ("/docs/guides/units", "/docs/guides/units/")])
def test_the_address_of_a_folder_leads_to_its_page(anyone: Browser, path: str, to: str) -> None:
    answer = anyone.get(path)
    assert (answer.status_code, answer.headers["location"]) == (301, to)


@pytest.mark.parametrize(
    "path",
    [
        "/docs/../secret.html", "/docs/%2e%2e/secret.html", "/docs/..%2fsecret.html", "/docs//etc/passwd",
        "/docs/guides/../../secret.html", "/docs/guides/%2e%2e/%2e%2e/secret.html", "/docs/%2Fetc%2Fpasswd",
        "/docs/link.html", "/docs/notes.txt", "/docs/nowhere/", "/docs/index.html%00", "/docs/assets", "/docs/guides/",
    ],
)  # fmt: skip
def test_only_a_file_that_was_built_is_sent(anyone: Browser, path: str) -> None:
    answer = anyone.get(path)
    assert answer.status_code in (401, 404) and "of another" not in answer.text
    assert {header: answer.headers[header] for header in HEADERS} == HEADERS


def test_traversal_is_refused_where_no_client_shortens_the_path(folder: Path) -> None:
    for name in ("../secret.html", "guides/../../secret.html", "/etc/passwd", "link.html", "notes.txt"):
        with pytest.raises(manual.NotFound):
            asyncio.run(manual.Manual(folder).respond(_request(name)))  # type: ignore[arg-type]


def _request(name: str) -> object:
    return type("Request", (), {"path_params": {"name": name}, "headers": {}})()


def test_an_unchanged_page_is_not_sent_again_and_a_text_is_packed(anyone: Browser) -> None:
    first = anyone.get("/docs/", **{"Accept-Encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip" and first.text == FILES["index.html"]
    plain = anyone.get("/docs/", **{"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.text == FILES["index.html"]
    again = anyone.get("/docs/", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, first.headers["cache-control"]) == (304, b"", "no-cache")


def test_without_a_build_the_page_names_the_command(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "manual_routes", lambda: manual.manual_routes(tmp_path / "none"))
    with console("staffed", home) as desk:
        answer = desk.browser().get("/docs/")
    assert answer.status_code == 404 and "not built" in answer.text and "scripts/docs" in answer.text


def test_by_default_it_is_the_manual_of_this_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "index.html").write_text("this build")
    monkeypatch.setattr("appliance.build.PACKAGE", tmp_path)
    assert TestClient(Starlette(routes=manual.manual_routes())).get("/docs/").text == "this build"
