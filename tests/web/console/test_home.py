"""The pending items on the first page, by person."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.queries.measures import Expiry
from scripts.kit.authenticator import new_passkey
from tests.domain.runs.test_authorisation import asking
from tests.kit.console import URL, Browser, Console, console
from tests.kit.founded import policy_set


def _tasks(desk: Console, name: str) -> list[tuple[str, str]]:
    tasks = desk.signed_in(name).get("/home.json").json()["tasks"]
    return [(task["kind"], task["path"]) for task in tasks]


@pytest.mark.thorough
def test_a_run_that_waits_for_a_second_person_is_shown_to_those_who_can_let_it_begin(tmp_path: Path) -> None:
    with console("imported", tmp_path / "h") as desk:
        desk.site.adopt(asking("high"))
        run = desk.site.request_run(tier="high")
        wanted = ("Run to authorise", f"/runs/{run}")
        assert all(wanted in _tasks(desk, name) for name in ("anna", "rita"))
        assert not any(wanted in _tasks(desk, name) for name in ("olga", "ines", "otto", "audrey", "legal"))
        browser = desk.signed_in("olga")
        assert [one["run"]["id"] for one in browser.get("/runs.json?status=waiting").json()["rows"]] == [run]
        assert browser.get(f"/runs/{run}.json").json()["is_under_way"]
        link = f'href="/sign/authorise-run?given=run%3A{run}&amp;given=order%3Asha256'
        assert link in desk.signed_in("rita").get(f"/runs/{run}").text
        assert "/sign/authorise-run" not in browser.get(f"/runs/{run}").text
        desk.site.authorise(run)
        assert _tasks(desk, "rita") == []


@pytest.mark.thorough
def test_alarms_are_shown_to_administrators_and_operators_first(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        order, documents = desk.site.enrolment("new", ("operator",))
        desk.site.pend(order, documents)
        soon = add_seconds(desk.context.now(desk.site.state), 86_400)
        desk.context.certificates = (Expiry("chain.pem", soon), Expiry("old.pem", "2026-01-01T00:00:00.000Z"))
        alarms = [("Alarm", "/health"), ("Alarm", "/health")]
        assert _tasks(desk, "ben") == [*alarms, ("Order to countersign", f"/orders#{order_digest(desk)}")]
        assert _tasks(desk, "olga") == alarms and _tasks(desk, "rita") == _tasks(desk, "legal") == []
        tasks = desk.signed_in("olga").get("/home.json").json()["tasks"]
        assert [(one["text"], one["urgent"]) for one in tasks] == [
            ("The certificate old.pem ended at 2026-01-01T00:00:00.000Z.", True),
            (f"The certificate chain.pem ends at {soon}.", False),
        ]
        assert "ended at 2026-01-01 00:00:00 UTC." in desk.signed_in("olga").get("/home").text
        page = desk.signed_in("rita").get("/health").text
        assert (
            "The certificate old.pem ended at 2026-01-01 00:00:00 UTC." in page
            and "Have your CA issue a new one" in page
        )


def order_digest(desk: Console) -> str:
    (one,) = desk.signed_in("ben").get("/orders.json").json()["rows"]
    return str(one["digest"])[7:19]


def test_an_order_waits_for_another_administrator(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        assert _tasks(desk, "ben") == []
        order, documents = desk.site.enrolment("new", ("operator",))
        desk.site.pend(order, documents)
        assert [kind for kind, _ in _tasks(desk, "ben")] == ["Order to countersign"]
        assert _tasks(desk, "anna") == [] and _tasks(desk, "rita") == []
        (one,) = desk.signed_in("ben").get("/orders.json").json()["rows"]
        assert one["can_countersign"] and one["action"] == "enrol" and one["meaning"]


def test_a_unit_sees_first_what_answers_it_and_no_run_of_anybody(tmp_path: Path) -> None:
    with console("serving", tmp_path / "h") as desk:
        browser = desk.signed_in("legal")
        (one,) = browser.get("/home.json").json()["current"]
        assert one == {
            "kind": "Served model",
            "text": "labels, served by clauses@1",
            "path": "/releases/legal/labels",
            "urgent": False,
        }
        assert "Released to you" in browser.get("/home").text
        desk.site.revoke("raul")
        value = browser.get("/home.json").json()
        assert value["current"] == [] and value["tasks"][0]["kind"] == "Release that does not serve"


@pytest.mark.thorough
def test_each_line_leads_to_the_page_where_it_is_done(tmp_path: Path) -> None:
    with console("sealed", tmp_path / "h") as desk:
        desk.site.request_release()
        desk.site.find(owner="olga", blocks=False, kind="limitation", severity="low")
        desk.site.review("rita", "privacy", decision="request-changes")
        wanted = {
            ("Finding to resolve", "/adapters/clauses@1?tab=findings"),
            ("Decision on a request", "/adapters/clauses@1"),
        }
        assert wanted <= set(_tasks(desk, "olga")) and not wanted & set(_tasks(desk, "ines"))
        desk.site.request_release()
        desk.site.review("rita", "privacy")
        desk.site.review("raul", "model-risk")
        assert ("Ready for release", "/candidates?unit=legal") in _tasks(desk, "otto")
        desk.site.activate()
        assert _tasks(desk, "otto") == [("Release that ends soon", "/releases/legal/labels")]
        assert _tasks(desk, "raul") == [("Approval to renew", "/adapters/clauses@1")]
        desk.site.rotate("raul", add_seconds(desk.site.now, 3_600))
        assert ("Key that ends soon", "/people/raul") in _tasks(desk, "raul")
        for name in ("olga", "otto", "raul"):
            browser = desk.signed_in(name)
            assert [browser.get(path).status_code for _, path in _tasks(desk, name)] == [200] * len(_tasks(desk, name))


def test_a_delegation_is_shown_to_the_delegate(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        desk.site.delegate("otto")
        (one,) = desk.signed_in("otto").get("/home.json").json()["current"]
        assert (one["kind"], one["path"]) == ("Delegated to you", "/people/otto")
        assert one["text"].startswith("you decide for rita as reviewer of privacy until 2")
        assert desk.signed_in("raul").get("/home.json").json()["current"] == []


def starts(browser: Browser) -> list[str]:
    return [one["path"] for one in browser.get("/home.json").json()["starts"]]


@pytest.mark.thorough
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
        desk.site.enrol_passkey("olga", new_passkey(rp_id="localhost", origin=URL))
        assert "/passkeys" not in starts(desk.signed_in("olga"))
        assert "/passkeys" not in starts(desk.signed_in("legal"))
