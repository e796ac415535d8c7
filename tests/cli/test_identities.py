"""Identities on the command line: bound by two administrators, and asked for where policy requires them."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from appliance.cli.support import caller
from appliance.domain.core.entry import parse_entry
from scripts.kit.log_builder import ISSUER
from tests.cli.conftest import Desk, one_line
from tests.kit.founded import copied_policy, policy_set
from tests.kit.identity_provider import Provider
from tests.kit.service import CONSOLE

PROVIDER = Provider()
PAGE = "/v1/sessions/challenge"


@pytest.fixture
def desk(open_desk: Callable[[str], Desk]) -> Desk:
    """Return the desk of a site whose policy requires identities, with rita bound."""
    made = open_desk("staffed")
    made.site.bind("rita")
    made.site.adopt(policy_set(identity_provider=PROVIDER.pinned()))
    return made


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Play a person who signs in as rita in a browser and pastes the token. Return the opened addresses."""
    opened: list[str] = []

    def paste(text: str, **_: object) -> str:
        assert text == "ID token that the page shows"
        return f" {PROVIDER.token('sub-rita', parse_qs(urlsplit(opened[-1]).query)['nonce'][0])}\n"

    def read(*lines: str) -> None:
        opened.extend(line.splitlines()[-1] for line in lines if "Open this address" in line)

    monkeypatch.setattr(caller, "is_interactive", lambda: True)
    monkeypatch.setattr(caller, "say", read)
    monkeypatch.setattr(caller.click, "prompt", paste)
    return opened


def test_a_command_asks_for_the_token_that_policy_requires(desk: Desk, browser: list[str]) -> None:
    told = desk.as_("rita", "principal", "list")
    assert told.code == 0, told.err
    assert [address.partition("?")[0] for address in browser] == [f"{CONSOLE}/sign-in/identity"]
    assert desk.as_("rita", "policy", "show").code == 0
    assert len(browser) == 1, "the session is kept until its end"
    ((_, data),) = desk.site.ledger.find(types=["session.opened"], newest=True, limit=1)
    assert parse_entry(data).body["identity"]["issuer"] == ISSUER


def test_without_a_terminal_a_command_says_what_to_type(desk: Desk) -> None:
    told = desk.as_("rita", "principal", "list", "--json")
    assert told.code == 3
    error = json.loads(told.err)["error"]
    assert error["code"] == "identity-required"
    assert "appliance login" in error["message"]


def test_a_page_of_another_site_is_not_shown(desk: Desk, browser: list[str]) -> None:
    for page in (None, "https://evil.example/phishing", "javascript:alert(1)//sign-in/identity"):
        desk.service.bend[PAGE] = lambda answer, page=page: answer | {"identity_page": page}
        told = desk.as_("rita", "principal", "list")
        assert told.code == 3 and "expected the address of a console" in one_line(told.err)
    assert browser == []


def test_a_token_of_another_person_is_refused_with_what_to_do(desk: Desk, browser: list[str]) -> None:
    desk.site.bind("olga")
    told = desk.as_("olga", "principal", "list")
    assert told.code == 3
    assert "The ID token is of the subject sub-rita. olga is bound to another one." in one_line(told.err)


def test_two_administrators_bind_a_person_on_the_service_s_machine_and_one_unbinds(desk: Desk) -> None:
    told = desk.as_("anna", "identity", "bind", "olga", "248289761001", "--yes")
    assert told.code == 0, told.err
    assert desk.as_("ben", "order", "countersign", "--yes").code == 0
    rows = json.loads(desk.as_("anna", "identity", "list", "--json").out)
    assert [(row["principal"], row["issuer"], row["subject"]) for row in rows] == [
        ("olga", ISSUER, "248289761001"),
        ("rita", ISSUER, "sub-rita"),
    ]
    assert desk.as_("ben", "identity", "unbind", "olga", "--yes").code == 0
    assert "olga" not in desk.as_("anna", "identity", "list").out
    refused = desk.as_("anna", "identity", "bind", "olga", "sub-rita", "--yes")
    assert refused.code == 3 and "A subject identifies one person" in one_line(refused.err)


def test_a_binding_before_a_provider_is_pinned_names_the_issuer(open_desk: Callable[[str], Desk]) -> None:
    desk = open_desk("staffed")
    told = desk.as_("anna", "identity", "bind", "rita", "sub-rita", "--yes")
    assert told.code == 2 and "expected --issuer URL" in one_line(told.err)
    assert desk.as_("anna", "identity", "bind", "rita", "sub-rita", "--issuer", ISSUER, "--yes").code == 0


def test_an_unavailable_provider_locks_nobody_out(desk: Desk) -> None:
    """The emergency path of the manual: two administrators on the service's machine drop the requirement."""
    folder = copied_policy(desk.folder / "default", identity_provider=None)
    assert desk.as_("anna", "policy", "adopt", str(folder), "--yes").code == 0
    assert desk.as_("ben", "order", "countersign", "--yes").code == 0
    assert desk.as_("rita", "principal", "list").code == 0


def test_doctor_names_people_who_cannot_sign_in_and_an_emergency_that_nobody_could_end(desk: Desk) -> None:
    def checks() -> dict[str, dict[str, str]]:
        found = json.loads(desk.type("doctor", "--json").out)["findings"]
        return {one["check"]: one for one in found if one["check"].startswith("identities")}

    everybody = [row.name for row in desk.site.state.principals.values() if not row.has("unit")]
    people = sorted(set(everybody) - {"rita"})
    first = checks()
    assert first["identities"]["level"] == "warn"
    assert first["identities"]["found"] == f"without a subject of {ISSUER}: {', '.join(people)}"
    assert first["identities, emergency"]["level"] == "ok"
    for name in people:
        desk.site.bind(name)
    desk.site.revoke_key("ben", signer="ben")
    second = checks()
    assert second["identities"]["level"] == "ok"
    assert (second["identities, emergency"]["level"], second["identities, emergency"]["found"]) == (
        "fail",
        "administrators with key files: anna",
    )
