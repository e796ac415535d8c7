"""Invitations in the console: an invited person makes a passkey without a key, and two administrators enrol it."""

from __future__ import annotations

import hashlib
import html
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.entry import parse_entry
from appliance.domain.governance.people import Grant
from appliance.domain.queries.pending import INVITED, ORDER, list_pending
from appliance.errors import RateLimited
from appliance.formats.core.digest import digest_bytes, short_code
from appliance.formats.core.fields import encode_base64, encode_base64url, parse_base64
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.console.core.middleware import SIGN_IN_BYTES
from appliance.web.console.signing.invitations import MOST_A_MINUTE, Attempts
from scripts.kit.authenticator import Authenticator, new_passkey
from tests.domain.audit.test_verify import verify
from tests.kit.console import URL, Browser, Console, console
from tests.kit.founded import policy_set
from tests.web.console.test_signing import assertion, hidden, sign_in

HERE = {"rp_id": "localhost", "origin": URL}
SECRET = hashlib.sha256(b"made by the browser").digest()
OPENS = {"secret": encode_base64url(SECRET)}
"""The field by which the address's script opens the invitation."""


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("staffed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        made.site.invite("nina", "operator", secret=digest_bytes(SECRET))
        yield made


def create(browser: Browser, passkey: Authenticator, **fields: str) -> httpx.Response:
    data = encode_base64url(passkey.creation_data)
    return browser.post("/invitation/passkey", {**OPENS, "name": "blue", "data": data, **fields})


def accept(browser: Browser, passkey: Authenticator, **fields: str) -> httpx.Response:
    """Create the passkey and sign with it. Return the answer to the last form."""
    page = create(browser, passkey)
    if page.status_code != 200:
        return page
    return browser.post("/invitation/accepted", {**OPENS, **assertion(hidden(page, "file"), passkey), **fields})


def types_since(desk: Console, size: int) -> list[str]:
    state = desk.context.ledger.state
    return [parse_entry(desk.context.ledger.entry_bytes(n)).type for n in range(size, state.size)]


def texts_of(answer: httpx.Response) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", answer.text))


# The invited person.


def test_an_invited_person_makes_a_passkey_without_signing_in_and_is_given_its_short_code(desk: Console) -> None:
    browser, passkey = desk.browser(), new_passkey(**HERE)
    assert browser.get("/invitation").status_code == 200
    page = texts_of(browser.post("/invitation", OPENS))
    for words in ("nina", "Nina Example", "anna invited you", "operator"):
        assert words in page, words
    size = desk.context.ledger.state.size
    answer = accept(browser, passkey)
    assert answer.status_code == 200 and short_code(passkey.keyid) in answer.text
    assert types_since(desk, size) == ["invitation.accepted"]
    entry = parse_entry(desk.context.ledger.entry_bytes(size))
    assert (entry.actor, entry.source, entry.subjects[0]) == ("service", "tcp:testclient", "principal:nina")
    proof = parse_envelope(desk.context.ledger.documents_of(size)["possession"])
    said = parse_credential(PasskeyPossession, proof.payload)
    assert (said.signer, said.keyid, said.passkey, said.origins) == ("nina", passkey.keyid, "blue", (URL,))
    assert "nina" not in desk.context.ledger.state.principals
    assert browser.get("/home").status_code == 401
    assert verify(desk.site).findings == ()


def test_an_address_that_is_unknown_used_or_expired_gives_one_page(desk: Console) -> None:
    browser = desk.browser()
    unknown = browser.post("/invitation", {"secret": encode_base64url(b"x" * 32)})
    assert accept(browser, new_passkey(**HERE)).status_code == 200
    used = browser.post("/invitation", OPENS)
    desk.site.invite("omar", "operator", lasts_s=1, secret=digest_bytes(b"late"))
    later = datetime.now(UTC) + timedelta(seconds=5)
    desk.context.clock = lambda: later
    expired = browser.post("/invitation", {"secret": encode_base64url(b"late")})
    for answer in (unknown, used, expired, browser.post("/invitation", {"secret": "%"}), browser.post("/invitation")):
        assert (answer.status_code, answer.text) == (401, unknown.text)
    assert "cannot be used" in unknown.text


def test_the_same_passkey_again_is_shown_its_code_and_another_one_is_not_accepted(desk: Console) -> None:
    browser, passkey, other = desk.browser(), new_passkey(**HERE), new_passkey(**HERE)
    page, late = create(browser, passkey), create(browser, other)
    sent = {**OPENS, **assertion(hidden(page, "file"), passkey)}
    size = desk.context.ledger.state.size
    assert short_code(passkey.keyid) in browser.post("/invitation/accepted", sent).text
    assert short_code(passkey.keyid) in browser.post("/invitation/accepted", sent).text
    answer = browser.post("/invitation/accepted", {**OPENS, **assertion(hidden(late, "file"), other)})
    assert answer.status_code == 401 and "cannot be used" in answer.text
    assert browser.post("/invitation/accepted", {**sent, "secret": encode_base64url(b"x" * 32)}).status_code == 401
    assert types_since(desk, size) == ["invitation.accepted"]


def test_of_two_passkeys_at_once_one_is_accepted(desk: Console) -> None:
    passkeys = [new_passkey(**HERE) for _ in range(4)]
    pages = [(desk.browser(), one) for one in passkeys]
    sent = [(browser, {**OPENS, **assertion(hidden(create(browser, one), "file"), one)}) for browser, one in pages]
    size, start, codes = desk.context.ledger.state.size, threading.Barrier(len(sent)), list[int]()

    def send(browser: Browser, fields: dict[str, str]) -> None:
        start.wait()
        codes.append(browser.post("/invitation/accepted", fields).status_code)

    threads = [threading.Thread(target=send, args=one) for one in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200, 401, 401, 401]
    assert types_since(desk, size).count("invitation.accepted") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"origin": "http://localhost:9999"},
        {"flags": 0x01},
        {"client": {"type": "webauthn.create"}},
        {"rp_id": "evil.example"},
    ],
)
def test_a_proof_of_another_place_or_kind_is_not_recorded(desk: Console, wrong: dict[str, Any]) -> None:
    browser, passkey = desk.browser(), new_passkey(**HERE)
    file = hidden(create(browser, passkey), "file")
    size = desk.context.ledger.state.size
    answer = browser.post("/invitation/accepted", {**OPENS, **assertion(file, passkey.wrong(**wrong))})
    assert answer.status_code in (400, 422), answer.text
    assert types_since(desk, size) == []


def test_a_statement_that_the_page_did_not_make_is_not_recorded(desk: Console) -> None:
    browser, passkey = desk.browser(), new_passkey(**HERE)
    file = json.loads(hidden(create(browser, passkey), "file"))
    made = json.loads(parse_base64(file["statement"], "statement"))
    size = desk.context.ledger.state.size
    for changes in ({"signer": "omar"}, {"origins": [URL, "http://localhost:1"]}, {"origin": "other.example/1"}):
        changed = {**made, "predicate": made["predicate"] | changes}
        data = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()
        wrong = json.dumps(file | {"statement": encode_base64(data)})
        answer = browser.post("/invitation/accepted", {**OPENS, **assertion(wrong, passkey)})
        assert answer.status_code in (400, 403), answer.text
    assert types_since(desk, size) == []


def test_a_passkey_that_policy_refuses_is_refused_before_it_signs(desk: Console) -> None:
    browser = desk.browser()
    answer = create(browser, new_passkey(**HERE, flags=0x0D))
    assert answer.status_code == 403 and "copied" in answer.text
    desk.site.adopt(policy_set())
    assert "No passkey can be made here" in browser.post("/invitation", OPENS).text


def test_the_secret_is_in_no_answer_entry_database_or_log(
    desk: Console, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    browser, passkey = desk.browser(), new_passkey(**HERE)
    first = browser.post("/invitation", OPENS)
    second = create(browser, passkey)
    third = browser.post("/invitation/accepted", {**OPENS, **assertion(hidden(second, "file"), passkey)})
    again, wrong = browser.post("/invitation", OPENS), create(browser, passkey, data="AAAA")
    for answer in (first, second, third, again, wrong):
        assert OPENS["secret"] not in answer.text and OPENS["secret"] not in str(answer.headers)
    forms = (OPENS["secret"].encode(), SECRET, SECRET.hex().encode())
    files = [path for path in home.rglob("*") if path.is_file()]
    assert any(digest_bytes(SECRET).encode() in path.read_bytes() for path in files)
    for path in files:
        assert not any(form in path.read_bytes() for form in forms), path
    assert OPENS["secret"] not in caplog.text


def test_the_forms_of_nobody_are_guarded_like_others(desk: Console) -> None:
    browser = desk.browser()
    for path in ("/invitation", "/invitation/passkey", "/invitation/accepted"):
        assert browser.post(path, OPENS, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert browser.post(path, OPENS, Origin="https://evil.example").status_code == 403
        assert browser.post(path, OPENS, Host="evil.example").status_code == 400
        answer = browser.post(path, {**OPENS, "x": "y" * SIGN_IN_BYTES})
        assert answer.status_code == 413 or "bytes" in answer.text
        assert browser.http.post(path, json=OPENS, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 400


def test_an_invitation_takes_a_few_forms_in_a_minute(desk: Console) -> None:
    browser = desk.browser()
    sent = assertion(hidden(create(browser, passkey := new_passkey(**HERE)), "file"), passkey)
    answers = [browser.post("/invitation", OPENS).status_code for _ in range(MOST_A_MINUTE - 1)]
    assert answers == [200] * (MOST_A_MINUTE - 1)
    for path, fields in (("", {}), ("/passkey", {}), ("/accepted", sent)):
        answer = browser.post(f"/invitation{path}", {**OPENS, **fields})
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) <= 61
    assert desk.browser().post("/invitation", {"secret": encode_base64url(b"x" * 32)}).status_code == 401


def test_the_limit_is_of_one_invitation_and_of_a_minute() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for _ in range(MOST_A_MINUTE):
        attempts.take("one")
    with pytest.raises(RateLimited, match="wait 61 s"):
        attempts.take("one")
    attempts.take("two")
    now[0] = 60.0
    attempts.take("one")


def test_the_address_of_a_withdrawn_invitation_says_that_an_administrator_withdrew_it(desk: Console) -> None:
    browser, passkey = desk.browser(), new_passkey(**HERE)
    file = hidden(create(browser, passkey), "file")
    desk.site.withdraw_invitation("nina")
    size = desk.context.ledger.state.size
    for answer in (
        browser.post("/invitation", OPENS),
        create(browser, passkey),
        browser.post("/invitation/accepted", {**OPENS, **assertion(file, passkey)}),
    ):
        assert answer.status_code == 401
        assert "An administrator has withdrawn it" in texts_of(answer) and "cannot be used" not in texts_of(answer)
    assert types_since(desk, size) == []
    later = datetime.now(UTC) + timedelta(hours=2)
    desk.context.clock = lambda: later
    assert "cannot be used" in texts_of(browser.post("/invitation", OPENS))


# The administrators.


def names_of(desk: Console) -> dict[str, Authenticator]:
    """Enrol a passkey for each administrator."""
    return {name: desk.site.enrol_passkey(name, new_passkey(**HERE)) for name in ("anna", "ben")}


INVITATION = {"principal": "omar", "printed_name": "Omar Example", "roles:operator": "yes", "until": "1h", "reason": ""}


def invite(browser: Browser, passkey: Authenticator, secret: bytes, **changes: str) -> httpx.Response:
    """Sign the invitation, and return the page after the signature."""
    page = browser.fill("invite", {**INVITATION, "secret": digest_bytes(secret), **changes})
    assert page.status_code == 200, page.text
    answer = browser.post("/signed", {"csrf": browser.csrf, **assertion(hidden(page, "file"), passkey)})
    assert answer.status_code == 303, answer.text
    return browser.get(answer.headers["location"])


def test_the_form_of_an_invitation_has_roles_an_end_and_a_field_for_the_digest(desk: Console) -> None:
    page = desk.signed_in("anna").get("/sign/invite").text
    assert re.search(r'name="secret" value="" data-new-secret', page) and "/static/invitations." in page
    assert 'name="roles:operator"' in page and 'name="roles:administrator"' in page
    assert 'name="roles:unit"' not in page and 'value="1h"' in page
    assert "/sign/invite" in desk.signed_in("anna").get("/home").text
    assert "/sign/invite" not in desk.signed_in("olga").get("/people").text


def test_the_page_after_an_invitation_has_the_digest_for_its_signer_alone(desk: Console) -> None:
    passkey = names_of(desk)["anna"]
    page = invite(desk.signed_in("anna"), passkey, b"another" * 4)
    assert f'data-invitation="{digest_bytes(b"another" * 4)}"' in page.text and "/static/uqr." in page.text
    assert "/people/omar" not in page.text and "Give the address to omar" in page.text
    other = desk.signed_in("ben").get(page.url.path).text
    assert "data-invitation" not in other and "/static/uqr." not in other


def test_another_invitation_says_before_the_signature_that_it_drops_the_passkey_of_the_first(desk: Console) -> None:
    names_of(desk)
    passkey, anna = new_passkey(**HERE), desk.signed_in("anna")
    again = {**INVITATION, "principal": "nina", "secret": digest_bytes(b"another" * 4)}
    assert "drops it" not in anna.fill("invite", again).text
    assert accept(desk.browser(), passkey).status_code == 200
    page = texts_of(anna.fill("invite", again))
    assert f"with the short code {short_code(passkey.keyid)} by an earlier invitation" in page and "drops it" in page


@pytest.mark.thorough
@pytest.mark.parametrize("is_accepted", [False, True])
def test_an_administrator_withdraws_an_invitation_from_the_page_of_people(desk: Console, is_accepted: bool) -> None:
    passkey, link = names_of(desk)["ben"], "/sign/withdraw-invitation?given=principal%3Anina"
    if is_accepted:
        desk.site.accept_invitation("nina", new_passkey(**HERE))
    desk.site.enrol("zoe", "operator")
    assert link not in desk.signed_in("zoe").get("/people").text
    ben = desk.signed_in("ben")
    assert link in ben.get("/people").text
    page = ben.get(link).text
    assert re.search(r'<option value="nina" selected>', page) and '<option value="zoe"' not in page
    page_to_sign = ben.fill("withdraw-invitation", {"principal": "nina", "reason": ""})
    answer = ben.post("/signed", {"csrf": ben.csrf, **assertion(hidden(page_to_sign, "file"), passkey)})
    assert answer.status_code == 303, answer.text
    assert ben.get(answer.headers["location"]).status_code == 200
    assert desk.context.ledger.state.invitations.get("nina").withdrawn is not None  # type: ignore[union-attr]
    assert "nina" not in ben.get("/people").text and INVITED not in kinds_of(desk, "anna")
    again = ben.fill("withdraw-invitation", {"principal": "nina", "reason": ""}).text
    assert "no invitation that is open or accepted" in html.unescape(again)


def kinds_of(desk: Console, name: str) -> list[str]:
    """Return the kinds of the items that wait for a person."""
    return [one.kind for one in list_pending(desk.context.ledger.state, desk.site.now, name)]


@pytest.mark.parametrize("changes", [{"until": "2h"}, {"secret": ""}, {"principal": "rita"}, {"secret": "sha256:1"}])
def test_an_invitation_that_is_wrong_is_shown_beside_its_field(desk: Console, changes: dict[str, str]) -> None:
    names_of(desk)
    page = desk.signed_in("anna").fill("invite", {**INVITATION, "secret": digest_bytes(b"1"), **changes})
    if changes.get("principal"):
        assert "name-taken" in page.text or "belongs to an enrolled" in page.text
    else:
        assert page.status_code == 400 and "One field is wrong" in page.text


def enrol_form(desk: Console, browser: Browser, passkey: Authenticator) -> dict[str, str]:
    """Return the filled fields of the form to which *Enrol* leads."""
    link = re.search(r'href="(/sign/enrol-with-passkey[^"]*)"', browser.get("/people").text)
    assert link is not None
    page = browser.get(html.unescape(link[1])).text
    assert re.search(rf'<option value="{passkey.keyid}" selected>the passkey of nina', page)
    assert 'name="printed_name"' in page and "Nina Example" in page
    assert re.search(r'name="roles:operator" value="yes" checked', page)
    assert short_code(passkey.keyid) not in page
    return {"possession": passkey.keyid, "printed_name": "Nina Example", "roles:operator": "yes", "reason": ""}


@pytest.mark.thorough
def test_two_administrators_who_typed_the_short_code_enrol_the_passkey_and_it_signs_in(desk: Console) -> None:
    keys, passkey = names_of(desk), new_passkey(**HERE)
    anna, ben, nina = desk.signed_in("anna"), desk.signed_in("ben"), desk.browser()
    assert "nina, by anna; the address works until" in texts_of(anna.get("/home"))
    assert "nina" in texts_of(ben.get("/people")) and "enrol-with-passkey" not in ben.get("/people").text
    assert accept(nina, passkey).status_code == 200
    assert (
        "Passkey to enrol" in anna.get("/home").text
        and "Passkey to enrol" not in desk.signed_in("olga").get("/home").text
    )
    fields = enrol_form(desk, anna, passkey)
    for code, words in (("", "Short code: expected a value"), (short_code(digest_bytes(b"x")), "got another")):
        page = anna.fill("enrol-with-passkey", {**fields, "short_code": code})
        assert page.status_code == 400 and words in texts_of(page) and "One field is wrong" in page.text
        assert short_code(passkey.keyid) not in page.text
    spoken = short_code(passkey.keyid).lower().replace("-", " ")
    page = anna.fill("enrol-with-passkey", {**fields, "short_code": spoken})
    assert page.status_code == 200, page.text
    answer = anna.post("/signed", {"csrf": anna.csrf, **assertion(hidden(page, "file"), keys["anna"])})
    assert answer.status_code == 303, answer.text
    assert "waits for a second administrator" in texts_of(anna.get("/people"))
    assert "Countersign" not in texts_of(anna.get("/people"))
    order = desk.context.ledger.state.pending.values()[0].digest
    assert f"/sign/countersign?given=order%3A{order.replace(':', '%3A')}" in ben.get("/people").text
    form = ben.get(f"/sign/countersign?given=order:{order}").text
    assert 'name="short_code"' in form and short_code(passkey.keyid) not in form
    for code, words in (("", "got none"), ("AAAA-AAAA-AAAA", "got another")):
        page = ben.fill("countersign", {"order": order, "reason": "", "short_code": code})
        assert page.status_code == 400 and words in texts_of(page) and "One field is wrong" in page.text
    page = ben.fill("countersign", {"order": order, "reason": "", "short_code": short_code(passkey.keyid)})
    assert page.status_code == 200, page.text
    answer = ben.post("/signed", {"csrf": ben.csrf, **assertion(hidden(page, "file"), keys["ben"])})
    assert answer.status_code == 303, answer.text
    person = desk.context.ledger.state.principals.get("nina")
    assert person is not None and (person.roles, person.keyid) == (("operator",), passkey.keyid)
    assert not desk.context.ledger.state.invitations.values()
    answer = nina.post("/sign-in/passkey.json", sign_in(nina, "nina", passkey))
    assert answer.status_code == 200, answer.text
    assert nina.get("/home").status_code == 200 and short_code(passkey.keyid) in nina.get("/passkeys").text
    assert short_code(passkey.keyid) in anna.get("/people/nina").text
    assert "Invitations" not in anna.get("/people").text
    assert verify(desk.site).findings == ()


def test_another_order_is_countersigned_without_a_short_code(desk: Console) -> None:
    names_of(desk)
    ben = desk.signed_in("ben")
    order = desk.site.order(Grant, "anna", principal="olga", role="reviewer:privacy")
    waiting = desk.site.pend(order).pae_digest
    page = ben.fill("countersign", {"order": waiting, "reason": "", "short_code": ""}).text
    assert "You are about to sign" in page
    assert 'name="short_code"' not in ben.get(f"/sign/countersign?given=order:{waiting}").text


def test_a_passkey_that_nobody_accepted_an_invitation_with_cannot_be_chosen(desk: Console) -> None:
    names_of(desk)
    fields = {"possession": digest_bytes(b"x"), "printed_name": "Nina", "roles:operator": "yes", "short_code": "A"}
    page = desk.signed_in("anna").fill("enrol-with-passkey", fields)
    assert page.status_code == 404 and "the passkey of an accepted invitation" in texts_of(page)


def test_an_accepted_invitation_is_an_administrators_pending_item_until_the_enrolment(desk: Console) -> None:
    passkey = new_passkey(**HERE)
    desk.site.accept_invitation("nina", passkey)
    state = desk.context.ledger.state
    assert INVITED in kinds_of(desk, "anna") and INVITED in kinds_of(desk, "ben")
    assert INVITED not in kinds_of(desk, "olga")
    order, documents = desk.site.enrolment_with_passkey("nina", passkey, ("operator",))
    desk.site.pend(order, documents)
    assert INVITED not in (*kinds_of(desk, "anna"), *kinds_of(desk, "ben")), "the order is the only item"
    (item,) = list_pending(state, desk.site.now, "ben")
    assert (item.kind, item.text) == (ORDER, "Enrol a person with a passkey (nina), ordered by anna")


def test_a_waiting_order_is_shown_in_words_with_the_technical_values_folded(desk: Console) -> None:
    passkey = new_passkey(**HERE)
    desk.site.accept_invitation("nina", passkey)
    order, documents = desk.site.enrolment_with_passkey("nina", passkey, ("operator",))
    desk.site.pend(order, documents)
    (row,) = desk.signed_in("ben").get("/orders.json").json()["rows"]
    lines, technical = dict(row["lines"]), dict(row["technical"])
    assert row["title"] == "Enrol a person with a passkey" and lines["roles"] == "operator"
    assert lines["printed name"] == "Nina Example" and lines["signs at"] == URL
    assert {"key", "key id", "nonce", "origin"} <= technical.keys() and not lines.keys() & {"key", "key id", "nonce"}
    page = texts_of(desk.signed_in("ben").get("/orders"))
    assert "Enrol a person with a passkey, ordered by anna" in page and short_code(passkey.keyid) not in page
    assert "waits for another administrator" in texts_of(desk.signed_in("anna").get("/orders"))
