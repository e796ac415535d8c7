"""A release is suspended and resumed in the console, and the form of an activation says what it changes."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.domain.governance.people import RemoveRole
from appliance.domain.queries.pending import RELEASE, SUSPENSION
from appliance.web.console.core.render import reword_times
from appliance.web.console.home.home import waiting_for_all
from scripts.kit.authenticator import new_passkey
from tests.kit.console import Console, console
from tests.kit.evaluated_release import adapter_of, conditions, reasons
from tests.kit.founded import policy_set
from tests.web.console.test_signing import HERE, entry_of, shown, signed

CHIP = "suspended for legal by rita"
PAGES = ("/adapters/clauses@1", "/adapters/clauses@1?tab=history", "/releases/legal/labels", "/releases")
ORDER = {"adapter": "clauses@1", "unit": "legal", "role": "reviewer:privacy", "reason": "A response names a client."}


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("released", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        yield made


def text_of(desk: Console, name: str, path: str) -> str:
    answer = desk.signed_in(name).get(path)
    assert answer.status_code == 200, answer.text
    return html.unescape(answer.text)


@pytest.mark.thorough
def test_a_reviewer_suspends_in_the_browser_and_every_page_says_so(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    for path in PAGES:
        assert CHIP not in text_of(desk, "olga", path)
    for path in ("/adapters/clauses@1", "/releases/legal/labels"):
        page = text_of(desk, "rita", path)
        assert "/sign/suspend-release?given=adapter%3Aclauses%401" in page
        assert "It does not reach an exported copy, such as one that vLLM serves on another host." in page
    form = text_of(desk, "rita", "/sign/suspend-release?given=adapter%3Aclauses%401&given=unit%3Alegal")
    assert '<option value="reviewer:privacy" selected>' in form
    page = shown(browser, "suspend-release", ORDER)
    assert "Exported copies are not reached" in html.unescape(page.text)
    entry = entry_of(desk, signed(browser, page, passkey))
    assert entry.type == "release.suspended"
    done = html.unescape(browser.get(f"/signed/{entry.index}").text)
    assert "appliance release resume</a>. Who can do it: legal, otto." in done
    for path in PAGES:
        assert CHIP in text_of(desk, "olga", path), path
    assert f"rita (reviewer:privacy) suspended adapter clauses@1 for legal by entry {entry.index}." in text_of(
        desk, "audrey", "/effective-access?unit=legal"
    )

    resume = f"/sign/resume-release?given=adapter%3Aclauses%401&given=unit%3Alegal&given=entry%3A{entry.index}"
    assert resume in text_of(desk, "rita", "/releases/legal/labels")
    assert resume not in text_of(desk, "otto", "/releases/legal/labels")
    by_two = text_of(desk, "anna", "/releases/legal/labels")
    assert resume in by_two and "a second administrator countersigns" in by_two
    page = shown(
        browser,
        "resume-release",
        {"adapter": "clauses@1", "unit": "legal", "entry": str(entry.index), "reason": "It was ours."},
    )
    assert entry_of(desk, signed(browser, page, passkey)).type == "release.resumed"
    assert reasons(desk.site) == []
    for path in PAGES:
        assert CHIP not in text_of(desk, "olga", path)


def test_a_form_without_a_reason_is_not_taken(desk: Console) -> None:
    browser = desk.signed_in("rita")
    answer = browser.fill("suspend-release", {**ORDER, "reason": ""})
    assert answer.status_code == 400
    assert "reason" in answer.text


def test_the_page_says_before_the_signature_that_an_order_would_be_refused(desk: Console) -> None:
    index = desk.site.suspend().index
    fields = {"adapter": "clauses@1", "unit": "legal", "served_model": "labels", "adds_instruction": "yes"}
    text = html.unescape(shown(desk.signed_in("otto"), "activate", fields).text)
    assert "It would be refused now." in text
    assert f"suspended adapter clauses@1 for legal by entry {index}." in text
    fields = {"adapter": "clauses@1", "unit": "legal", "entry": str(index), "reason": "It was ours."}
    text = html.unescape(shown(desk.signed_in("otto"), "resume-release", fields).text)
    assert "which otto does not have." in text


def test_who_can_lift_it_finds_it_on_the_first_page_and_others_do_not(desk: Console) -> None:
    index = desk.site.suspend().index
    line = f"clauses@1 for legal, entry {index}: suspended by rita (reviewer:privacy)"
    assert line in text_of(desk, "rita", "/home")
    assert line not in text_of(desk, "raul", "/home")
    assert "Release that does not serve" in text_of(desk, "otto", "/home")
    state = desk.context.ledger.state
    sent = {name: {one.kind for one in items} for name, items in waiting_for_all(state, desk.context.now(state))}
    assert SUSPENSION in sent["rita"] and SUSPENSION not in sent["raul"] | sent["otto"]
    assert RELEASE in sent["otto"] and RELEASE in sent["legal"]
    desk.site.resume_release(index)
    assert line not in text_of(desk, "rita", "/home")


def test_a_unit_sees_that_its_release_is_suspended_and_no_button(desk: Console) -> None:
    desk.site.suspend()
    page = text_of(desk, "legal", "/releases/legal/labels")
    assert CHIP in page
    assert "/sign/suspend-release" not in page and "/sign/resume-release" not in page


def test_another_role_suspends_beside_a_suspension(desk: Console) -> None:
    desk.site.suspend()
    desk.site.suspend("otto", served_model="labels")
    assert desk.signed_in("olga").get("/adapters.json").json()["rows"][0]["suspended_for"] == ["legal"]
    assert "suspended for legal" in text_of(desk, "olga", "/adapters")
    assert "/sign/suspend-release" not in text_of(desk, "rita", "/releases/legal/labels"), "her role did so already"
    assert "/sign/suspend-release" in text_of(desk, "raul", "/releases/legal/labels")
    page = text_of(desk, "olga", "/releases/legal/labels")
    assert CHIP in page and "suspended for legal/labels by otto" in page
    value = desk.signed_in("olga").get("/releases/legal/labels.json").json()
    assert value["row"]["suspended_by"] == ["rita", "otto"]
    assert [one["role"] for one in value["suspensions"]] == ["reviewer:privacy", "release-owner:legal"]
    assert len(adapter_of(desk.site).suspensions) == 2


def test_an_activation_says_what_it_replaces_and_what_limits_it(desk: Console) -> None:
    limits = conditions(answers_a_day=3)
    approval = desk.site.review("rita", "privacy", decision="approve-with-conditions", conditions=limits).index
    release = desk.site.state.releases.get("legal/labels")
    assert release is not None
    fields = {"adapter": "clauses@1", "unit": "legal", "served_model": "labels", "adds_instruction": "yes"}
    text = html.unescape(shown(desk.signed_in("otto"), "activate", fields).text)
    assert f"clauses@1, active by entry {release.current.index} of otto" in text
    assert f"Condition of approval {approval}" in text and "at most 3 responses a day" in text
    until = min(one.valid_until for one in adapter_of(desk.site).reviews[1:] if one.valid_until)
    assert f"{reword_times(until)}, the first date that ends it" in text and until not in text
    text = html.unescape(shown(desk.signed_in("otto"), "activate", {**fields, "served_model": "drafts"}).text)
    assert "nothing: no version was active under this name" in text


STOPS = "labels for legal, where clauses@1 serves now"
REQUEST = {"adapter": "clauses@1", "unit": "legal", "exposure": "customers", "purpose": "decide"}


@pytest.mark.thorough
def test_an_order_that_stops_a_release_says_so_before_it_is_signed(desk: Console) -> None:
    texts = {"intended_use": "To sort letters.", "limits": "No decisions."}
    text = html.unescape(shown(desk.signed_in("olga"), "request-release", REQUEST | texts).text)
    assert f"{STOPS}. Adapter clauses@1 needs 3 valid approvals for legal and has 0. More reviewers must" in text
    decision = {"adapter": "clauses@1", "unit": "legal", "review_function": "privacy", "reason": "It names tenants."}
    rita = desk.signed_in("rita")
    for word, reason in (
        ("reject", "rita rejected this adapter by this entry."),
        ("request-changes", "rita requested changes by this entry."),
        ("withdraw", "Adapter clauses@1 needs 2 valid approvals for legal and has 1."),
    ):
        text = html.unescape(shown(rita, "review", decision | {"decision": word, "meaning": "I read it."}).text)
        assert f"{STOPS}. {reason}" in text, word
    finding = {
        "adapter": "clauses@1", "kind": "issue", "severity": "high", "review_function": "privacy", "owner": "olga",
        "due": "7d", "finding": "It names tenants.", "remedy": "Remove the names.", "retest": "Ask for a name.",
    }  # fmt: skip
    text = html.unescape(shown(rita, "add-finding", finding | {"blocks": "yes"}).text)
    assert f"{STOPS}. This finding (high issue, privacy) blocks this release." in text
    assert STOPS not in html.unescape(shown(rita, "add-finding", finding | {"blocks": "no"}).text)
    desk.site.suspend()
    assert STOPS not in html.unescape(shown(desk.signed_in("olga"), "request-release", REQUEST | texts).text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rita", "Adapter clauses@1 needs 2 valid approvals for legal and has 1."),
        ("otto", "is no longer a release owner of legal. A release owner of legal must activate it again."),
        ("legal", "legal is not an enrolled unit."),
    ],
)
def test_a_revocation_says_which_releases_depend_on_the_person(name: str, text: str, desk: Console) -> None:
    order = {"principal": name, "reason": "Left the firm."}
    page = html.unescape(shown(desk.signed_in("anna"), "revoke-principal", order).text)
    assert f"{STOPS}. " in page and text in page
    assert STOPS not in html.unescape(
        shown(desk.signed_in("anna"), "revoke-principal", order | {"principal": "audrey"}).text
    )


def test_the_page_of_a_countersignature_names_the_releases_that_it_stops(desk: Console) -> None:
    site = desk.site
    site.grant("rita", "reviewer:legal-risk")
    order = site.order(RemoveRole, "anna", principal="rita", role="reviewer:privacy", reason=site.text("Other work."))
    pending = site.pend(order)
    text = html.unescape(shown(desk.signed_in("ben"), "countersign", {"order": pending.pae_digest}).text)
    assert f"{STOPS}. Adapter clauses@1 needs 2 valid approvals for legal and has 1." in text
