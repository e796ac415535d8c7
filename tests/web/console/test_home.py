"""What waits for whom, on the first page."""

from __future__ import annotations

from pathlib import Path

from scripts.kit.authenticator import new_passkey
from tests.domain.runs.test_authorisation import asking
from tests.kit.console import URL, Browser, Console, console
from tests.kit.founded import policy_set


def _tasks(desk: Console, name: str) -> list[tuple[str, str]]:
    tasks = desk.signed_in(name).get("/home.json").json()["tasks"]
    return [(task["kind"], task["path"]) for task in tasks]


def test_a_run_that_waits_for_a_second_person_is_shown_to_those_who_can_let_it_begin(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.adopt(asking("high"))
        run = desk.site.request_run(tier="high")
        wanted = ("Run to authorise", f"/runs/{run}")
        assert all(wanted in _tasks(desk, name) for name in ("anna", "rita"))
        assert not any(wanted in _tasks(desk, name) for name in ("olga", "ines", "otto", "audrey", "legal"))
        browser = desk.signed_in("olga")
        assert [one["id"] for one in browser.get("/runs.json?status=waiting").json()["runs"]] == [run]
        assert browser.get(f"/runs/{run}.json").json()["goes_on"]
        link = f'href="/sign/authorise-run?given=run%3A{run}&amp;given=order%3Asha256'
        assert link in desk.signed_in("rita").get(f"/runs/{run}").text
        assert "/sign/authorise-run" not in browser.get(f"/runs/{run}").text
        desk.site.authorise(run)
        assert _tasks(desk, "rita") == []


def test_an_order_waits_for_another_administrator(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        assert _tasks(desk, "ben") == []
        order, documents = desk.site.enrolment("new", ("operator",))
        desk.site.pend(order, documents)
        assert [kind for kind, _ in _tasks(desk, "ben")] == ["Order to endorse"]
        assert _tasks(desk, "anna") == [] and _tasks(desk, "rita") == []
        (one,) = desk.signed_in("ben").get("/orders.json").json()["orders"]
        assert one["mine"] and one["verb"] == "enroll" and one["meaning"]


def test_a_unit_sees_first_what_answers_it_and_no_run_of_anybody(tmp_path: Path) -> None:
    with console("serving", tmp_path / "h") as desk:
        browser = desk.signed_in("legal")
        (one,) = browser.get("/home.json").json()["going"]
        assert one == {
            "kind": "Task",
            "text": "labels, answered by clauses@1",
            "path": "/releases/legal/labels",
            "urgent": False,
        }
        assert "Released to you" in browser.get("/home").text
        desk.site.revoke("raul")
        value = browser.get("/home.json").json()
        assert value["going"] == [] and value["tasks"][0]["kind"] == "Release that does not answer"


def starts(browser: Browser) -> list[str]:
    return [one["path"] for one in browser.get("/home.json").json()["starts"]]


def test_a_new_operator_sees_what_one_does_first_and_every_link_opens(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        browser = desk.signed_in("olga")
        assert browser.get("/home.json").json()["tasks"] == []
        assert starts(browser) == ["/data", "/sign/import-dataset", "/sign/train", "/runs", "/passkeys"]
        text = browser.get("/home").text
        assert "What you can do here" in text and "appliance base import" in text
        for name in ("anna", "ben", "olga", "rita", "raul", "otto", "audrey", "legal", "vera"):
            if name in desk.context.ledger.state.principals:
                browser = desk.signed_in(name)
                assert starts(browser), name
                assert [browser.get(path).status_code for path in starts(browser)] == [200] * len(starts(browser)), name


def test_what_was_done_once_is_not_offered_as_the_first_thing(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        assert "/data" not in starts(desk.signed_in("olga"))
        desk.site.adopt(policy_set(passkeys_on_localhost=True))
        desk.site.enroll_passkey("olga", new_passkey(rp_id="localhost", origin=URL))
        assert "/passkeys" not in starts(desk.signed_in("olga"))
        assert "/passkeys" not in starts(desk.signed_in("legal"))
