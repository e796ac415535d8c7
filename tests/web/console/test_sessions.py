"""Open sessions in the console: who sees them, who ends them, and which ends are entries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.governance.sessions import SessionClosed
from appliance.errors import NotAuthenticated, Unavailable
from appliance.store.database.sessions import SessionRow
from appliance.workflows import governance
from appliance.workflows.core.context import Context
from tests.kit.console import Browser, Console, console


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("staffed", tmp_path_factory.mktemp("s") / "h") as made:
        yield made


def ends(desk: Console, size: int) -> list[Any]:
    found = [parse_entry(desk.context.ledger.entry_bytes(n)) for n in range(size, desk.context.ledger.state.size)]
    return [entry for entry in found if entry.type == SessionClosed.type]


def rows(browser: Browser) -> list[dict[str, Any]]:
    return list(browser.get("/sessions.json").json()["rows"])


def end(browser: Browser, entry: object) -> Any:
    return browser.post("/sessions", {"csrf": browser.csrf, "entry": str(entry)})


def test_a_sign_out_and_a_logout_are_entries_that_name_the_session(desk: Console) -> None:
    browser = desk.signed_in("rita")
    opened = max(row["entry"] for row in rows(browser))
    size = desk.context.ledger.state.size
    browser.post("/sign-out", {"csrf": browser.csrf})
    token = desk.token("rita")
    desk.authenticator.end_session(f"Bearer {token}", "unix:0")
    first, second = ends(desk, size)
    assert (first.actor, first.source, first.body) == (
        "rita",
        "tcp:testclient",
        {"opened": opened, "principal": "rita"},
    )
    assert (second.source, second.body["opened"]) == ("unix:0", opened + 2)
    assert parse_entry(desk.context.ledger.entry_bytes(opened)).type == "session.opened"


def test_a_person_sees_their_sessions_and_ends_one_at_once(desk: Console) -> None:
    browser, other = desk.signed_in("raul"), desk.signed_in("raul")
    assert [row["principal"] for row in rows(browser)] == ["raul", "raul"]
    entry, size = rows(browser)[0]["entry"], desk.context.ledger.state.size
    assert f'value="{entry}"' in browser.get("/sessions").text
    answer = end(browser, entry)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sessions")
    assert other.get("/home").status_code == 401 and browser.get("/home").status_code == 200
    assert [(one.actor, one.body["opened"]) for one in ends(desk, size)] == [("raul", entry)]
    assert end(browser, entry).status_code == 404


def test_nobody_but_an_administrator_sees_or_ends_another_s(desk: Console) -> None:
    victim, other, admin = desk.signed_in("rita"), desk.signed_in("olga"), desk.signed_in("anna")
    entry, size = rows(victim)[0]["entry"], desk.context.ledger.state.size
    assert {row["principal"] for row in rows(other)} == {"olga"}
    refused = [end(other, entry), end(other, 10**9)]
    assert [answer.status_code for answer in refused] == [404, 404]
    assert ends(desk, size) == [] and victim.get("/home").status_code == 200
    assert {"rita", "olga", "anna"} <= {row["principal"] for row in rows(admin)}
    assert end(admin, entry).status_code == 303
    assert victim.get("/home").status_code == 401
    (closed,) = ends(desk, size)
    assert (closed.actor, closed.subjects) == ("anna", ("principal:rita",))


def test_a_session_whose_link_waits_is_listed_and_its_end_ends_the_link(desk: Console) -> None:
    admin, link = desk.signed_in("anna"), desk.link("olga")
    (entry,) = (row["entry"] for row in rows(admin) if row["entry"] == desk.context.ledger.state.size - 1)
    assert end(admin, entry).status_code == 303
    late = desk.browser()
    assert late.post(link).status_code == 401 and late.get("/home").status_code == 401


def test_of_many_links_at_once_of_one_session_one_is_made(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be a session more, of which nobody could end one."""
    token, together = desk.token("olga"), threading.Barrier(4)
    found = governance._find
    made: list[str] = []

    def find_together(context: Context, token: str, kind: governance.Kind) -> SessionRow:
        row = found(context, token, kind)
        together.wait(60)
        return row

    def link() -> None:
        with suppress(NotAuthenticated):
            made.append(desk.authenticator.link(f"Bearer {token}"))

    monkeypatch.setattr(desk.authenticator, "person", lambda authorization: None)
    monkeypatch.setattr(governance, "_find", find_together)
    threads = [threading.Thread(target=link) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    monkeypatch.undo()
    assert len(made) == 1
    browser = desk.browser()
    assert browser.post(f"/sign-in/{made[0]}").status_code == 303
    entry = max(row["entry"] for row in rows(browser))
    assert end(desk.signed_in("anna"), entry).status_code == 303
    assert browser.get("/home").status_code == 401


@pytest.mark.parametrize("fields", [{}, {"entry": ""}, {"entry": "-1"}, {"entry": "x"}, {"entry": "9" * 13}])
def test_an_end_names_an_entry(desk: Console, fields: dict[str, str]) -> None:
    browser = desk.signed_in("rita")
    assert browser.post("/sessions", {"csrf": browser.csrf, **fields}).status_code == 400


def test_an_end_comes_from_a_form_of_the_same_session(desk: Console) -> None:
    browser, other = desk.signed_in("rita"), desk.signed_in("rita")
    entry = rows(browser)[0]["entry"]
    assert browser.post("/sessions", {"csrf": other.csrf, "entry": str(entry)}).status_code == 403
    assert other.get("/home").status_code == 200


def test_a_session_ends_though_its_entry_cannot_be_appended(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    browser, copy = desk.signed_in("rita"), desk.browser()
    copy.take(browser.secret)
    csrf = browser.csrf

    def fail(*_: object, **__: object) -> None:
        raise Unavailable("ledger: expected a database, got none")

    with monkeypatch.context() as patched:
        patched.setattr(governance, "append", fail)
        assert browser.post("/sign-out", {"csrf": csrf}).status_code == 503
    assert copy.get("/home").status_code == 401
    with pytest.raises(NotAuthenticated):
        desk.authenticator.browser(browser.secret)
