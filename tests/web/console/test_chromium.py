"""In real Chromium with a virtual authenticator: passkeys are made, enrolled and sign, and what is no assertion does
not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.governance.keys import KeyRevoked, RevokeKey
from appliance.domain.governance.passkeys import PASSKEY_MEMBERS, EnrollPasskey, PasskeyEnrolled, passkeys_of
from appliance.domain.rulebook.proposals import Proposal, encode_proposal
from appliance.domain.rulebook.registry import VERBS
from appliance.domain.rulebook.showing import describe
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import pae, parse_envelope
from appliance.web.console.signing.statements import members_of
from appliance.workflows.data import checks
from tests.access.test_cedar import ORDERED, SITE
from tests.domain.audit.test_verify import verify
from tests.domain.evaluation.test_judging import gate_set, one_gate
from tests.kit.chromium import Tab, browser, open_tab, served
from tests.kit.console import Console
from tests.kit.founded import policy_set
from tests.web.console.test_browser import _axe
from tests.web.console.test_imports import FOUND, ROWS

pytestmark = [pytest.mark.outside, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def launched() -> Iterator[Any]:
    with browser() as made:
        yield made


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with served("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        yield made


def signed_in(desk: Console, launched: Any, name: str) -> Tab:
    """By a link, as the command line gives it."""
    tab = open_tab(launched, desk.url)
    tab.page.goto(desk.link(name))
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.wait_for_url("**/home")
    return tab


def enrolled(desk: Console, tab: Tab, name: str, passkey: str = "blue") -> bytes:
    """The person makes a passkey in the browser; the administrators enrol it. Its proof."""
    tab.page.goto("/passkeys/new")
    tab.page.get_by_label("Name").fill(passkey)
    tab.page.get_by_role("button", name="Make it").click()
    tab.page.get_by_text("step 2 of 2").wait_for()
    with tab.page.expect_download() as downloading:
        tab.page.get_by_role("button", name="Prove it and save the file").click()
    proof = Path(downloading.value.path()).read_bytes().removesuffix(b"\n")
    assert downloading.value.suggested_filename == f"{name}-{passkey}.proof"
    enroll(desk, proof)
    return proof


def enroll(desk: Console, proof: bytes) -> None:
    envelope = parse_envelope(proof)
    said = parse_credential(PasskeyPossession, envelope.payload)
    values = {member: getattr(said, member) for member in ("key", "keyid", *PASSKEY_MEMBERS)}
    order = desk.site.order(EnrollPasskey, "anna", principal=said.signer, possession=envelope.pae_digest, **values)
    desk.site.two(PasskeyEnrolled(policy=desk.site.in_force), order, {"possession": proof})


def show_review(tab: Tab, decision: str = "approve", **fields: str) -> None:
    """The page that shows what is signed, once the review page was opened."""
    for part in ("changes", "quality", "findings"):
        tab.page.goto(f"/adapters/clauses@1?tab={part}")
    tab.page.goto("/sign/review?given=adapter:clauses@1&given=unit:legal&given=field:privacy")
    tab.page.get_by_label("decision").select_option(decision)
    tab.page.get_by_label("meaning").fill(fields.get("meaning", "I read it."))
    if decision == "approve":
        tab.page.get_by_label("valid until").fill(fields.get("until", "5d"))
    tab.page.get_by_role("button", name="Show what is signed").click()
    tab.page.get_by_text("You are about to sign").wait_for()
    tab.page.locator("[data-identity]", has_text="sha256:").wait_for()


def press_sign(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Sign with a passkey").click()


def lines(tab: Tab) -> dict[str, str]:
    return dict(
        tab.page.eval_on_selector_all(
            "[data-lines] > div", "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
        )
    )


def newest(desk: Console) -> Any:
    return parse_entry(desk.context.ledger.entry_bytes(desk.context.ledger.state.size - 1))


def test_a_reviewer_makes_a_passkey_signs_in_with_it_and_approves(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    tab.page.goto("/home")
    tab.page.get_by_role("button", name="Sign out").click()
    tab.page.get_by_label("Your name").fill("rita")
    tab.page.get_by_role("button", name="Sign in with a passkey").click()
    assert lines(tab)["signer"] == "rita"
    tab.page.get_by_role("button", name="Use the passkey").click()
    tab.page.wait_for_url("**/home")
    show_review(tab)
    assert (lines(tab)["decision"], lines(tab)["meaning"]) == ("approve", "I read it.")
    identity = tab.page.locator("[data-identity]").text_content()
    press_sign(tab)
    tab.page.wait_for_url("**/log/*")
    entry = newest(desk)
    assert (entry.type, entry.actor) == ("review.recorded", "rita")
    assert entry.subjects[0] == f"order:{identity}"
    assert tab.errors == [] and tab.hosts == {desk.url.removeprefix("http://")}
    assert verify(desk.site).findings == ()


def test_a_unit_s_person_makes_a_passkey_signs_in_under_the_unit_s_name_and_asks(home: Path, launched: Any) -> None:
    with served("serving", home) as desk:
        desk.site.adopt(policy_set(passkeys_on_localhost=True))
        tab = signed_in(desk, launched, "legal")
        tab.authenticator()
        enrolled(desk, tab, "legal", "nina")
        tab.page.goto("/home")
        tab.page.get_by_role("button", name="Sign out").click()
        tab.page.get_by_label("Your name").fill("legal")
        tab.page.get_by_role("button", name="Sign in with a passkey").click()
        tab.page.get_by_role("button", name="Use the passkey").click()
        tab.page.wait_for_url("**/home")
        tab.page.goto("/releases")
        tab.page.get_by_role("link", name="ask it").click()
        tab.page.get_by_label("your text").fill("Who pays?")
        tab.page.get_by_role("button", name="Ask", exact=True).click()
        tab.page.get_by_role("heading", name="The proof of it").wait_for()
        assert tab.errors == [] and tab.hosts == {desk.url.removeprefix("http://")}
        ledger = desk.context.ledger
        ((opened, _),) = ledger.find(types=["session.opened"], newest=True, limit=1)
        session = parse_envelope(ledger.documents_of(opened)["session"])
        ((_, data),) = ledger.find(types=["request.admitted"], newest=True, limit=1)
        key = ledger.state.keys.get(session.signature.keyid)
        assert parse_entry(data).body["token"] == session.pae_digest
        assert key is not None and key.passkey is not None and key.passkey.name == "nina"
        assert verify(desk.site).findings == ()


def test_a_click_without_the_user_s_verification_signs_nothing(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    key = tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    size = desk.context.ledger.state.size
    tab.set_verified(key, verified=False)
    press_sign(tab)
    tab.page.get_by_text("Nothing was signed.").wait_for()
    assert desk.context.ledger.state.size == size
    tab.set_verified(key, verified=True)
    press_sign(tab)
    tab.page.wait_for_url("**/log/*")


def test_an_authenticator_that_cannot_verify_its_user_makes_no_passkey(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator(hasUserVerification=False, isUserVerified=False)
    tab.page.goto("/passkeys/new")
    tab.page.get_by_label("Name").fill("blue")
    tab.page.get_by_role("button", name="Make it").click()
    tab.page.get_by_text("No passkey was made.").wait_for()


def test_a_passkey_that_can_be_copied_is_refused_when_it_is_made(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator(defaultBackupEligibility=True, defaultBackupState=True)
    tab.page.goto("/passkeys/new")
    tab.page.get_by_label("Name").fill("blue")
    tab.page.get_by_role("button", name="Make it").click()
    tab.page.get_by_text("policy: passkeys_synced").wait_for()


def test_each_tab_signs_what_it_showed(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    first = tab.page.locator("[data-identity]").text_content()
    other = open_tab(launched, desk.url, tab.page.context)
    show_review(other, until="3d")
    assert other.page.locator("[data-identity]").text_content() != first
    press_sign(tab)
    tab.page.wait_for_url("**/log/*")
    assert newest(desk).subjects[0] == f"order:{first}"


def test_a_page_whose_statement_was_exchanged_shows_and_signs_the_other_or_nothing(
    desk: Console, launched: Any
) -> None:
    """The page around it lies: the script reads the bytes, so the lines and the digest are those of what is signed."""
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    file = json.loads(tab.page.locator('input[name="file"]').input_value())
    text = file["disclosures"][0]
    text["text"] = "I read everything."
    size = desk.context.ledger.state.size
    script = "([address, file]) => import(address).then(m => m.open(file)).then(() => 'opened', error => error.message)"
    told = tab.page.evaluate(script, [tab.module(), json.dumps(file)])
    assert "A text is not the one that the statement binds" in told
    # After it was shown, another statement is put in place of it: the assertion is over what was shown.
    tab.page.evaluate(
        "() => { const field = document.querySelector('input[name=file]'); const file = JSON.parse(field.value);"
        "file.statement = btoa(atob(file.statement).replace('approve', 'reject '.trim() + '!')); field.value ="
        "JSON.stringify(file); }"
    )
    press_sign(tab)
    tab.page.get_by_text("did not work").or_(tab.page.get_by_text("refused")).first.wait_for()
    assert desk.context.ledger.state.size == size


def test_a_page_that_went_stale_is_refused_with_the_reason(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    desk.site.request_release()
    press_sign(tab)
    tab.page.get_by_text("This was refused").wait_for()
    assert newest(desk).type == "order.refused"


def test_a_revoked_passkey_signs_nothing(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    key = passkeys_of(desk.context.ledger.state, "rita")[0]
    order = desk.site.order(RevokeKey, "anna", principal="rita", keyid=key.keyid, since=None)
    desk.site.ordered(KeyRevoked(policy=desk.site.in_force), order)
    size = desk.context.ledger.state.size
    press_sign(tab)
    tab.page.get_by_text("which has ended").first.wait_for()
    assert desk.context.ledger.state.size == size


@contextmanager
def neighbour() -> Iterator[str]:
    """A page of another account of the machine."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<button>Win</button>")

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_page_on_another_port_of_localhost_gets_an_assertion_that_counts_for_nothing(
    desk: Console, launched: Any
) -> None:
    """Another account of the machine listens there: rpId and passkey are the same, the origin is not."""
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    file, csrf = (tab.page.locator(f'input[name="{name}"]').first.input_value() for name in ("file", "csrf"))
    csrf = tab.page.locator('form[action="/signed"] input[name="csrf"]').input_value()
    payload = json.loads(file)["statement"]
    credential = passkeys_of(desk.context.ledger.state, "rita")[0].passkey
    assert credential is not None
    with neighbour() as url:
        page = tab.page
        page.goto(url)
        script = """async ([payload, id]) => {
          const raw = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const url = (data) => btoa(String.fromCharCode(...new Uint8Array(data)))
            .replace(/\\+/g, "-").replace(/\\//g, "_").replace(/=+$/, "");
          const body = raw(payload), type = "application/vnd.in-toto+json";
          const head = new TextEncoder().encode(`DSSEv1 ${type.length} ${type} ${body.length} `);
          const whole = new Uint8Array([...head, ...body]);
          const found = await navigator.credentials.get({ publicKey: { rpId: "localhost", userVerification: "required",
            challenge: await crypto.subtle.digest("SHA-256", whole),
            allowCredentials: [{ type: "public-key", id: raw(id.replace(/-/g, "+").replace(/_/g, "/")) }] } });
          return { credential_id: id, authenticator_data: url(found.response.authenticatorData),
            client_data: url(found.response.clientDataJSON), signature: url(found.response.signature) };
        }"""
        stolen = page.evaluate(script, [payload, credential.credential_id])
    size = desk.context.ledger.state.size
    answer = tab.page.context.request.post(
        f"{desk.url}/signed",
        form={"csrf": csrf, "file": file, **stolen},
        headers={"Sec-Fetch-Site": "same-origin", "Origin": desk.url},
    )
    assert answer.status == 403
    assert f"expected {desk.url}" in answer.text() and url in answer.text()
    assert desk.context.ledger.state.size == size


def test_a_second_administrator_endorses_what_the_script_shows_from_its_bytes(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "ben")
    tab.authenticator()
    enrolled(desk, tab, "ben")
    order, documents = desk.site.enrolment("eve", ("auditor",))
    pending = desk.site.pend(order, documents)
    tab.page.goto(f"/sign/endorse?given=order:{pending.pae_digest}")
    tab.page.get_by_role("button", name="Show what is signed").click()
    tab.page.locator("[data-endorsed] dt", has_text="printed name").wait_for()
    assert tab.page.locator("[data-endorsed] dd", has_text="Eve Example").count() == 1
    press_sign(tab)
    tab.page.wait_for_url("**/log/*")
    assert newest(desk).type == "principal.enrolled"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_of_signing_shut_nobody_out(desk: Console, launched: Any, scheme: str) -> None:
    """axe-core's rules hold, and at 360 px nothing sticks out; all of it works by keyboard."""
    tab = signed_in(desk, launched, "rita")
    page = tab.page
    page.emulate_media(color_scheme=scheme)
    tab.authenticator()

    def check() -> None:
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, page.url
            assert _axe(page) == [], page.url

    forms = ("/sign", "/sign/train", "/sign/import-dataset", "/sign/import-validation-set", "/sessions")
    for path in (*forms, "/passkeys/new", "/sign-in", "/sign-in/passkey?name=rita"):
        page.goto(path)
        check()
    page.goto("/passkeys/new")
    page.get_by_label("Name").fill("blue")
    page.get_by_role("button", name="Make it").focus()
    page.keyboard.press("Enter")
    page.get_by_text("step 2 of 2").wait_for()
    check()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Prove it and save the file").focus()
        page.keyboard.press("Enter")
    enroll(desk, Path(downloading.value.path()).read_bytes().removesuffix(b"\n"))
    page.goto("/passkeys")
    check()
    show_review(tab)
    check()
    page.get_by_role("button", name="Sign with a passkey").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/log/*")
    assert tab.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_policy_set_is_compared_before_the_signature_for_everybody(desk: Console, launched: Any, scheme: str) -> None:
    """axe-core's rules hold, and at 360 px nothing sticks out."""
    tab = signed_in(desk, launched, "anna")
    page = tab.page
    page.emulate_media(color_scheme=scheme)
    page.goto("/sign/adopt-policy")
    page.locator('[name="policy.parameters"]').fill(json.dumps({"reviewers": 3, "passkeys_on_localhost": True}))
    page.get_by_role("button", name="Show what is signed").click()
    page.locator("#comparison td", has_text="reviewers").first.wait_for()
    page.locator("#comparison summary").click()
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        assert _axe(page) == []
    assert tab.errors == []


def test_a_tab_signs_no_file_that_it_did_not_hash(
    desk: Console, launched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the service puts into the order must be the digest that this browser computed."""
    monkeypatch.setattr(desk.context.checks, "put", lambda job: job())
    monkeypatch.setattr(desk.context.datasets, "put", lambda job: None)
    monkeypatch.setattr(checks, "_check", lambda *_: FOUND)
    tab = signed_in(desk, launched, "olga")
    page = tab.page
    tab.authenticator()
    enrolled(desk, tab, "olga")

    def send() -> None:
        page.goto("/sign/import-dataset")
        rows = {"name": "rows.csv", "mimeType": "text/csv", "buffer": ROWS}
        page.locator("input[data-upload=file]").set_input_files(rows)
        page.get_by_label("task").select_option("classification")
        page.get_by_label("format").select_option("csv")
        base = next(name for name, _ in desk.context.ledger.state.bases.items())
        said = {"dataset": "letters", "base": base, "owner": "us", "licence": "MIT", "classification": "internal"}
        for name, text in said.items():
            page.locator(f'[name="{name}"]').fill(text)
        page.get_by_role("button", name="Send and check").click()
        page.get_by_role("button", name="Show what is signed").wait_for()

    send()
    page.evaluate("sessionStorage.clear()")
    page.get_by_role("button", name="Show what is signed").click()
    page.get_by_text("This tab did not hash the file").wait_for()
    assert page.get_by_role("button", name="Sign with a passkey").is_disabled()
    send()
    page.get_by_role("button", name="Show what is signed").click()
    page.locator("[data-identity]", has_text="sha256:").wait_for()
    assert lines(tab)["hashed in this tab"] == f"rows.csv, {len(ROWS)} bytes: {digest_bytes(ROWS)}"
    press_sign(tab)
    page.wait_for_url("**/log/*")
    assert newest(desk).type == "import.requested" and tab.errors == []


GATES = encode_value(
    gate_set(
        gates=[
            one_gate(),
            one_gate(
                name="no-harm", leg="rest", claim="no-worse", test="tango", margin="0.02", chance="0.25", slices=[]
            ),
        ]
    )
)


@pytest.fixture(scope="module")
def script(launched: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A page that has the script."""
    with served("staffed", tmp_path_factory.mktemp("s") / "h") as made:
        tab = open_tab(launched, made.url)
        tab.page.goto("/sign-in/passkey?name=rita")
        yield tab


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_script_shows_what_the_command_line_shows(verb: str, script: Tab) -> None:
    """Line by line, for an order of every verb; the digest is the order's identity in the log."""
    order = ORDERED[verb]
    texts = tuple(one for one in SITE.disclosures if one.commitment in order.commitments().values())
    proposals = [Proposal(order, texts)]
    if verb == "train":
        bound = order.model_copy(update={"gates": digest_bytes(GATES)})
        proposals.append(Proposal(bound, texts, {"gates": GATES}, frozenset({"alpha", "device"})))
    read = """async ([address, file, members]) => {
      const module = await import(address), opened = await module.open(file);
      return [await module.describe(opened, members), await module.digest(module.pae(opened.bytes))];
    }"""
    for proposal in proposals:
        file = encode_proposal(proposal)
        told = script.page.evaluate(read, [script.module(), file.decode(), members_of(type(order))])
        payload = SITE.sign(proposal.order).payload
        assert [tuple(line) for line in told[0]] == describe(proposal)
        assert told[1] == digest_bytes(pae("application/vnd.in-toto+json", payload))
