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

from appliance.client.gates import SHIPPED
from appliance.domain.actions.proposals import Proposal, encode_proposal
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.actions.showing import describe
from appliance.domain.core.credentials import PasskeyPossession, parse_credential
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import encode_order
from appliance.domain.governance.keys import KeyRevoked, RevokeKey
from appliance.domain.governance.passkeys import PASSKEY_FIELDS, EnrolPasskey, PasskeyEnrolled, list_passkeys
from appliance.formats.core.commitment import disclose
from appliance.formats.core.digest import digest_bytes
from appliance.formats.signatures.dsse import pae, parse_envelope
from appliance.web.console.signing.statements import describe_fields
from appliance.workflows.data import checks
from appliance.workflows.serving import previews
from tests.domain.audit.test_verify import verify
from tests.domain.evaluation.test_rules import gates_file, one_gate
from tests.kit.chromium import Tab, browser, open_tab, served
from tests.kit.console import Console
from tests.kit.founded import policy_set
from tests.web.console.test_browser import _axe, _wait
from tests.web.console.test_imports import FOUND, ROWS
from tests.web.console.test_previews import answered

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


def signed_in(desk: Console, launched: Any, name: str) -> Tab:
    """By a link, as the command line gives it."""
    tab = open_tab(launched, desk.url)
    tab.page.goto(desk.link(name))
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.wait_for_url("**/home")
    return tab


def enrolled(desk: Console, tab: Tab, name: str, passkey: str = "blue") -> bytes:
    """Make a passkey in the browser as the person, and enrol it as the administrators. Return its proof."""
    tab.page.goto("/passkeys/new")
    tab.page.get_by_label("Name").fill(passkey)
    tab.page.get_by_role("button", name="Make the passkey").click()
    tab.page.get_by_text("step 2 of 2").wait_for()
    with tab.page.expect_download() as downloading:
        tab.page.get_by_role("button", name="Prove it and save the file").click()
    proof = Path(downloading.value.path()).read_bytes().removesuffix(b"\n")
    assert downloading.value.suggested_filename == f"{name}-{passkey}.proof"
    enrol(desk, proof)
    return proof


def enrol(desk: Console, proof: bytes) -> None:
    envelope = parse_envelope(proof)
    said = parse_credential(PasskeyPossession, envelope.payload)
    values = {member: getattr(said, member) for member in ("key", "keyid", *PASSKEY_FIELDS)}
    order = desk.site.order(EnrolPasskey, "anna", principal=said.signer, possession=envelope.pae_digest, **values)
    desk.site.two(PasskeyEnrolled(policy=desk.site.in_force), order, {"possession": proof})


def show_review(tab: Tab, decision: str = "approve", **fields: str) -> None:
    """Open the page that shows what is signed, after the review page was opened."""
    for part in ("changes", "quality", "findings"):
        tab.page.goto(f"/adapters/clauses@1?tab={part}")
    tab.page.goto("/sign/review?given=adapter:clauses@1&given=unit:legal&given=review_function:privacy")
    tab.page.locator('[name="decision"]').select_option(decision)
    tab.page.locator('[name="meaning"]').fill(fields.get("meaning", "I read it."))
    if decision == "approve":
        tab.page.locator('[name="valid_until"]').fill(fields.get("until", "5d"))
    tab.page.get_by_role("button", name="Show what is signed").click()
    tab.page.get_by_text("You are about to sign").wait_for()
    wait_for_lines(tab)


def wait_for_lines(tab: Tab) -> None:
    """Until the script has read what is signed; its digest is in the folded part."""
    tab.page.locator("[data-identity]", has_text="sha256:").wait_for(state="attached")


def press_sign(tab: Tab) -> None:
    tab.page.get_by_role("button", name="Sign with a passkey").click()


def lines(tab: Tab) -> dict[str, str]:
    return dict(
        tab.page.eval_on_selector_all(
            "[data-lines] > div, [data-technical] > div",
            "rows => rows.map(row => [...row.children].map(cell => cell.textContent))",
        )
    )


def newest(desk: Console) -> Any:
    return parse_entry(desk.context.ledger.entry_bytes(desk.context.ledger.state.size - 1))


@pytest.mark.essential
def test_a_reviewer_makes_a_passkey_signs_in_with_it_and_approves(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    tab.page.goto("/home")
    tab.page.get_by_role("button", name="Sign out").click()
    tab.page.get_by_label("Your name").fill("rita")
    tab.page.get_by_role("button", name="Sign in with a passkey").click()
    tab.page.wait_for_url("**/home")
    show_review(tab)
    assert (lines(tab)["decision"], lines(tab)["meaning"]) == ("approve", "I read it.")
    identity = tab.page.locator("[data-identity]").text_content()
    press_sign(tab)
    tab.page.wait_for_url("**/signed/*")
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
    tab.page.wait_for_url("**/signed/*")


def test_an_authenticator_that_cannot_verify_its_user_makes_no_passkey(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator(hasUserVerification=False, isUserVerified=False)
    tab.page.goto("/passkeys/new")
    tab.page.get_by_label("Name").fill("blue")
    tab.page.get_by_role("button", name="Make the passkey").click()
    tab.page.get_by_text("No passkey was made.").wait_for()


def test_a_passkey_that_can_be_copied_is_refused_when_it_is_made(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator(defaultBackupEligibility=True, defaultBackupState=True)
    tab.page.goto("/passkeys/new")
    tab.page.get_by_label("Name").fill("blue")
    tab.page.get_by_role("button", name="Make the passkey").click()
    tab.page.get_by_text("passkeys_synced").wait_for()


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
    tab.page.wait_for_url("**/signed/*")
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
    tab.page.get_by_text("expected").or_(tab.page.get_by_text("did not work")).first.wait_for()
    assert desk.context.ledger.state.size == size


def test_a_page_that_went_stale_is_refused_with_the_reason(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    desk.site.request_release()
    press_sign(tab)
    tab.page.get_by_text("does not name the current release request").wait_for()
    assert newest(desk).type == "order.refused"


def test_a_revoked_passkey_signs_nothing(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    show_review(tab)
    key = list_passkeys(desk.context.ledger.state, "rita")[0]
    order = desk.site.order(RevokeKey, "anna", principal="rita", keyid=key.keyid, since=None)
    desk.site.ordered(KeyRevoked(policy=desk.site.in_force), order)
    size = desk.context.ledger.state.size
    press_sign(tab)
    tab.page.get_by_text("is no longer valid").first.wait_for()
    assert desk.context.ledger.state.size == size


@contextmanager
def neighbour() -> Iterator[str]:
    """Serve a page of another account of the machine."""

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
        thread.join(60)


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
    credential = list_passkeys(desk.context.ledger.state, "rita")[0].passkey
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


def test_a_second_administrator_countersigns_what_the_script_shows_from_its_bytes(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "ben")
    tab.authenticator()
    enrolled(desk, tab, "ben")
    order, documents = desk.site.enrolment("eve", ("auditor",))
    pending = desk.site.pend(order, documents)
    tab.page.goto(f"/sign/countersign?given=order:{pending.pae_digest}")
    tab.page.get_by_role("button", name="Show what is signed").click()
    wait_for_lines(tab)
    assert tab.page.locator("[data-countersigned] dd", has_text="Eve Example").count() == 1
    assert tab.page.locator("[data-countersigned] [data-lines] dt", has_text="key id").is_visible(), "it is compared"
    press_sign(tab)
    tab.page.wait_for_url("**/signed/*")
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

    forms = ("/sign/train", "/sign/import-dataset", "/sign/import-validation-set", "/sign/suspend-release")
    for path in ("/sign", *forms, "/sessions", "/passkeys/new", "/sign-in", "/help/passkeys"):
        page.goto(path)
        check()
    page.goto("/passkeys/new")
    page.get_by_label("Name").fill("blue")
    page.get_by_role("button", name="Make the passkey").focus()
    page.keyboard.press("Enter")
    page.get_by_text("step 2 of 2").wait_for()
    check()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Prove it and save the file").focus()
        page.keyboard.press("Enter")
    enrol(desk, Path(downloading.value.path()).read_bytes().removesuffix(b"\n"))
    page.goto("/passkeys")
    check()
    show_review(tab)
    check()
    page.get_by_role("button", name="Sign with a passkey").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/signed/*")
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


def test_a_gates_file_is_read_into_the_form_and_what_it_decides_is_shown(desk: Console, launched: Any) -> None:
    tab = signed_in(desk, launched, "olga")
    tab.page.goto("/sign/train")
    tab.page.locator('[name="recipe.name"]').fill("other")
    tab.page.locator("summary", has_text="A file of your own").click()
    tab.page.get_by_label("File to read into the field gates").set_input_files(SHIPPED / "classification.json")
    _wait(tab.page, "document.getElementById('o-gates').value.includes('classification')")
    tab.page.get_by_role("button", name="Show what is signed").click()
    wait_for_lines(tab)
    assert lines(tab)["gates"].startswith("classification, sha256:") and tab.errors == []


def test_a_reviewer_sees_rows_and_tries_a_prompt_of_words(
    desk: Console, launched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "_ask", answered)
    tab = signed_in(desk, launched, "rita")
    page = tab.page
    tab.authenticator()
    enrolled(desk, tab, "rita")

    def order(action: str) -> None:
        page.get_by_role("button", name="Show what is signed").click()
        wait_for_lines(tab)
        press_sign(tab)
        page.get_by_role("button", name="Show the answers").wait_for()
        assert newest(desk).type == f"{action}.requested"

    page.goto("/adapters/clauses@1")
    page.get_by_role("link", name="View example rows").click()
    order("samples")
    page.goto("/adapters/clauses@1")
    page.get_by_role("link", name="Your rows or answers are waiting").click()
    page.get_by_role("button", name="Show the answers").click()
    page.get_by_role("heading", name="Row 5 of 5").wait_for()
    assert (newest(desk).type, newest(desk).outcome) == ("samples.shown", "success")
    assert _axe(page) == []
    page.get_by_role("link", name="Back to the review of clauses@1").click()
    page.get_by_role("link", name="Try your own text").click()
    page.get_by_label("prompt 1").fill("The tenant may sublet.")
    order("try")
    page.get_by_role("button", name="Show the answers").click()
    page.get_by_text("answer 0").wait_for()
    assert (newest(desk).type, newest(desk).outcome) == ("try.finished", "success")
    assert _axe(page) == [] and tab.errors == []


def test_a_reviewer_requests_changes_and_the_requester_sees_why(desk: Console, launched: Any) -> None:
    desk.site.request_release()
    tab = signed_in(desk, launched, "rita")
    page = tab.page
    tab.authenticator()
    enrolled(desk, tab, "rita")
    page.goto("/adapters/clauses@1")
    page.get_by_role("link", name="Request changes").click()
    page.locator('[name="meaning"]').fill("I read the page.")
    page.locator('[name="reason"]').fill("Train it with more rows.")
    page.get_by_role("button", name="Show what is signed").click()
    wait_for_lines(tab)
    press_sign(tab)
    page.wait_for_url("**/signed/*")
    page.goto("/adapters/clauses@1")
    shown = page.locator("#tab").inner_text()
    assert "changes requested rita (privacy)" in " ".join(shown.split()) and "Train it with more rows." in shown
    assert _axe(page) == [] and tab.errors == []
    other = signed_in(desk, launched, "olga")
    assert "rita (privacy) requested changes" in other.page.locator("main").inner_text()
    page.emulate_media(media="print")
    assert not page.locator(".tabs").is_visible() and not page.get_by_role("link", name="Reject").is_visible()
    for title in ("Release clauses@1 to legal", "Training data", "History", "Signed content"):
        assert page.get_by_role("heading", name=title, exact=True).filter(visible=True).count() == 1, title


def test_a_tab_signs_no_file_that_it_did_not_hash(
    desk: Console, launched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the service puts into the order must be the digest that this browser computed."""
    monkeypatch.setattr(desk.context.checks, "put", lambda job: job())
    monkeypatch.setattr(desk.context.datasets, "put", lambda job, owner: None)
    monkeypatch.setattr(checks, "_check", lambda *_: FOUND)
    tab = signed_in(desk, launched, "olga")
    page = tab.page
    tab.authenticator()
    enrolled(desk, tab, "olga")

    def send() -> None:
        page.goto("/sign/import-dataset")
        rows = {"name": "rows.csv", "mimeType": "text/csv", "buffer": ROWS}
        page.locator("input[data-upload=file]").set_input_files(rows)
        page.locator('[name="dataset_kind"]').select_option("classification")
        page.locator('[name="format"]').select_option("csv")
        base = next(name for name, _ in desk.context.ledger.state.bases.items())
        said = {"dataset": "letters", "base": base, "owner": "us", "licence": "MIT", "classification": "internal"}
        for name, text in said.items():
            field = page.locator(f'[name="{name}"]')
            if field.evaluate("field => field.tagName") == "SELECT":
                field.select_option(text)
            else:
                field.fill(text)
        page.get_by_role("button", name="Send and check").click()
        page.get_by_role("link", name="Show what is signed").wait_for()

    send()
    page.evaluate("sessionStorage.clear()")
    page.get_by_role("link", name="Show what is signed").click()
    page.get_by_text("This tab did not hash the file").wait_for()
    assert page.get_by_role("button", name="Sign with a passkey").is_disabled()
    send()
    page.get_by_role("link", name="Show what is signed").click()
    wait_for_lines(tab)
    assert lines(tab)["hashed in this tab"] == f"rows.csv, {len(ROWS)} bytes: {digest_bytes(ROWS)}"
    press_sign(tab)
    page.wait_for_url("**/signed/*")
    assert newest(desk).type == "import.requested" and tab.errors == []


GATES = encode_value(
    gates_file(
        gates=[
            one_gate(),
            one_gate(
                name="no-harm",
                kind="regression",
                claim="no-worse",
                test="tango",
                margin="0.02",
                chance="0.25",
                slices=[],
            ),
        ]
    )
)


@pytest.fixture(scope="module")
def script(launched: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """Yield a page that has the script."""
    with served("staffed", tmp_path_factory.mktemp("s") / "h") as made:
        tab = open_tab(launched, made.url)
        tab.page.goto("/sign-in")
        yield tab


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_the_script_shows_what_the_command_line_shows(action: str, script: Tab) -> None:
    """Line by line, for an order of every action; the digest is the order's identity in the log."""
    names = ACTIONS[action].example.commitments().keys() & ACTIONS[action].order.model_fields.keys()
    disclosed = {name: disclose(f"Text of {name}.", bytes(32)) for name in names}
    order = ACTIONS[action].example.model_copy(update={name: text.commitment for name, text in disclosed.items()})
    texts = tuple(disclosed.values())
    proposals = [Proposal(order, texts)]
    if action == "try-adapter":
        prompts = tuple(disclose(text, bytes(32)) for text in ("One, they say.", "Two\nlines."))
        bound = order.model_copy(update={"prompts": tuple(one.commitment for one in prompts)})
        proposals.append(Proposal(bound, prompts))
    if action == "train":
        bound = order.model_copy(update={"gates": digest_bytes(GATES)})
        proposals.append(Proposal(bound, texts, {"gates": GATES}, frozenset({"recipe.alpha", "recipe.device", "on"})))
    read = """async ([address, file, fields]) => {
      const module = await import(address), opened = await module.open(file);
      return [await module.describe(opened, fields), await module.digest(module.pae(opened.bytes))];
    }"""
    for proposal in proposals:
        file = encode_proposal(proposal)
        told = script.page.evaluate(read, [script.module(), file.decode(), describe_fields(type(order))])
        payload = encode_order(proposal.order)
        assert [tuple(line) for line in told[0]] == describe(proposal)
        assert told[1] == digest_bytes(pae("application/vnd.in-toto+json", payload))


def ready(desk: Console, launched: Any) -> Tab:
    """Return a browser in which rita has a passkey and a session."""
    tab = signed_in(desk, launched, "rita")
    tab.authenticator()
    enrolled(desk, tab, "rita")
    return tab


def test_a_session_that_ends_while_a_form_is_filled_in_loses_no_text(desk: Console, launched: Any) -> None:
    """The passkey signs in on the spot, at the form and again at the page to sign; then Back sends nothing again."""
    tab = ready(desk, launched)
    page = tab.page
    for part in ("changes", "quality", "findings"):
        page.goto(f"/adapters/clauses@1?tab={part}")
    page.goto("/sign/review?given=adapter:clauses@1&given=unit:legal")
    page.locator('[name="decision"]').select_option("reject")
    page.locator('[name="meaning"]').fill("Two lines\nthat I typed.")
    page.context.clear_cookies()
    page.get_by_role("button", name="Show what is signed").click()
    page.get_by_role("heading", name="Your session has ended").wait_for()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert _axe(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Sign in with a passkey").click()
    page.get_by_text("You are about to sign").wait_for()
    wait_for_lines(tab)
    assert lines(tab)["meaning"] == "Two lines\nthat I typed."
    page.context.clear_cookies()
    press_sign(tab)
    page.get_by_role("dialog").get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_url("**/signed/*")
    done = page.url
    assert (newest(desk).type, newest(desk).actor) == ("review.recorded", "rita")
    page.get_by_role("heading", name="Done: Review").wait_for()
    methods: list[str] = []
    page.on("request", lambda request: methods.append(request.method) if request.is_navigation_request() else None)
    page.go_back()
    assert page.url == done, "the order is signed, so its page leads to what it did"
    page.go_back()
    assert "/sign/review?" in page.url and set(methods) == {"GET"}
    assert [one for one in tab.errors if "401 (Unauthorized)" not in one] == []


def test_a_form_keeps_its_texts_when_it_is_wrong_or_changed(desk: Console, launched: Any) -> None:
    tab = ready(desk, launched)
    page = tab.page
    page.goto("/sign/review?given=adapter:clauses@1&given=unit:legal&given=decision:request-changes")
    page.locator('[name="meaning"]').fill("I read it.")
    page.get_by_role("button", name="Show what is signed").click()
    page.get_by_role("alert").get_by_role("link", name="needs a reason").click()
    _wait(page, "document.activeElement.name === 'reason'")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert _axe(page) == []
    page.keyboard.type("The rows lack a class.")
    page.get_by_role("button", name="Show what is signed").click()
    page.get_by_role("link", name="Change the form").click()
    assert page.locator('[name="meaning"]').input_value() == "I read it."
    assert page.locator('[name="reason"]').input_value() == "The rows lack a class."
    assert [one for one in tab.errors if "400 (Bad Request)" not in one] == []


def test_signing_in_opens_the_page_that_was_asked_for_and_back_never_asks_again(desk: Console, launched: Any) -> None:
    tab = ready(desk, launched)
    page = tab.page
    page.goto("/people")
    page.context.clear_cookies()
    answer = page.goto("/adapters")
    assert answer.status == 401
    page.get_by_label("Your name").fill("rita")
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.get_by_role("heading", name="Adapters").wait_for()
    assert page.url.endswith("/adapters")
    page.go_back()
    page.get_by_role("heading", name="People and units").wait_for()
    page.go_forward()
    page.get_by_role("heading", name="Adapters").wait_for()
    page.goto("/sign-in")
    assert page.url.endswith("/home")


def test_a_passkey_that_fails_leads_to_the_console_s_own_help(desk: Console, launched: Any) -> None:
    tab = ready(desk, launched)
    page = tab.page
    page.context.clear_cookies()
    page.goto("/home")
    page.get_by_label("Your name").fill("raul")
    page.get_by_role("button", name="Sign in with a passkey").click()
    problem = page.locator("[data-problem]", has_text="You are not signed in.")
    problem.wait_for()
    assert "w3.org" not in page.content()
    problem.get_by_role("link", name="What to do").click()
    page.get_by_role("heading", name="Help with passkeys").wait_for()
    assert _axe(page) == []


def test_a_person_is_invited_makes_a_passkey_is_enrolled_by_two_and_signs_in(home: Path, launched: Any) -> None:
    with served("staffed", home) as desk:
        desk.site.adopt(policy_set(passkeys_on_localhost=True))
        anna, ben = signed_in(desk, launched, "anna"), signed_in(desk, launched, "ben")
        for tab, name in ((anna, "anna"), (ben, "ben")):
            tab.authenticator()
            enrolled(desk, tab, name)
        address = invited_address(anna)
        nina = open_tab(launched, desk.url)
        nina.authenticator()
        code = accept_in(nina, address)
        enrol_by_code(anna, ben, code)
        nina.page.get_by_role("link", name=desk.url).click()
        nina.page.get_by_label("Your name").fill("nina")
        nina.page.get_by_role("button", name="Sign in with a passkey").click()
        nina.page.wait_for_url("**/home")
        late = open_tab(launched, desk.url)
        late.page.goto(address)
        late.page.get_by_role("heading", name="This invitation cannot be used").wait_for()
        person = desk.context.ledger.state.principals.get("nina")
        assert person is not None and person.roles == ("operator",)
        for tab in (anna, ben, nina):
            assert tab.errors == [] and tab.hosts == {desk.url.removeprefix("http://")}
        for tab, path in ((anna, "/people"), (anna, "/sign/enrol-with-passkey"), (nina, "/invitation")):
            tab.page.set_viewport_size({"width": 390, "height": 800})
            tab.page.goto(path)
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert verify(desk.site).findings == ()


def invited_address(anna: Tab) -> str:
    """Invite a person in the browser. Return the address, which is shown once and drawn as a QR code."""
    anna.page.goto("/people")
    anna.page.get_by_role("link", name="Invite a person").click()
    anna.page.locator('[name="principal"]').fill("nina")
    anna.page.locator('[name="printed_name"]').fill("Nina Example")
    anna.page.get_by_label("operator", exact=True).check()
    assert _axe(anna.page) == []
    sent: list[str] = []
    anna.page.on("request", lambda request: sent.append(f"{request.url} {request.post_data or ''}"))
    anna.page.get_by_role("button", name="Show what is signed").click()
    wait_for_lines(anna)
    press_sign(anna)
    anna.page.locator("[data-address]", has_text="/invitation#").wait_for()
    address = str(anna.page.locator("[data-address]").text_content())
    secret = address.partition("#")[2]
    assert _axe(anna.page) == []
    assert len(secret) == 43 and not any(secret in one for one in sent)
    assert anna.page.evaluate("Object.values(sessionStorage)") == []
    drawn, encoded = anna.page.evaluate(
        """async (address) => {
          const { encode } = await import(document.querySelector("[data-encoder]").dataset.encoder);
          const path = document.querySelector("[data-code] path").getAttribute("d");
          const rows = encode(address, { ecc: "M", border: 4 }).data;
          const dark = rows.flatMap((row, y) => row.flatMap((is, x) => (is ? [`${x} ${y}`] : [])));
          return [[...path.matchAll(/M(\\d+ \\d+)h1v1h-1z/g)].map((one) => one[1]), dark];
        }""",
        address,
    )
    assert drawn == encoded and len(drawn) > 300
    anna.page.reload()
    anna.page.get_by_text("The address was shown once").wait_for()
    assert secret not in anna.page.content()
    return address


def accept_in(nina: Tab, address: str) -> str:
    """Open the address, make a passkey and prove it. Return the short code that the page shows."""
    nina.page.goto(address)
    nina.page.get_by_role("heading", name="Welcome, Nina Example").wait_for()
    assert "#" not in nina.page.url and _axe(nina.page) == []
    nina.page.get_by_label("Name of the passkey").fill("blue")
    nina.page.get_by_role("button", name="Make the passkey").click()
    nina.page.get_by_role("heading", name="Prove your passkey").wait_for()
    wait_for_lines(nina)
    assert _axe(nina.page) == []
    nina.page.get_by_role("button", name="Prove it").click()
    nina.page.get_by_role("heading", name="Done").wait_for()
    assert _axe(nina.page) == []
    _wait(nina.page, "sessionStorage.length === 0")
    return str(nina.page.locator(".short-code").text_content()).strip()


def enrol_by_code(anna: Tab, ben: Tab, code: str) -> None:
    """Enrol the passkey of the accepted invitation, by two administrators who type its short code."""
    anna.page.goto("/home")
    anna.page.get_by_text("has made a passkey").click()
    anna.page.get_by_role("heading", name="Invitations").wait_for()
    assert _axe(anna.page) == []
    anna.page.get_by_role("link", name="Enrol", exact=True).click()
    anna.page.get_by_label("Short code").fill("AAAA-AAAA-AAAA")
    anna.page.get_by_role("button", name="Show what is signed").click()
    anna.page.locator("#p-short_code").wait_for()
    assert len(anna.errors) == 1 and "400" in anna.errors.pop()
    anna.page.get_by_label("Short code").fill(code.lower())
    anna.page.get_by_role("button", name="Show what is signed").click()
    wait_for_lines(anna)
    shown = lines(anna)
    assert (shown["principal"], shown["printed name"], shown["roles"]) == ("nina", "Nina Example", "operator")
    assert shown["short code"] == code
    press_sign(anna)
    anna.page.wait_for_url("**/signed/*")
    ben.page.goto("/people")
    ben.page.get_by_role("link", name="Countersign").click()
    ben.page.get_by_label("Short code").fill(code)
    ben.page.get_by_role("button", name="Show what is signed").click()
    wait_for_lines(ben)
    assert lines(ben)["short code"] == code
    press_sign(ben)
    ben.page.wait_for_url("**/signed/*")
