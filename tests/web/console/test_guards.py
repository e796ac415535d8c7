"""Requests of clients without a session, and from other sites, are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.governance.keys import KeyRevoked, RevokeKey
from appliance.web.console.core.security import HEADERS
from appliance.web.console.pages import PAGES
from appliance.web.core import auth
from tests.kit.console import FROM_HERE, Browser, Console, console


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("released", home) as made:
        yield made


def test_every_answer_has_the_headers_that_keep_other_sites_out(desk: Console) -> None:
    browser = desk.signed_in("audrey")
    asset = re.search(r'"(/static/pages\.[0-9a-f]{16}\.css)"', browser.get("/home").text)
    assert asset is not None
    paths = ["/home", "/home.json", "/log.csv", "/sign-in", "/nowhere", "/log?colour=red", asset[1]]
    for answer in [*map(browser.get, paths), browser.post("/sign-out"), desk.browser().get("/home")]:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, answer.url
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy and "default-src 'none'" in policy
        assert "strict-transport-security" not in answer.headers
        assert answer.headers["cache-control"].startswith("public" if "/static/" in str(answer.url) else "no-store")


def test_under_tls_the_cookie_is_bound_to_the_host_and_browsers_are_told_to_keep_to_tls(home: Path) -> None:
    with console("staffed", home, "https://desk.example:8330") as desk:
        browser = desk.browser()
        answer = browser.post(desk.link("audrey"), Origin="https://desk.example:8330")
        assert answer.status_code == 303, answer.text
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-appliance-8330=") and cookie.endswith(
            "; Path=/; HttpOnly; SameSite=Strict; Secure"
        )
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert browser.get("/home").status_code == 200


@pytest.mark.thorough
def test_no_page_has_a_script_or_a_style_of_its_own(desk: Console) -> None:
    browser = desk.signed_in("audrey")
    for page in PAGES:
        if "{" not in page.path:
            text = browser.get(page.path).text
            assert re.findall(r"<style|\sstyle=|\son[a-z]+=|<script(?! src=)|javascript:|https?://", text) == [], (
                page.path
            )


def test_a_link_signs_one_browser_in_once_after_a_click(desk: Console) -> None:
    size, link = desk.context.ledger.state.size, desk.link("rita")
    first, second = desk.browser(), desk.browser()
    for browser in (first, second):
        shown = browser.get(link)
        assert shown.status_code == 200 and "Sign in as rita" in shown.text and "set-cookie" not in shown.headers
    answer = first.post(link)
    assert (answer.status_code, answer.headers["location"]) == (303, "/home")
    assert re.fullmatch(
        r"appliance-8330=[A-Za-z0-9_-]{43}; Max-Age=\d+; Path=/; HttpOnly; SameSite=Strict, "
        r"appliance-8330-name=rita; Path=/; HttpOnly; SameSite=Strict",
        answer.headers["set-cookie"],
    )
    assert first.get("/home").status_code == 200
    again = second.post(link)
    assert again.status_code == 401 and "works once" in again.text and "set-cookie" not in again.headers
    assert second.get(link).status_code == 401 and second.get("/home").status_code == 401
    opened = [parse_entry(data) for _, data in desk.context.ledger.find(types=["session.opened"], after=size - 1)]
    assert [(entry.actor, entry.source) for entry in opened] == [("rita", "unix:0")], "one entry for one session"


def test_a_link_lasts_a_minute(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    link, now = desk.link("rita"), auth.time.monotonic()
    monkeypatch.setattr(auth.time, "monotonic", lambda: now + 59)
    assert desk.browser().get(link).status_code == 200
    monkeypatch.setattr(auth.time, "monotonic", lambda: now + 61)
    assert desk.browser().post(link).status_code == 401


def test_a_session_that_went_to_a_browser_opens_nothing_for_the_program_that_opened_it(desk: Console) -> None:
    token = desk.token("rita")
    desk.authenticator.person(f"Bearer {token}")
    code = desk.authenticator.link(f"Bearer {token}")
    for again in (desk.authenticator.person, desk.authenticator.link):
        with pytest.raises(auth.NotAuthenticated):
            again(f"Bearer {token}")
    browser = desk.browser()
    assert browser.post(f"/sign-in/{code}").status_code == 303
    with pytest.raises(auth.NotAuthenticated):
        desk.authenticator.person(f"Bearer {browser.secret}")


def test_a_programs_token_is_no_cookie(desk: Console) -> None:
    browser = desk.browser()
    browser.take(desk.token("rita"))
    assert browser.get("/home").status_code == 401


def test_a_cookie_is_worth_nothing_after_sign_out_wherever_it_was_copied(desk: Console) -> None:
    browser, thief = desk.signed_in("rita"), desk.browser()
    thief.take(browser.secret)
    assert thief.get("/home").status_code == 200
    answer = browser.post("/sign-out", {"csrf": browser.csrf})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    for path in ("/home", "/home.json", "/log.csv", "/changes/events", "/exports/ledger.tar", "/log/0/documents/x"):
        assert thief.get(path).status_code == 401, path
    assert thief.post("/sign-out", {"csrf": "x"}).status_code == 403


def test_two_cookies_of_the_name_open_nothing(desk: Console) -> None:
    """A server on another port of localhost can set one, too."""
    mine = desk.signed_in("rita").secret
    answer = desk.browser().get("/home", Cookie=f"appliance-8330={mine}; appliance-8330=another")
    assert answer.status_code == 401


def test_a_revoked_key_ends_its_sessions_in_browsers(desk: Console) -> None:
    browser = desk.signed_in("rita")
    site = desk.site
    site.ordered(
        KeyRevoked(policy=site.in_force),
        site.order(RevokeKey, "rita", principal="rita", keyid=site.keys["rita"].keyid, since=None),
    )
    assert browser.get("/home").status_code == 401


def test_a_new_sign_in_ends_the_session_that_the_browser_had(desk: Console) -> None:
    browser, copy = desk.signed_in("rita"), desk.browser()
    copy.take(browser.secret)
    assert browser.post(desk.link("olga")).status_code == 303
    assert "olga" in browser.get("/home").text
    assert copy.get("/home").status_code == 401


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:9000"},
    {"Sec-Fetch-Site": "none", "Origin": "null"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:9000"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9000"},
    {"Origin": "http://127.0.0.1:8330"},
    {},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_form_of_another_site_or_port_changes_nothing(desk: Console, headers: dict[str, str]) -> None:
    browser, link = desk.signed_in("rita"), desk.link("olga")
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    refused = [
        browser.http.post("/sign-out", content=f"csrf={browser.csrf}", headers={**kind, **headers}),
        browser.http.post(link, headers={**kind, **headers}),
    ]
    assert [answer.status_code for answer in refused] == [403, 403]
    assert all("Nothing was done" in answer.text and "set-cookie" not in answer.headers for answer in refused)
    assert "rita" in browser.get("/home").text
    assert desk.browser().get(link).status_code == 200, "and the link is not used up"


def test_a_browser_without_fetch_metadata_is_known_by_its_origin(desk: Console) -> None:
    browser, kind = desk.signed_in("rita"), {"Content-Type": "application/x-www-form-urlencoded"}
    answer = browser.http.post("/sign-out", content=f"csrf={browser.csrf}", headers={**kind, "Origin": desk.url})
    assert answer.status_code == 303


@pytest.mark.parametrize("token", [None, "", "x", "another"])
def test_a_form_without_the_token_of_its_session_changes_nothing(desk: Console, token: str | None) -> None:
    browser = desk.signed_in("rita")
    given = desk.signed_in("olga").csrf if token == "another" else token
    answer = browser.post("/sign-out", {} if given is None else {"csrf": given})
    assert answer.status_code == 403 and browser.get("/home").status_code == 200


@pytest.mark.parametrize("path", ["/sign-out", "/home", "/log"])
def test_a_look_changes_nothing(desk: Console, path: str) -> None:
    browser = desk.signed_in("rita")
    assert browser.get("/sign-out").status_code == 405
    assert browser.post(path, {"csrf": "x"}).status_code in (403, 405)
    assert browser.get("/home").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:8330", "localhost", "localhost:9000", ""])
def test_under_another_host_name_there_is_no_console(desk: Console, host: str) -> None:
    answer = desk.signed_in("rita").get("/home", Host=host)
    assert answer.status_code == 400 and "expected http://localhost:8330" in answer.text


def test_what_is_sent_is_bounded(desk: Console) -> None:
    browser = desk.signed_in("rita")
    assert browser.post("/sign-out", {"csrf": "x" * 70_000}).status_code == 413
    assert browser.post("/sign-out", {f"f{n}": "x" for n in range(65)}).status_code == 400
    assert browser.http.post("/sign-out", json={}, headers=FROM_HERE).status_code == 400
    assert browser.http.request("GET", "/home", content=b"x").status_code == 400


def test_so_many_at_once_and_no_more(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    app = desk.app
    browser = desk.signed_in("rita")
    monkeypatch.setattr(app._pages, "_most", 0)  # type: ignore[attr-defined]
    answer = browser.get("/home")
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert browser.post("/sign-out", {"csrf": "x"}).status_code == 403, "forms have places of their own"


def test_attempts_with_a_cookie_or_a_link_that_does_not_hold_are_counted_and_previews_without_are_not(
    desk: Console,
) -> None:
    browser = desk.browser()
    browser.get("/home")
    with desk.authenticator.counted() as refused:
        assert refused.unauthenticated == 0
    browser.take("x" * 43)
    browser.get("/home")
    browser.post("/sign-in/guessed")
    with desk.authenticator.counted() as refused:
        assert refused.unauthenticated == 2


@pytest.mark.thorough
def test_a_unit_finds_no_other_units_thing_by_any_address(desk: Console) -> None:
    """Nor whether there is one: what is another's and what is nowhere are refused alike."""
    own, other = desk.signed_in("legal"), desk.signed_in("sales")
    assert own.get("/releases/legal/labels").status_code == 200
    assert [row["unit"] for row in own.get("/releases.json").json()["rows"]] == ["legal"]
    for form in ("", ".json", ".csv"):
        texts = [other.get(f"/releases/{name}{form}") for name in ("legal/labels", "legal/nothing")]
        assert [answer.status_code for answer in texts] == [404, 404]
        told = [_without_address_and_age(answer.text) for answer in texts]
        assert told[0] == told[1]
        assert "labels" not in other.get(f"/releases{form}?unit=legal").text
    assert other.get("/releases.json").json()["rows"] == []
    for page in PAGES:
        if "unit" not in page.seen_by:
            path = re.sub(r"\{[a-z]+\}", "1", page.path)
            assert {other.get(f"{path}{form}").status_code for form in ("", ".json")} == {403}, page.path
    for path in ("/exports/ledger.tar", "/log/0/documents/policy", "/runs/r-000001/events"):
        assert other.get(path).status_code == 403, path


def _without_address_and_age(text: str) -> str:
    return re.sub(r"the last \d+ \S+ ago", "the last", re.sub(r"legal/(labels|nothing)", "legal/TASK", text))


def test_a_defect_is_told_without_its_text(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    browser: Browser = desk.signed_in("rita")
    monkeypatch.setattr(type(desk.context), "now", fail)
    answer = browser.get("/home")
    assert answer.status_code == 500 and "a secret" not in answer.text
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_a_file_is_sent_with_gzip_to_browsers_that_take_it(desk: Console) -> None:
    browser = desk.browser()
    found = re.search(r'"(/static/htmx\.[0-9a-f]{16}\.js)"', browser.get("/sign-in").text)
    assert found is not None
    packed, plain = browser.get(found[1]), browser.get(found[1], **{"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert packed.content == plain.content and packed.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
