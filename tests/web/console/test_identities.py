"""Sessions that need an ID token: signed in through the provider, and every token that is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.errors import Denied, NotAuthenticated
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.core import auth, logs
from appliance.web.people.api import people_app
from scripts.kit.authenticator import Authenticator, new_passkey
from scripts.kit.log_builder import ISSUER
from tests.kit.console import URL, Browser, Console, console
from tests.kit.founded import policy_set
from tests.kit.identity_provider import CLIENT, Provider, new_key
from tests.kit.signed_session import sign_session
from tests.web.console.test_signing import assertion

PROVIDER = Provider()
REMOTE = "tcp:10.0.0.7"
PASSKEYS: dict[str, Authenticator] = {}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with console("staffed", tmp_path_factory.mktemp("i") / "h") as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        for name in ("rita", "olga", "anna", "legal"):
            PASSKEYS[name] = made.site.enrol_passkey(name, new_passkey(rp_id="localhost", origin=URL))
        for name in ("rita", "olga", "anna"):
            made.site.bind(name)
        made.site.adopt(policy_set(passkeys_on_localhost=True, identity_provider=PROVIDER.pinned()))
        yield made


def begin(browser: Browser, name: str = "rita") -> tuple[dict[str, str], str]:
    """Return the fields that a page's script signed, and the nonce with which it sends the person to the provider."""
    answer = browser.get(f"/sign-in/passkey.json?name={name}").json()
    parameters = parse_qs(urlsplit(answer["identity"]).query)
    return assertion(answer["file"], PASSKEYS[name]), parameters["nonce"][0]


def finish(browser: Browser, fields: dict[str, str], token: str) -> httpx.Response:
    return browser.post("/sign-in/passkey.json", {**fields, "identity_token": token})


def codes(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 403, answer.text
    assert answer.json()["error"]["code"] == "identity-refused"
    return [one["code"] for one in answer.json()["error"]["refusals"]]


def test_a_person_signs_in_with_a_passkey_and_a_token_and_the_session_ends_with_the_token(desk: Console) -> None:
    browser = desk.browser()
    fields, nonce = begin(browser)
    without = browser.post("/sign-in/passkey.json", fields)
    assert (without.status_code, without.json()["error"]["code"]) == (403, "identity-required")
    token = PROVIDER.token("sub-rita", nonce, exp=PROVIDER.claims("", "")["iat"] + 120)
    size = desk.context.ledger.state.size
    assert finish(browser, fields, token).json() == {"viewer": "rita"}
    entry = parse_entry(desk.context.ledger.entry_bytes(size))
    found, row = entry.body["identity"], desk.site.state.identities.get("rita")
    assert row is not None
    assert (entry.type, entry.source, found["issuer"]) == ("session.opened", "tcp:testclient", ISSUER)
    assert (found["binding"], found["key"], found["token"]) == (row.index, "k1", digest_bytes(token.encode()))
    assert "@" not in entry.encoded.decode()
    ends = browser.get("/sessions.json").json()["rows"][0]["expires_at"]
    assert ends == found["expires_at"] < add_seconds(desk.site.now, 121)
    assert finish(desk.browser(), fields, token).status_code == 401  # the statement was used
    again, other = begin(browser)
    assert codes(finish(browser, again, token)) == ["identity-claim-differs"]
    assert other != nonce


def test_the_way_to_the_provider_has_what_openid_connect_asks_for(desk: Console) -> None:
    answer = desk.browser().get("/sign-in/passkey.json?name=nobody").json()
    address = urlsplit(answer["identity"])
    assert f"{address.scheme}://{address.netloc}{address.path}" == f"{ISSUER}/authorize"
    found = {name: values[0] for name, values in parse_qs(address.query, strict_parsing=True).items()}
    nonce = found.pop("nonce")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", nonce)
    assert found == {
        "response_type": "id_token",
        "response_mode": "form_post",
        "scope": "openid",
        "client_id": CLIENT,
        "redirect_uri": f"{URL}/sign-in/identity",
    }


NOW = PROVIDER.claims("", "")["iat"]


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"aud": "another-client"}, "identity-claim-differs"),
        ({"aud": [CLIENT, "another-client"]}, "identity-claim-differs"),
        ({"aud": []}, "identity-claim-differs"),
        ({"azp": "another-client"}, "identity-claim-differs"),
        ({"iss": "https://login.other.example"}, "identity-claim-differs"),
        ({"iss": f"{ISSUER}/"}, "identity-claim-differs"),
        ({"nonce": digest_bytes(b"another")}, "identity-claim-differs"),
        ({"nonce": None}, "identity-claim-differs"),
        ({"sub": "sub-olga"}, "identity-of-another"),
        ({"sub": "SUB-RITA"}, "identity-of-another"),
        ({"iat": NOW - 1_200, "exp": NOW + 600}, "identity-not-fresh"),
        ({"iat": NOW - 600, "exp": NOW - 1}, "identity-not-fresh"),
        ({"iat": NOW + 3_600, "exp": NOW + 7_200}, "identity-in-future"),
        ({"nbf": NOW + 3_600}, "identity-in-future"),
    ],
)
def test_a_token_that_does_not_fit_opens_no_session(desk: Console, claims: dict[str, Any], code: str) -> None:
    browser, size = desk.browser(), desk.context.ledger.state.size
    fields, nonce = begin(browser)
    assert code in codes(finish(browser, fields, PROVIDER.token("sub-rita", nonce, **claims)))
    assert desk.context.ledger.state.size == size
    assert finish(browser, fields, PROVIDER.token("sub-rita", nonce)).status_code == 200  # nothing was used up


def test_tokens_of_other_keys_and_algorithms_open_no_session(desk: Console) -> None:
    browser = desk.browser()
    fields, nonce = begin(browser)
    thief = Provider(key=new_key(kid="k1"))
    for token in (
        thief.token("sub-rita", nonce),
        Provider(key=new_key(kid="k2")).token("sub-rita", nonce),
        Provider("RS256", new_key("RS256")).token("sub-rita", nonce),
        f"{PROVIDER.token('sub-rita', nonce).rpartition('.')[0]}.",
        "",
        "a.b.c",
    ):
        assert codes(finish(browser, fields, token)) == ["identity-token-invalid"]


def test_a_token_of_another_browser_or_person_opens_no_session(desk: Console) -> None:
    first, second = desk.browser(), desk.browser()
    fields, nonce = begin(first)
    others, other = begin(second)
    assert codes(finish(second, others, PROVIDER.token("sub-rita", nonce))) == ["identity-claim-differs"]
    stolen, stolen_nonce = begin(second, "olga")
    found = codes(finish(second, stolen, PROVIDER.token("sub-rita", stolen_nonce)))
    assert found == ["identity-of-another"]
    assert finish(second, others, PROVIDER.token("sub-rita", other)).status_code == 200
    assert finish(first, fields, PROVIDER.token("sub-rita", nonce)).status_code == 200


def test_a_refused_token_is_logged_and_counted_as_an_attempt_of_its_person_and_a_missing_one_is_not(
    desk: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr(
        logs, "log", SimpleNamespace(warning=lambda event, **row: logged.append(("warning", event, row)))
    )
    browser = desk.browser()
    fields, nonce = begin(browser)
    with desk.authenticator.counted():
        pass
    browser.post("/sign-in/passkey.json", fields)
    finish(browser, fields, PROVIDER.token("sub-olga", nonce))
    with desk.authenticator.counted() as refusals:
        assert (refusals.unauthenticated, refusals.claimed) == (1, {("rita", PASSKEYS["rita"].keyid)})
    assert [event[:2] for event in logged] == [("warning", "identity.refused")]
    assert logged[0][2] == {"person": "rita", "reasons": "identity-of-another"}


def test_a_unit_needs_no_token_and_an_administrator_only_on_a_network(desk: Console) -> None:
    browser = desk.browser()
    fields, _ = begin(browser, "legal")
    assert browser.post("/sign-in/passkey.json", fields).status_code == 200
    fields, nonce = begin(browser, "anna")
    assert browser.post("/sign-in/passkey.json", fields).json()["error"]["code"] == "identity-required"
    assert finish(browser, fields, PROVIDER.token("sub-anna", nonce)).status_code == 200
    for name, source, is_open in (("anna", "unix:1000", True), ("anna", REMOTE, False), ("olga", "unix:1000", False)):
        envelope = sign_session(desk.authenticator, name, desk.site.keys[name])
        if is_open:
            assert desk.authenticator.open_session(envelope, source)[1].principal == name
            continue
        with pytest.raises(Denied) as refused:
            desk.authenticator.open_session(envelope, source)
        assert refused.value.code == "identity-required"


def test_a_request_without_a_peer_is_of_a_network(desk: Console) -> None:
    """A connection that was reset has none. Then even an administrator needs the token of the provider."""
    people = people_app(desk.context, desk.authenticator)

    async def without_peer(scope: Scope, receive: Receive, send: Send) -> None:
        await people({**scope, "client": None}, receive, send)

    envelope = json.loads(sign_session(desk.authenticator, "anna", desk.site.keys["anna"]))
    refused = TestClient(without_peer).post("/v1/sessions", json={"envelope": envelope})
    assert refused.json()["error"]["code"] == "identity-required"


def test_the_removal_of_an_identity_ends_its_sessions_at_once(desk: Console) -> None:
    browser = desk.browser()
    fields, nonce = begin(browser, "olga")
    finish(browser, fields, PROVIDER.token("sub-olga", nonce))
    assert browser.get("/home").status_code == 200
    desk.site.unbind("olga")
    assert browser.get("/home").status_code == 401
    fields, nonce = begin(browser, "olga")
    refused = finish(browser, fields, PROVIDER.token("sub-olga", nonce))
    assert codes(refused) == ["identity-not-bound"]
    assert "sub-olga" in refused.json()["error"]["message"]  # so that the person can tell it the administrators
    desk.site.bind("olga")
    assert browser.get("/home").status_code == 401


def test_a_challenge_lasts_as_long_as_a_sign_in_at_the_provider_and_is_used_once(
    desk: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    challenges = auth.Challenges(lambda: now, "session", auth.IDENTITY_S)
    monkeypatch.setattr(desk.authenticator, "_challenges", challenges)
    keys = desk.site.keys

    def opened(envelope: bytes, source: str, token: str | None) -> bool:
        try:
            desk.authenticator.open_session(envelope, source, token)
        except NotAuthenticated as error:
            assert error.code == "challenge"
            return False
        return True

    envelope = sign_session(desk.authenticator, "rita", keys["rita"])
    token = PROVIDER.token("sub-rita", parse_envelope(envelope).pae_digest)
    local = sign_session(desk.authenticator, "anna", keys["anna"])
    used = sign_session(desk.authenticator, "anna", keys["anna"])
    assert opened(used, "unix:0", None)
    now += auth.CHALLENGE_S + 1
    assert not opened(local, "unix:0", None)
    assert not opened(local, "unix:0", "a.b.c")  # a token that nobody needs prolongs nothing
    assert not opened(used, "unix:0", token)
    assert opened(envelope, REMOTE, token)
    now += auth.CHALLENGE_S + 1
    assert not opened(envelope, REMOTE, token)


# The page that the provider sends a token to.


def sent(desk: Console, fields: dict[str, str]) -> httpx.Response:
    """Post the provider's own form, which is a request of another site, and return the answer."""
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": ISSUER}
    return desk.browser().post("/sign-in/identity", fields, **headers)


def test_the_page_for_a_token_changes_nothing_and_shows_it(desk: Console) -> None:
    size, token = desk.context.ledger.state.size, PROVIDER.token("sub-rita", digest_bytes(b"statement"))
    answer = sent(desk, {"id_token": token, "state": ""})
    assert answer.status_code == 200
    assert f'data-identity-token="{token}"' in answer.text
    assert "set-cookie" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"
    assert desk.context.ledger.state.size == size


@pytest.mark.parametrize("token", ["", "a.b", '"><script>alert(1)</script>', "a.b.c ", "a.b.c\n"])
def test_a_text_that_is_no_token_is_not_shown(desk: Console, token: str) -> None:
    answer = sent(desk, {"id_token": token})
    assert answer.status_code == 400
    assert "<script>alert" not in answer.text


def test_what_the_provider_reports_is_shown_and_what_to_do(desk: Console) -> None:
    fields = {"error": "access_denied", "error_description": "<b>the account is locked</b>"}
    answer = sent(desk, fields)
    assert answer.status_code == 403
    for words in (
        "The identity provider did not sign you in",
        "access_denied",
        "&lt;b&gt;the account is locked",
        "Sign in again",
    ):
        assert words in answer.text


def test_a_form_of_another_site_opens_no_session(desk: Console) -> None:
    """Sign-in as the attacker, in the victim's browser: the attacker's own statement and token come from elsewhere."""
    browser = desk.browser()
    fields, nonce = begin(browser)
    form = {**fields, "identity_token": PROVIDER.token("sub-rita", nonce)}
    refused = browser.post("/sign-in/passkey.json", form, **{"Sec-Fetch-Site": "cross-site", "Origin": ISSUER})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross-site")


def test_a_person_of_a_command_line_is_led_to_the_provider_with_its_nonce(desk: Console) -> None:
    nonce = digest_bytes(b"statement")
    answer = desk.browser().get(f"/sign-in/identity?nonce={nonce}")
    assert answer.status_code == 200
    assert f"nonce=sha256%3A{nonce.removeprefix('sha256:')}" in answer.text
    assert "Continue only if you typed a command" in answer.text
    assert desk.browser().get("/sign-in/identity").headers["location"] == "/sign-in"
    assert desk.browser().get("/sign-in/identity?nonce=abc").status_code == 400


def test_without_a_provider_nothing_leads_to_one(tmp_path: Any) -> None:
    with console("staffed", tmp_path / "h") as desk:
        assert desk.browser().get("/sign-in/passkey.json?name=rita").json()["identity"] is None
        assert desk.browser().get(f"/sign-in/identity?nonce={digest_bytes(b'x')}").status_code == 403
        refused = sent(desk, {"id_token": "a.b.c"})
        assert (refused.status_code, "The policy set names no identity provider" in refused.text) == (403, True)
        assert desk.signed_in("rita").get("/home").status_code == 200


def test_the_person_page_leads_to_the_orders_about_an_identity(desk: Console) -> None:
    browser = desk.browser()
    fields, nonce = begin(browser, "anna")
    finish(browser, fields, PROVIDER.token("sub-anna", nonce))
    paths = [one["path"] for one in browser.get("/people/rita.json").json()["actions"]]
    assert "/sign/bind-identity?given=principal%3Arita" in paths, json.dumps(paths)
    assert "/sign/unbind-identity?given=principal%3Arita" in paths
    page = browser.get("/people/rita.json").json()
    bound = desk.site.state.identities.get("rita")
    assert bound is not None
    entry = bound.index
    assert page["identity"] == {"issuer": ISSUER, "entry": entry} and "sub-rita" not in browser.get("/people/rita").text
    assert f'bound at {ISSUER}, entry <a class="num" href="/log/{entry}">' in browser.get("/people/rita").text
    assert browser.get("/people/legal.json").json()["identity"] is None
    assert browser.get("/sign/bind-identity").status_code == 200
    assert not any("identity" in one["path"] for one in browser.get("/people/legal.json").json()["actions"])
