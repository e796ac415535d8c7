"""Orders, sessions and passkeys in the console: what a browser with an authenticator sends, and what is refused."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.client.gates import load_gates
from appliance.domain.actions.proposals import Proposal, encode_proposal, parse_proposal
from appliance.domain.actions.registry import ACTIONS, ORDERS
from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import encode_order
from appliance.domain.core.signatures import KEY_ENDED
from appliance.domain.governance.keys import KeyRevoked, RevokeKey
from appliance.domain.queries.review.values import open_parts
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64url, parse_base64
from appliance.formats.signatures.dsse import PAYLOAD_TYPE, encode_envelope, pae, parse_envelope, verify_envelope
from appliance.formats.signatures.keys import generate_ed25519
from appliance.formats.signatures.webauthn import parse_assertion
from appliance.web.console.signing.actions import GROUPS
from appliance.web.console.signing.forms import Field, fields_of
from appliance.web.console.signing.statements import PART_CHANGED, PART_NOT_OPENED, against_opened
from appliance.workflows.releases.review import review_page
from appliance.workflows.runs import planning
from scripts.kit.authenticator import Authenticator, new_passkey
from tests.domain.audit.test_verify import verify
from tests.domain.evaluation.test_rules import gates_file, one_gate
from tests.kit.console import URL, Browser, Console, console
from tests.kit.founded import POLICY_FOLDER, policy_set

HERE = {"rp_id": "localhost", "origin": URL}
REVIEW = {
    "adapter": "clauses@1",
    "decision": "approve",
    "unit": "legal",
    "review_function": "privacy",
    "meaning": "I read it.",
    "valid_until": "5d",
}


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        yield made


def hidden(answer: httpx.Response, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', answer.text)
    assert found is not None, answer.text
    return html.unescape(found[1])


def told(answer: httpx.Response) -> dict[str, Any]:
    found = re.search(r'data-signing="([^"]*)"', answer.text)
    assert found is not None, answer.text
    return dict(json.loads(html.unescape(found[1])))


def sign_in(browser: Browser, name: str, passkey: Authenticator) -> dict[str, str]:
    """Return the fields by which a page's script signs a person in."""
    answer = browser.get(f"/sign-in/passkey.json?name={name}")
    assert answer.status_code == 200, answer.text
    return assertion(answer.json()["file"], passkey)


def shown(browser: Browser, action: str, fields: dict[str, str]) -> httpx.Response:
    """Return the page that shows what is signed. For a review, open its page first."""
    if action == "review":
        assert browser.get(f"/adapters/{fields['adapter']}.json").status_code == 200
    answer = browser.fill(action, fields)
    assert answer.status_code == 200, answer.text
    return answer


def asserted(answer: httpx.Response, passkey: Authenticator) -> dict[str, str]:
    """Return the fields that the page's script fills in."""
    return assertion(hidden(answer, "file"), passkey)


def assertion(file: str, passkey: Authenticator) -> dict[str, str]:
    payload = parse_base64(json.loads(file)["statement"], "statement")
    one = parse_assertion(passkey.sign(pae(PAYLOAD_TYPE, payload)))
    return {
        "file": file,
        "credential_id": encode_base64url(passkey.credential_id),
        "authenticator_data": encode_base64url(one.authenticator_data),
        "client_data": encode_base64url(one.client_data_json),
        "signature": encode_base64url(one.signature),
    }


def signed(browser: Browser, answer: httpx.Response, passkey: Authenticator, **changes: str) -> httpx.Response:
    return browser.post("/signed", {"csrf": browser.csrf, **asserted(answer, passkey), **changes})


def entry_of(desk: Console, answer: httpx.Response) -> Any:
    assert answer.status_code == 303, answer.text
    return parse_entry(desk.context.ledger.entry_bytes(int(answer.headers["location"].removeprefix("/signed/"))))


def last_types(desk: Console, size: int) -> list[str]:
    return [parse_entry(desk.context.ledger.entry_bytes(n)).type for n in range(size, desk.context.ledger.state.size)]


# Signing.


@pytest.mark.thorough
def test_a_reviewer_approves_with_a_passkey_and_the_log_is_verified_offline(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = shown(browser, "review", REVIEW)
    assert told(answer)["allowed"] == [encode_base64url(passkey.credential_id)]
    assert told(answer)["rpId"] == "localhost"
    entry = entry_of(desk, signed(browser, answer, passkey))
    assert (entry.type, entry.actor, entry.source) == ("review.recorded", "rita", "tcp:testclient")
    envelope = parse_envelope(desk.context.ledger.documents_of(entry.index)["order"])
    assert envelope.signature.keyid == passkey.keyid
    assert verify(desk.site).verdict in ("verified", "unverifiable")
    assert verify(desk.site).findings == ()


def test_the_page_shows_what_the_command_line_shows_and_where_to_check_it(desk: Console) -> None:
    answer = shown(desk.signed_in("rita"), "review", REVIEW)
    proposal, envelope = parse_proposal(hidden(answer, "file").encode())
    assert envelope is None and proposal.order.signer == "rita"
    assert html.unescape(answer.text).count(encode_order(proposal.order).decode()) == 1
    assert "appliance order check FILE" in answer.text
    assert told(answer)["fields"]["members"][""] == list(type(proposal.order).model_fields)


def test_a_decision_in_one_click_is_none(desk: Console) -> None:
    """Whatever order it is: a form without an assertion signs nothing."""
    desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    file = hidden(shown(browser, "review", REVIEW), "file")
    size = desk.context.ledger.state.size
    for fields in ({"file": file}, {"file": file, "confirm": "yes"}, {"file": file, "credential_id": "AAAA"}):
        answer = browser.post("/signed", {"csrf": browser.csrf, **fields})
        assert (answer.status_code, "not-signed" in answer.text) == (400, True)
    assert last_types(desk, size) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """One that nothing is recorded in."""
    with console("staffed", tmp_path_factory.mktemp("s") / "h") as made:
        yield made


@pytest.mark.thorough
def test_a_click_signs_no_order_of_any_action(shared: Console) -> None:
    browser, size = shared.signed_in("rita"), shared.context.ledger.state.size
    csrf = browser.csrf
    for action, row in ACTIONS.items():
        order = row.example.model_copy(update={"signer": "rita"})
        file = encode_proposal(Proposal(order)).decode()
        answer = browser.post("/signed", {"csrf": csrf, "file": file})
        assert (answer.status_code, "not-signed" in answer.text) == (400, True), (action, answer.text)
    assert last_types(shared, size) == []


def test_orders_are_listed_by_subject_in_words_with_what_each_does(shared: Console) -> None:
    browser = shared.signed_in("anna")
    page = html.unescape(browser.get("/sign").text)
    listed = {row["action"]: row for row in browser.get("/sign.json").json()["actions"]}
    assert "<h2>People, keys and policy</h2>" in page and ">Adopt a policy set</a>" in page
    for row in listed.values():
        assert row["title"] in page and row["meaning"].replace("`", "") in page and "depends on" not in row["meaning"]
    assert all(action.description and action.order.__module__.split(".")[2] in GROUPS for action in ACTIONS.values())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"origin": "http://localhost:9999"}, "origin"),
        ({"origin": "http://127.0.0.1:8330"}, "origin"),
        ({"origin": "https://evil.example"}, "origin"),
        ({"flags": 0x01}, "user present and verified"),
        ({"client": {"crossOrigin": True}}, "crossOrigin"),
        ({"client": {"type": "webauthn.create"}}, "type"),
        ({"rp_id": "evil.example"}, "rpIdHash"),
    ],
)
def test_an_assertion_of_another_place_or_kind_signs_nothing(desk: Console, wrong: dict[str, Any], words: str) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = shown(browser, "review", REVIEW)
    size = desk.context.ledger.state.size
    refused = signed(browser, answer, passkey.wrong(**wrong))
    assert (refused.status_code, words in html.unescape(refused.text)) == (403, True), refused.text
    assert last_types(desk, size) == []


@pytest.mark.thorough
def test_an_assertion_for_another_statement_signs_nothing(desk: Console) -> None:
    """One tab cannot sign what another showed."""
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    one, other = shown(browser, "review", REVIEW), shown(browser, "review", {**REVIEW, "valid_until": "4d"})
    size = desk.context.ledger.state.size
    refused = signed(browser, one, passkey, file=hidden(other, "file"))
    assert (refused.status_code, "challenge" in refused.text) == (403, True)
    assert last_types(desk, size) == []
    assert entry_of(desk, signed(browser, other, passkey)).type == "review.recorded"


TABS = ("changes", "findings", "quality")


def asked(browser: Browser, **changes: str) -> httpx.Response:
    return browser.fill("review", {**REVIEW, **changes})


@pytest.mark.thorough
def test_an_approval_is_prepared_once_its_session_opened_changes_gates_and_findings(desk: Console) -> None:
    browser, other = desk.signed_in("rita"), desk.signed_in("rita")
    desk.site.request_release()
    for count, tab in enumerate(TABS):
        refused = asked(browser)
        assert (refused.status_code, "not-opened" in refused.text) == (403, True)
        assert "/adapters/clauses@1" in refused.text and "I read it." in refused.text
        assert [PART_NOT_OPENED(part=name).sentence in html.unescape(refused.text) for name in TABS] == [
            n >= count for n in range(3)
        ]
        page = browser.get("/adapters/clauses@1").text
        assert f'/adapters/clauses@1?tab={tab}">{tab.capitalize()}</a>' in page[page.index("Before you approve") :]
        browser.get(f"/adapters/clauses@1?tab={tab}")
    assert asked(browser, reason="It fits.").status_code == 200
    assert "Before you approve" not in browser.get("/adapters/clauses@1").text
    assert asked(other).status_code == 403, "another session of the same person opened nothing"
    assert asked(other, decision="reject", valid_until="", reason="It does not.").status_code == 200, (
        "a rejection needs none"
    )


def test_an_answer_without_a_body_opens_nothing(desk: Console) -> None:
    browser = desk.signed_in("rita")
    desk.site.request_release()
    for path in ("/adapters/clauses@1.json", *(f"/adapters/clauses@1?tab={tab}" for tab in TABS)):
        assert browser.http.head(path).status_code == 200
    assert asked(browser).status_code == 403


def test_a_decision_says_what_was_opened_with_the_digest_of_what_it_said(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    entry = entry_of(desk, signed(browser, shown(browser, "review", REVIEW), passkey))
    order = ORDERS.parse(parse_envelope(desk.context.ledger.documents_of(entry.index)["order"]).payload)
    assert isinstance(order, ReviewAdapter)
    assert order.opened == open_parts(review_page(desk.context, "clauses@1"))
    assert [one.part for one in order.opened] == list(TABS)
    page = html.unescape(browser.get(f"/log/{entry.index}").text)
    assert all(one.digest in page for one in order.opened)
    assert verify(desk.site).findings == ()


def test_what_changed_since_it_was_opened_is_opened_again(desk: Console) -> None:
    """Before it is prepared, and between show and sign; that refusal is an entry."""
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = shown(browser, "review", REVIEW)
    desk.site.find()
    refused = asked(browser)
    changed = PART_CHANGED(part="findings").sentence
    assert (refused.status_code, changed in html.unescape(refused.text)) == (403, True)
    size = desk.context.ledger.state.size
    refused = signed(browser, answer, passkey)
    assert (refused.status_code, changed in html.unescape(refused.text)) == (403, True)
    assert last_types(desk, size) == ["order.refused"]


def test_of_a_recipe_what_has_a_default_is_folded(desk: Console) -> None:
    form = desk.signed_in("olga").get("/sign/train").text
    opened, _, rest = form.partition("<summary>More values of the recipe")
    folded, _, after = rest.partition("</details>")
    assert all(f'name="recipe.{name}"' in opened for name in ("name", "base", "dataset"))
    assert 'name="recipe.rank"' in folded and "required" not in folded and "recipe." not in after
    assert '<details class="part"><summary>Where it trains' in after
    assert "More values" not in desk.signed_in("olga").get("/sign/request-release").text


def test_a_reviewer_of_one_field_finds_it_filled_in(desk: Console) -> None:
    form = desk.signed_in("rita").get("/sign/review").text
    assert '<option value="privacy" selected>' in form


def test_an_order_that_says_more_than_its_session_opened_is_refused(desk: Console) -> None:
    """A page that lies, or a statement made elsewhere."""
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    answer = shown(desk.signed_in("rita"), "review", REVIEW)
    another, size = desk.signed_in("rita"), desk.context.ledger.state.size
    refused = signed(another, answer, passkey)
    unopened = PART_NOT_OPENED(part="changes").sentence
    assert (refused.status_code, unopened in html.unescape(refused.text)) == (403, True)
    answer = shown(desk.signed_in("rita"), "review", {**REVIEW, "decision": "reject", "valid_until": ""})
    refused = signed(another, answer, passkey)
    unopened = PART_NOT_OPENED(part="changes").sentence
    assert (refused.status_code, unopened in html.unescape(refused.text)) == (403, True)
    assert last_types(desk, size) == ["order.refused", "session.opened", "order.refused"]


def test_an_order_with_other_digests_than_those_of_the_opened_parts_is_refused(desk: Console) -> None:
    desk.site.request_release()
    parts = open_parts(review_page(desk.context, "clauses@1"))
    fetched = {one.part: one.digest for one in parts}
    order = desk.site.review_order("rita", "privacy", opened=parts)
    assert against_opened(desk.context, order, fetched) == ()
    other = parts[0].model_copy(update={"digest": digest_bytes(b"another page")})
    for opened in ((other, *parts[1:]), parts[1:]):
        changed = order.model_copy(update={"opened": opened})
        assert [reason.code for reason in against_opened(desk.context, changed, fetched)] == ["parts-differ"]
    del fetched["changes"]
    assert [reason.code for reason in against_opened(desk.context, order, fetched)] == ["part-not-opened"]
    fetched["changes"] = other.digest
    assert [reason.code for reason in against_opened(desk.context, order, fetched)] == ["part-changed"]


def test_an_assertion_is_taken_once(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = shown(browser, "review", REVIEW)
    fields = {"csrf": browser.csrf, **asserted(answer, passkey)}
    assert browser.post("/signed", fields).status_code == 303
    again = browser.post("/signed", fields)
    assert (again.status_code, "accepted as entry" in again.text) == (409, True)


def test_a_revoked_passkey_signs_nothing(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = shown(browser, "review", REVIEW)
    order = desk.site.order(RevokeKey, "anna", principal="rita", keyid=passkey.keyid, since=None)
    desk.site.ordered(KeyRevoked(policy=desk.site.in_force), order)
    refused = signed(browser, answer, passkey)
    ended = KEY_ENDED(f"key:{passkey.keyid}").sentence
    assert (refused.status_code, ended in html.unescape(refused.text)) == (403, True)
    assert told(shown(browser, "review", REVIEW))["allowed"] == []


def test_a_page_that_went_stale_is_refused_and_the_refusal_is_an_entry(desk: Console) -> None:
    """The release is requested between show and sign: the approval would be on none."""
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = shown(browser, "review", REVIEW)
    desk.site.request_release()
    size = desk.context.ledger.state.size
    refused = signed(browser, answer, passkey)
    assert refused.status_code == 403, refused.text
    assert "The order does not name the current release request." in html.unescape(refused.text)
    assert last_types(desk, size) == ["order.refused"]


def test_another_person_s_passkey_or_order_signs_nothing(desk: Console) -> None:
    ritas, rauls = (desk.site.enrol_passkey(name, new_passkey(**HERE)) for name in ("rita", "raul"))
    browser, other = desk.signed_in("rita"), desk.signed_in("raul")
    answer = shown(browser, "review", REVIEW)
    refused = signed(browser, answer, rauls)
    assert (refused.status_code, "This passkey is not enrolled for rita." in html.unescape(refused.text)) == (403, True)
    refused = other.post("/signed", {"csrf": other.csrf, **asserted(answer, ritas)})
    assert (refused.status_code, "expected one signed by raul" in refused.text) == (403, True)


def test_a_changed_text_is_refused(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    answer = shown(browser, "review", REVIEW)
    value = json.loads(hidden(answer, "file"))
    value["disclosures"][0]["text"] = "I read nothing."
    refused = signed(browser, answer, passkey, file=json.dumps(value, separators=(",", ":"), sort_keys=True))
    assert (refused.status_code, "disclosure" in refused.text) == (422, True)
    assert "I read nothing" not in str(desk.site.disclosures)


def test_a_second_administrator_sees_the_order_and_countersigns_it(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("ben", new_passkey(**HERE))
    order, documents = desk.site.enrolment("eve", ("auditor",))
    pending = desk.site.pend(order, documents)
    browser = desk.signed_in("ben")
    answer = shown(browser, "countersign", {"order": pending.pae_digest})
    other = re.search(r'data-countersigned="([^"]*)"', answer.text)
    assert other is not None
    proposal, _ = parse_proposal(html.unescape(other[1]).encode())
    assert proposal.order == order
    assert entry_of(desk, signed(browser, answer, passkey)).type == "principal.enrolled"


def test_a_passkey_is_made_proved_and_enrolled_in_the_console(desk: Console) -> None:
    for name in ("anna", "ben"):
        desk.site.keys[name + "-passkey"] = desk.site.enrol_passkey(name, new_passkey(**HERE))
    made, browser = new_passkey(**HERE), desk.signed_in("rita")
    fields = {"csrf": browser.csrf, "name": "blue", "data": encode_base64url(made.creation_data)}
    answer = browser.post("/passkeys/new", fields)
    assert answer.status_code == 200, answer.text
    proof = browser.post("/passkeys/proof", {"csrf": browser.csrf, **asserted(answer, made)})
    assert proof.headers["content-disposition"] == 'attachment; filename="rita-blue.proof"'
    envelope = parse_envelope(proof.content.removesuffix(b"\n"))
    statement = parse_credential(PasskeyPossession, envelope.payload)
    assert (statement.origins, statement.rp_id, statement.keyid) == ((URL,), "localhost", made.keyid)
    first, second = desk.signed_in("anna"), desk.signed_in("ben")
    asked = shown(first, "enrol-passkey", {"possession": proof.text})
    pending = entry_of(desk, signed(first, asked, desk.site.keys["anna-passkey"]))  # type: ignore[arg-type]
    assert pending.outcome == "pending"
    order = pending.subjects[0].removeprefix("order:")
    countersigned = shown(second, "countersign", {"order": order})
    assert entry_of(desk, signed(second, countersigned, desk.site.keys["ben-passkey"])).type == "passkey.enrolled"  # type: ignore[arg-type]
    assert "blue" in browser.get("/passkeys").text


def test_a_proof_that_does_not_hold_is_no_file(desk: Console) -> None:
    made, browser = new_passkey(**HERE), desk.signed_in("rita")
    fields = {"csrf": browser.csrf, "name": "blue", "data": encode_base64url(made.creation_data)}
    answer = browser.post("/passkeys/new", fields)
    refused = browser.post("/passkeys/proof", {"csrf": browser.csrf, **asserted(answer, made.wrong(flags=0x01))})
    assert refused.status_code >= 400 and "user present and verified" in refused.text
    other = desk.signed_in("raul")
    refused = other.post("/passkeys/proof", {"csrf": other.csrf, **asserted(answer, made)})
    assert (refused.status_code, "expected one of raul, got one of rita" in refused.text) == (403, True)


def test_what_policy_refuses_is_refused_before_it_is_made(home: Path) -> None:
    with console("staffed", home) as desk:
        browser = desk.signed_in("rita")
        page = browser.get("/passkeys/new").text
        assert "passkeys_on_localhost" in page and "adopt a policy set that allows it" in page
        made = new_passkey(**HERE)
        fields = {"csrf": browser.csrf, "name": "blue", "data": encode_base64url(made.creation_data)}
        assert browser.post("/passkeys/new", fields).status_code == 403


def test_a_synced_passkey_is_refused_when_it_is_made(desk: Console) -> None:
    browser, made = desk.signed_in("rita"), new_passkey(**HERE, flags=0x0D)
    fields = {"csrf": browser.csrf, "name": "blue", "data": encode_base64url(made.creation_data)}
    answer = browser.post("/passkeys/new", fields)
    assert (answer.status_code, "passkeys_synced" in answer.text) == (403, True)


# Signing in.


def test_a_passkey_signs_its_person_in(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.browser()
    answer = browser.get("/sign-in/passkey.json?name=rita")
    told = json.loads(answer.json()["script_data"])
    assert told["kind"] == "statement:session" and told["allowed"] == []
    size = desk.context.ledger.state.size
    assert browser.post("/sign-in/passkey.json", assertion(answer.json()["file"], passkey)).status_code == 200
    assert browser.get("/home").status_code == 200
    assert last_types(desk, size) == ["session.opened"]


def test_the_page_of_a_sign_in_does_not_say_who_is_enrolled(desk: Console) -> None:
    desk.site.enrol_passkey("rita", new_passkey(**HERE))

    def page(name: str) -> str:
        text = desk.browser().get(f"/sign-in/passkey.json?name={name}").json()["script_data"]
        return str(text).replace(name, "NAME")

    assert page("rita") == page("nobody") == page("raul")


@pytest.mark.parametrize("wrong", [{"origin": "http://localhost:9999"}, {"flags": 0x01}, {"rp_id": "evil.example"}])
def test_a_wrong_assertion_signs_nobody_in(desk: Console, wrong: dict[str, Any]) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.browser()
    fields = sign_in(browser, "rita", passkey.wrong(**wrong))
    size = desk.context.ledger.state.size
    refused = browser.post("/sign-in/passkey.json", fields)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "not-authenticated")
    assert last_types(desk, size) == []


def test_a_sign_in_cannot_be_replayed_and_is_no_order(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.browser()
    fields = sign_in(browser, "rita", passkey)
    assert browser.post("/sign-in/passkey.json", fields).status_code == 200
    assert desk.browser().post("/sign-in/passkey.json", fields).status_code == 401
    refused = browser.post("/signed", {"csrf": browser.csrf, **fields})
    assert refused.status_code == 400
    order = asserted(shown(browser, "review", REVIEW), passkey)
    assert desk.browser().post("/sign-in/passkey.json", order).status_code == 400


def test_a_session_ends_with_the_passkey_that_opened_it(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.browser()
    browser.post("/sign-in/passkey.json", sign_in(browser, "rita", passkey))
    assert browser.get("/home").status_code == 200
    desk.site.ordered(
        KeyRevoked(policy=desk.site.in_force),
        desk.site.order(RevokeKey, "anna", principal="rita", keyid=passkey.keyid, since=None),
    )
    assert browser.get("/home").status_code == 401


# Forms.


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_every_action_has_a_form_or_is_named_as_one_of_the_command_line(desk_of_forms: Browser, action: str) -> None:
    answer = desk_of_forms.get(f"/sign/{action}")
    assert answer.status_code == (200 if ACTIONS[action].has_form else 404), answer.text
    if ACTIONS[action].has_form:
        assert all(f'id="f-{one.name}"' in answer.text for one in shown_fields(action))


def shown_fields(action: str) -> list[Field]:
    """Return the fields of a form while no order waits that enrols a person with a passkey."""
    return [one for one in fields_of(action) if (action, one.name) != ("countersign", "short_code")]


@pytest.mark.parametrize("action", sorted(name for name, action in ACTIONS.items() if action.has_form))
def test_a_choice_begins_with_a_sensible_value_or_asks_for_one(desk_of_forms: Browser, action: str) -> None:
    text = desk_of_forms.get(f"/sign/{action}").text
    for found in re.findall(r"<select.*?</select>", text, re.S):
        options = re.findall(r"<option[^>]*>([^<]*)<", found)
        assert options[0] in ("choose…", "none") or found.count(" selected>") == 1, found
        assert "" not in options
    if action.startswith("import-"):
        chosen = re.findall(r"<option [^>]*selected>([^<]*)<", text)
        assert chosen[:2] == ["classification", "csv"]


REQUIRED = re.compile(r"<label for=\"f-([^\"]+)\">[^<]*<span class=\"quiet\">([^<]*)</span>")


@pytest.mark.parametrize("action", sorted(name for name, action in ACTIONS.items() if action.has_form))
def test_each_field_says_whether_it_is_required(desk_of_forms: Browser, action: str) -> None:
    text = desk_of_forms.get(f"/sign/{action}").text
    said = dict(REQUIRED.findall(text))
    for one in shown_fields(action):
        if one.kind not in ("yes", "words", "secret"):
            assert said[one.name].startswith("optional" if one.optional and not one.needed else "required"), one.name
            tag = re.search(rf'<(?:input|select|textarea)[^>]*id="f-{re.escape(one.name)}"[^>]*>', text)
            assert tag is not None and (" required" in tag[0]) <= (not one.optional), one.name


@pytest.fixture(scope="module")
def desk_of_forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with console("staffed", tmp_path_factory.mktemp("f") / "h") as made:
        yield made.signed_in("anna")


POLICY = {
    "policy.name": "stricter",
    "policy.parameters": '{"reviewers": 3}',
    "policy.cedar": '@id("all") permit (principal, action, resource);',
    "policy.schema": (POLICY_FOLDER / "schema.cedarschema").read_text(),
}


@pytest.mark.parametrize(
    ("name", "action", "fields", "members"),
    [
        ("rita", "review", {**REVIEW, "decision": "reject", "valid_until": ""}, {"decision": "reject", "version": 1}),
        (
            "rita",
            "review",
            {
                **REVIEW,
                "decision": "approve-with-conditions",
                "conditions.served_models": "labels, advice",
                "reason": "Few.",
            },
            {"decision": "approve-with-conditions"},
        ),
        (
            "rita",
            "add-finding",
            {
                **{
                    "adapter": "clauses@1",
                    "kind": "issue",
                    "severity": "high",
                    "blocks": "yes",
                    "review_function": "privacy",
                },
                **{"owner": "olga", "due": "7d", "finding": "A name.", "remedy": "None.", "retest": "Ask."},
            },
            {"blocks": True, "severity": "high"},
        ),
        ("rita", "delegate", {"principal": "raul", "review_function": "privacy", "until": "7d"}, {"principal": "raul"}),
        (
            "olga",
            "request-release",
            {
                **{"adapter": "clauses@1", "unit": "legal", "exposure": "public", "purpose": "decide"},
                **{"intended_use": "Sorting.", "limits": "No advice."},
            },
            {"tier": "high"},
        ),
        (
            "otto",
            "activate",
            {"adapter": "clauses@1", "unit": "legal", "served_model": "labels"},
            {"adds_instruction": False},
        ),
        ("anna", "grant", {"principal": "rita", "role": "reviewer:safety"}, {"role": "reviewer:safety"}),
        ("anna", "remove-role", {"principal": "rita", "role": "reviewer:safety"}, {"role": "reviewer:safety"}),
        ("anna", "revoke-principal", {"principal": "rita", "reason": "Left."}, {"principal": "rita"}),
        ("rita", "revoke-dataset", {"dataset": "clauses@1"}, {"version": 1}),
        ("rita", "revoke-base", {"base": "smollm2"}, {"base": "smollm2"}),
        ("anna", "adopt-policy", POLICY, {}),
        ("anna", "raise-rules", {"rules": "2"}, {"rules": 2}),
        ("audrey", "place-hold", {"subject": "adapter:clauses@1"}, {"subject": "adapter:clauses@1"}),
        ("anna", "revoke-tokens", {"unit": "legal", "issued_before": "now"}, {"token": None, "application": None}),
        (
            "olga",
            "train",
            {"recipe.name": "other", "recipe.base": "smollm2", "recipe.dataset": "clauses@1", "recipe.rank": "8"},
            {"gates": None},
        ),
    ],
)
def test_a_form_makes_the_order_that_its_fields_say(
    desk: Console, name: str, action: str, fields: dict[str, str], members: dict[str, Any]
) -> None:
    answer = shown(desk.signed_in(name), action, fields)
    proposal, _ = parse_proposal(hidden(answer, "file").encode())
    order = proposal.order.model_dump(mode="json")
    assert (order["signer"], proposal.order.action) == (name, action)
    assert {key: order[key] for key in members} == members
    assert ORDERS.parse(encode_order(proposal.order)) == proposal.order
    texts = {one.commitment: one.text for one in proposal.disclosures}
    assert {texts[order[key]] for key in proposal.order.commitments()} == {
        fields[key] for key in proposal.order.commitments()
    }


def test_a_run_is_bound_to_the_gates_that_were_pasted(desk: Console) -> None:
    gates = encode_value(gates_file(gates=[one_gate()]))
    fields = {"recipe.name": "other", "recipe.base": "smollm2", "recipe.dataset": "clauses@1"}
    fields["gates.other"] = gates.decode()
    browser = desk.signed_in("olga")
    proposal, _ = parse_proposal(hidden(shown(browser, "train", fields), "file").encode())
    assert proposal.documents == {"gates": gates}
    assert proposal.order.model_dump(mode="json")["gates"] == digest_bytes(gates)
    fields["gates.other"] = encode_value(gates_file(gates=[one_gate(set="nowhere")])).decode()
    answer = browser.fill("train", fields)
    known = "set nowhere: this base model has no valid validation set of this name. Name one of these: held-out"
    assert (answer.status_code, known in answer.text) == (404, True)


REPOSITORY = Path(__file__).resolve().parents[3]
GATES = [
    Path("examples/contracts/gates.json"),
    *(Path("policies/gates") / f"{name}.json" for name in ("classification", "preferences", "thorough")),
]


@pytest.mark.parametrize("file", GATES, ids=str)
def test_a_gates_file_as_people_write_it_binds_what_the_command_line_binds(desk: Console, file: Path) -> None:
    path = REPOSITORY / file
    fields = {"recipe.name": "other", "recipe.base": "smollm2", "recipe.dataset": "clauses@1"}
    browser = desk.signed_in("olga")
    text = path.read_text().replace("\n", "\r\n")  # as a browser sends it
    answer = browser.fill("train", {**fields, "gates.other": text})
    bound = load_gates(path)
    assert answer.status_code == 200, answer.text
    proposal, _ = parse_proposal(hidden(answer, "file").encode())
    assert proposal.documents == {"gates": bound.data}
    assert proposal.order.model_dump(mode="json")["gates"] == bound.digest


@pytest.mark.thorough
def test_a_policy_set_begins_as_the_one_in_force_and_is_adopted_by_two(desk: Console) -> None:
    passkeys = {name: desk.site.enrol_passkey(name, new_passkey(**HERE)) for name in ("anna", "ben")}
    first, second = desk.signed_in("anna"), desk.signed_in("ben")
    fields = {one["name"]: one["value"] for one in first.get("/sign/adopt-policy.json").json()["fields"]}
    assert json.loads(fields["policy.parameters"])["passkeys_on_localhost"] is True
    changed = {**json.loads(fields["policy.parameters"]), "reviewers": 3}
    fields["policy.parameters"] = json.dumps(changed)
    pending = entry_of(desk, signed(first, shown(first, "adopt-policy", fields), passkeys["anna"]))
    order = pending.subjects[0].removeprefix("order:")
    adopted = entry_of(desk, signed(second, shown(second, "countersign", {"order": order}), passkeys["ben"]))
    assert adopted.type == "policy.adopted"
    assert desk.context.ledger.state.parameters.reviewers == 3


@pytest.mark.thorough
def test_a_delegate_finds_what_to_decide_and_decides_in_the_reviewers_place(desk: Console) -> None:
    desk.site.request_release()
    desk.site.enrol("dana", "release-owner:legal")
    desk.site.delegate("dana")
    passkey = desk.site.enrol_passkey("dana", new_passkey(**HERE))
    browser = desk.signed_in("dana")
    assert "clauses@1 for legal" in browser.get("/home").text and "in the place of rita" in browser.get("/home").text
    assert "clauses@1" in browser.get("/reviews").text
    assert "review" in {row["action"] for row in browser.get("/sign.json").json()["actions"]}
    for name, side, title in (
        ("rita", "given", "Others decide in the place of rita"),
        ("dana", "received", "dana decides in the place of others"),
    ):
        (held,) = browser.get(f"/people/{name}.json").json()[side]
        delegation = held["delegation"]
        assert (delegation["review_function"], delegation["delegator"], delegation["delegate"], held["ended"]) == (
            "privacy",
            "rita",
            "dana",
            None,
        )
        assert title in browser.get(f"/people/{name}").text
    page = html.unescape(browser.get("/adapters/clauses@1").text)
    found = re.search(r'In the place of rita \(privacy\):</span><a class="choice" href="([^"]+)">Approve</a>', page)
    assert found is not None
    form = html.unescape(browser.get(found[1]).text)
    assert '<option value="privacy" selected>' in form and '<option value="rita" selected>' in form
    fields = {**REVIEW, "on_behalf_of": "rita", "reason": "She is away."}
    entry = entry_of(desk, signed(browser, shown(browser, "review", fields), passkey))
    assert (entry.type, entry.actor) == ("review.recorded", "dana")
    assert "clauses@1 for legal" not in browser.get("/home").text
    assert "In the place of" not in desk.signed_in("audrey").get("/adapters/clauses@1").text


def test_a_second_tab_is_told_by_which_entry_the_order_took_effect(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("ben", new_passkey(**HERE))
    order, documents = desk.site.enrolment("eve", ("auditor",))
    digest = desk.site.pend(order, documents).pae_digest
    browser = desk.signed_in("ben")
    one, other = (shown(browser, "countersign", {"order": digest}) for _ in range(2))
    done = entry_of(desk, signed(browser, one, passkey))
    for late in (signed(browser, other, passkey), browser.fill("countersign", {"order": digest})):
        assert (late.status_code, "in-effect" in late.text) == (409, True), late.text
        page = html.unescape(late.text)
        assert f"took effect as entry {done.index}" in page and f'href="/log/{done.index}"' in page
        assert "Sign the order again" not in page and "site's own policies" not in page


def test_a_person_rotates_to_a_key_file_that_proved_itself(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser, key = desk.signed_in("rita"), generate_ed25519()
    proof = encode_envelope(desk.site.possession("rita", key)).decode()
    answer = shown(browser, "rotate-key", {"possession": proof, "old_until": "1h"})
    assert entry_of(desk, signed(browser, answer, passkey)).type == "key.enrolled"
    assert told(shown(browser, "review", REVIEW))["allowed"] == [encode_base64url(passkey.credential_id)]


def test_the_plan_of_a_run_is_shown_before_its_order_is_signed(desk: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = desk.signed_in("olga")
    fields = {"recipe.base": "smollm2", "recipe.dataset": "clauses@1", "recipe.name": "new"}
    text = shown(browser, "train", fields).text
    for words in ("The plan", "Steps", "Most memory", "It is not signed"):
        assert words in text
    assert "It would be refused now" not in text
    monkeypatch.setattr(planning, "host_memory", lambda *, now: 1 << 20)
    refused = shown(browser, "train", fields).text
    assert "It would be refused now" in refused and "plan, memory: expected at most" in refused


def _write(gate: dict[str, Any]) -> str:
    return encode_value(gates_file(gates=[gate])).decode()


def test_a_gate_that_cannot_be_passed_is_named_before_the_order_is_signed(desk: Console) -> None:
    browser = desk.signed_in("olga")
    fields = {"recipe.base": "smollm2", "recipe.dataset": "clauses@1", "recipe.name": "new"}
    gate, count = one_gate(least_items=100), 100
    text = html.unescape(shown(browser, "train", {**fields, "gates.other": _write(gate)}).text)
    assert "cannot be passed" not in text and f"Gate {gate['name']}</dt>" in text
    gate = one_gate(least_items=count + 1)
    text = html.unescape(shown(browser, "train", {**fields, "gates.other": _write(gate)}).text)
    assert f"Gate {gate['name']}: the set held-out has {count} items" in text and "it cannot be passed." in text


def test_what_a_recipe_leaves_to_auto_is_resolved_by_the_service_and_said_so(desk: Console) -> None:
    fields = {"recipe.name": "other", "recipe.base": "smollm2", "recipe.dataset": "clauses@1", "recipe.rank": "8"}
    proposal, _ = parse_proposal(hidden(shown(desk.signed_in("olga"), "train", fields), "file").encode())
    recipe = proposal.order.model_dump(mode="json")["recipe"]
    assert recipe["rank"] == 8 and recipe["batch_size"] == 8
    left = {f"recipe.{name}" for name in ("alpha", "batch_size", "device")}
    assert left <= proposal.reported and "recipe.rank" not in proposal.reported


@pytest.mark.parametrize(
    ("action", "fields", "words", "field"),
    [
        ("review", {**REVIEW, "adapter": "nothing@1"}, "adapter: expected one of clauses@1", "adapter"),
        ("review", {**REVIEW, "valid_until": "soon"}, "valid until: expected", "valid_until"),
        ("review", {**REVIEW, "valid_until": ""}, "An approval needs a date", "valid_until"),
        ("review", {**REVIEW, "decision": "request-changes", "valid_until": ""}, "needs a reason", "reason"),
        ("review", {**REVIEW, "meaning": ""}, "meaning: expected a value, got none", "meaning"),
        ("review", {**REVIEW, "unit": "No Unit"}, "unit: expected", "unit"),
        (
            "review",
            {**REVIEW, "conditions.served_models": "No Model!"},
            "served models: expected",
            "conditions.served_models",
        ),
        (
            "review",
            {**REVIEW, "conditions.answers_a_day": "0"},
            "responses a day: expected",
            "conditions.answers_a_day",
        ),
        ("adopt-policy", {**POLICY, "policy.parameters": "{"}, "parameters.json: expected JSON", "policy.parameters"),
        ("add-finding", {"adapter": "clauses@1", "kind": "lie"}, "expected a value, got none", "finding"),
        (
            "revoke-key",
            {"principal": "rita", "keyid": "x", "since": "-1"},
            "invalid from entry: expected a whole number",
            "since",
        ),
        ("revoke-key", {"principal": "rita", "keyid": "x"}, "key id: expected", "keyid"),
        ("enrol-passkey", {"possession": "{}"}, "envelope", ""),
        ("countersign", {"order": "sha256:" + "0" * 64}, "expected one that waits", "order"),
        (
            "train",
            {"recipe.name": "a", "recipe.base": "smollm2", "recipe.dataset": "no@1"},
            "dataset",
            "recipe.dataset",
        ),
        ("train", {"recipe.name": "a", "recipe.base": "smollm2", "recipe.rank": "x"}, "dataset", "recipe.dataset"),
        (
            "train",
            {
                "recipe.name": "a",
                "recipe.base": "smollm2",
                "recipe.dataset": "clauses@1",
                "recipe.epochs": "90",
                "recipe.save_steps": "1",
            },
            "save steps: expected at least",
            "recipe.save_steps",
        ),
    ],
)
def test_a_form_that_does_not_fit_says_which_field(
    desk: Console, action: str, fields: dict[str, str], words: str, field: str
) -> None:
    browser = desk.signed_in("anna" if action == "adopt-policy" else "rita")
    browser.get("/adapters/clauses@1.json")
    answer = browser.fill(action, fields)
    assert 400 <= answer.status_code < 500, answer.text
    page = html.unescape(answer.text)
    assert words[:1].upper() + words[1:] in page or words in page
    if field:
        assert f'<a href="#f-{field}">' in page and f'id="p-{field}">' in page and 'aria-invalid="true"' in page
    for text in fields.values():
        assert text in page, "what was typed is kept"


def test_what_would_be_refused_is_said_before_it_is_signed(desk: Console) -> None:
    answer = shown(desk.signed_in("olga"), "review", REVIEW)
    assert "It would be refused now" in answer.text
    assert "olga is operator. This action needs reviewer:privacy." in html.unescape(answer.text)


def test_the_envelope_is_one_like_any_other(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    entry = entry_of(desk, signed(browser, shown(browser, "review", REVIEW), passkey))
    envelope = parse_envelope(desk.context.ledger.documents_of(entry.index)["order"])
    verify_envelope(envelope, passkey.spki, passkey.scope)
