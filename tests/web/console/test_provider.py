"""People sign in at a real identity provider, Debian's glewlwyd, in real Chromium, from another site than the
console's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.errors import Denied
from appliance.formats.signatures.dsse import parse_envelope
from tests.kit.chromium import Tab, browser, open_tab, served
from tests.kit.console import Console
from tests.kit.founded import policy_set
from tests.kit.glewlwyd import PASSWORD, Glewlwyd, glewlwyd
from tests.kit.signed_session import sign_session
from tests.web.console.test_chromium import enrolled, signed_in

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def launched() -> Iterator[Any]:
    with browser() as made:
        yield made


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with served("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        yield made


@pytest.fixture
def provider(desk: Console, tmp_path: Path) -> Iterator[Glewlwyd]:
    with glewlwyd(tmp_path, desk.url) as made:
        yield made


def require(desk: Console, provider: Glewlwyd) -> str:
    """Bind rita to her account at the provider and adopt a policy set that requires it. Return her subject."""
    subject = provider.add("rita")
    desk.site.bind("rita", subject, provider.pinned.issuer)
    desk.site.adopt(policy_set(passkeys_on_localhost=True, identity_provider=provider.pinned))
    return subject


def log_in(tab: Tab, name: str = "rita") -> None:
    """Fill the provider's own page, and go on to the console if the provider lets this person in."""
    tab.page.wait_for_url("**/login.html**")
    tab.page.locator("#username").fill(name)
    tab.page.locator("#password").fill(PASSWORD)
    with tab.page.expect_response("**/api/auth/") as answered:
        tab.page.locator("#loginbut").click()
    if answered.value.ok:
        tab.page.get_by_role("button", name="Continue").click()


def newest(desk: Console) -> Any:
    return parse_entry(desk.context.ledger.entry_bytes(desk.context.ledger.state.size - 1))


def start(tab: Tab, path: str = "/sign-in") -> None:
    """Sign the statement of a session with the passkey."""
    tab.page.goto(path)
    tab.page.get_by_label("Your name").fill("rita")
    tab.page.get_by_role("button", name="Sign in with a passkey").click()


def test_a_person_signs_in_at_the_provider_until_their_account_is_locked(
    desk: Console, launched: Any, provider: Glewlwyd
) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    tab.page.get_by_role("button", name="Sign out").click()
    tab.page.wait_for_url("**/sign-in")
    subject = require(desk, provider)
    start(tab, "/adapters")
    log_in(tab)
    tab.page.wait_for_url("**/adapters")
    entry = newest(desk)
    assert (entry.type, entry.actor, entry.body["identity"]["issuer"]) == ("session.opened", "rita", provider.url)
    assert entry.body["identity"]["key"] == "g1"
    assert subject not in entry.encoded.decode()
    assert tab.page.evaluate("sessionStorage.length") == 0
    assert [error for error in tab.errors if "localhost" in error] == []
    # A form that is open keeps its text: the person signs in in another tab.
    tab.page.goto("/sign/review?given=adapter:clauses@1&given=unit:legal")
    tab.page.locator('[name="decision"]').select_option("reject")
    tab.page.locator('[name="meaning"]').fill("A text that I typed.")
    desk.context.sessions.sweep(lambda row: False)
    tab.page.get_by_role("button", name="Show what is signed").click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Sign in with a passkey").click()
    link = tab.page.get_by_role("link", name="Sign in in another tab")
    link.wait_for()
    assert link.get_attribute("target") == "_blank"
    assert tab.page.locator('[name="meaning"]').input_value() == "A text that I typed."
    # The site's directory ends the access.
    provider.lock("rita")
    tab.page.context.clear_cookies()
    size = desk.context.ledger.state.size
    start(tab)
    log_in(tab)
    assert "login.html" in tab.page.url
    assert tab.page.get_by_role("button", name="Continue").count() == 0
    assert desk.context.ledger.state.size == size


def test_a_command_line_gets_a_token_by_the_browser(desk: Console, launched: Any, provider: Glewlwyd) -> None:
    require(desk, provider)
    envelope = sign_session(desk.authenticator, "rita", desk.site.keys["rita"])
    nonce = parse_envelope(envelope).pae_digest
    with pytest.raises(Denied):
        desk.authenticator.open_session(envelope, "tcp:10.0.0.7")
    tab = open_tab(launched, desk.url)
    tab.page.goto(f"/sign-in/identity?nonce={nonce}")
    tab.page.get_by_role("link", name="Sign in at the identity provider").click()
    log_in(tab)
    shown = tab.page.get_by_label("ID token")
    shown.wait_for()
    token = shown.input_value()
    other = sign_session(desk.authenticator, "rita", desk.site.keys["rita"])
    with pytest.raises(Denied) as refused:
        desk.authenticator.open_session(other, "tcp:10.0.0.7", token)
    assert [one.code for one in refused.value.refusals] == ["identity-claim-differs"]
    assert desk.authenticator.open_session(envelope, "tcp:10.0.0.7", token)[1].principal == "rita"
