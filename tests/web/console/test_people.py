"""A person's page: keys by name, delegations in both directions, and what the viewer can do, with filled forms."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.api.people import Rules
from appliance.domain.core.names import add_seconds
from appliance.web.console.administrators import pages
from scripts.kit.authenticator import new_passkey
from tests.kit.console import URL, Console, console
from tests.kit.founded import policy_set
from tests.kit.identity_provider import Provider


def _page(desk: Console, viewer: str, name: str) -> Any:
    return desk.signed_in(viewer).get(f"/people/{name}.json").json()


def _actions(desk: Console, viewer: str, name: str) -> dict[str, str]:
    return {one["title"]: one["path"] for one in _page(desk, viewer, name)["actions"]}


def test_keys_have_names_ages_and_states_and_passkeys_are_marked(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        desk.site.adopt(policy_set(passkeys_on_localhost=True))
        passkey = desk.site.enrol_passkey("rita", new_passkey(rp_id="localhost", origin=URL))
        first = desk.site.keys["rita"].keyid
        desk.site.rotate("rita", add_seconds(desk.site.now, 3_600))
        keys = _page(desk, "anna", "rita")["keys"]
        assert [(one["title"], one["is_passkey"], one["is_valid"]) for one in keys] == [
            ("key file", False, True),
            ("passkey blue", True, True),
            ("key file", False, True),
        ]
        assert keys[0]["until"] and 0 <= keys[2]["age_s"] < 600 and keys[2]["age_s"] <= keys[0]["age_s"]
        text = desk.signed_in("anna").get("/people/rita").text
        assert "passkey blue" in text and passkey.keyid in text and first in text
        desk.site.revoke_key("rita")
        (revoked, *_) = _page(desk, "anna", "rita")["keys"]
        assert not revoked["is_valid"] and revoked["revoke"] is None and revoked["revoked"] is not None


def test_a_key_is_revoked_on_the_page_by_its_owner_or_an_administrator(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        keyid = desk.site.keys["rita"].keyid
        for viewer, wanted in (("anna", True), ("rita", True), ("raul", False), ("audrey", False)):
            (key,) = _page(desk, viewer, "rita")["keys"]
            assert (key["revoke"] is not None) == wanted, viewer
        browser = desk.signed_in("anna")
        (key,) = browser.get("/people/rita.json").json()["keys"]
        assert html.escape(key["revoke"]["path"]) in browser.get("/people/rita").text
        values = browser.filled(key["revoke"]["path"])
        assert (values["principal"], values["keyid"]) == ("rita", keyid)


def test_an_administrator_has_the_actions_on_a_person_with_the_form_filled_in(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        found = _actions(desk, "anna", "rita")
        assert list(found) == [
            *("Give a role", "Bind a person to their identity", "Replace a lost key", "Add a passkey"),
            "Revoke rita",
        ]
        browser = desk.signed_in("anna")
        assert browser.filled(found["Give a role"])["principal"] == "rita"
        assert browser.filled(found["Revoke rita"])["principal"] == "rita"
        assert "<h1>Give a role</h1>" in browser.get(found["Give a role"]).text
        assert "Give a role" not in _actions(desk, "anna", "ben"), "an administrator holds no second role"
        assert "Give a role" not in _actions(desk, "anna", "legal"), "nor does a unit"
        assert _actions(desk, "olga", "rita") == {} == _actions(desk, "audrey", "rita")
        desk.site.revoke("rita")
        assert _actions(desk, "anna", "rita") == {}


def test_a_role_is_removed_on_the_page_of_a_person_with_several_and_a_session_follows(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        assert "Remove a role" not in _actions(desk, "anna", "olga"), "the last role stays"
        desk.site.grant("olga", "reviewer:privacy")
        browser, olga = desk.signed_in("anna"), desk.signed_in("olga")
        form = browser.get(_actions(desk, "anna", "olga")["Remove a role"]).text
        assert '<optgroup label="olga"><option value="operator">' in re.sub(r">\s+<", "><", form)
        assert '<option value="rita"' not in form, "she has one role"
        assert '/sign/train"' in olga.get("/sign").text
        desk.site.remove_role("olga", "operator")
        assert '/sign/train"' not in (listed := olga.get("/sign").text) and '/sign/review"' in listed


def test_roles_are_in_words_on_pages_and_as_signed_in_data(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        anna = desk.signed_in("anna")
        people, home = anna.get("/people").text, desk.signed_in("rita").get("/home").text
        for page in (people, anna.get("/people/rita").text, home):
            assert "reviewer:privacy" not in page and "reviewer for privacy" in page
        assert "release owner of legal" in people and "release-owner:legal" not in people
        assert "What is waiting for rita, reviewer for privacy" in home
        form = re.sub(r">\s+", ">", anna.get("/sign/grant").text)
        assert '<option value="reviewer:privacy">reviewer for privacy</option>' in form, "the order has the role itself"
        assert _page(desk, "anna", "rita")["principal"]["roles"] == ["reviewer:privacy"]
        assert "reviewer:privacy" in anna.get("/people.csv").text


def test_the_policy_page_folds_the_keys_of_an_identity_provider(tmp_path: Path) -> None:
    provider = Provider().pinned()
    with console("staffed", tmp_path / "h") as desk:
        audrey = desk.signed_in("audrey")
        desk.site.adopt(policy_set(identity_provider=provider))
        page = audrey.get("/policy").text
    (section,) = re.findall(r"<section><h2>Identity provider</h2>.*?</section>", page, re.DOTALL)
    facts, *keys = section.split("<details>")
    assert f'<dd class="num">{provider.issuer}</dd>' in facts and "lifetime" in facts
    assert len(keys) == len(provider.keys)
    for shown, key in zip(keys, provider.keys, strict=True):
        assert f"<summary>Key {key.kid}, " in shown and f"<code>{key.n or key.x}</code>" in shown
        assert page.count(str(key.n or key.x)) == 1, "it is no value of the parameters"


def test_a_reviewer_delegates_from_the_page_of_either_person(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        own, others = _actions(desk, "rita", "rita"), _actions(desk, "rita", "otto")
        assert list(own) == ["Delegate a review function", "Rotate your key"] and list(others) == ["Delegate to otto"]
        values = desk.signed_in("rita").filled(others["Delegate to otto"])
        assert (values["principal"], values["review_function"]) == ("otto", "privacy")
        for name in ("olga", "anna", "audrey", "legal"):
            assert _actions(desk, "rita", name) == {}, "they cannot be delegates"


def test_delegations_are_shown_in_both_directions_and_ended_by_who_gave_them(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        desk.site.delegate("otto")
        rita, otto = _page(desk, "rita", "rita"), _page(desk, "rita", "otto")
        assert rita["received"] == otto["given"] == [] and rita["given"] == otto["received"]
        (one,) = rita["given"]
        assert desk.signed_in("rita").filled(one["end"]["path"])["principal"] == "otto"
        assert _page(desk, "otto", "rita")["given"][0]["end"] is None
        assert "otto decides in the place of others" in desk.signed_in("audrey").get("/people/otto").text


def test_a_units_tokens_are_revoked_on_its_page_by_its_owner_and_administrators(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        for viewer in ("otto", "anna"):
            browser = desk.signed_in(viewer)
            assert browser.filled(_actions(desk, viewer, "legal")["Revoke tokens"])["unit"] == "legal"
        assert "Revoke tokens" not in _actions(desk, "rita", "legal")
        assert "Revoke tokens" not in _actions(desk, "anna", "rita")


def test_newer_rules_are_raised_to_on_the_page_of_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with console("staffed", tmp_path / "h") as desk:
        assert "/sign/raise-rules" not in desk.signed_in("anna").get("/policy").text
        monkeypatch.setattr(pages.people_queries, "rules", lambda context: Rules(version=1, newest=2, entry=0))
        assert 'href="/sign/raise-rules?given=rules%3A2"' in desk.signed_in("anna").get("/policy").text
        assert "/sign/raise-rules" not in desk.signed_in("rita").get("/policy").text


def test_people_are_added_from_the_list_by_administrators(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        assert 'href="/sign/enrol">Add a person or unit<' in desk.signed_in("anna").get("/people").text
        assert "/sign/enrol" not in desk.signed_in("olga").get("/people").text
        assert "<h1>Add a person or unit</h1>" in desk.signed_in("anna").get("/sign/enrol").text
