"""Forms of orders: their lists, what they keep, and the page after the signature."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from appliance.domain.actions.proposals import parse_proposal
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.governance.people import Enrol
from appliance.errors import BadInput, NotFound
from appliance.formats.core.fields import encode_base64url
from appliance.web.console.signing import drafts
from appliance.web.console.signing.drafts import Drafts
from appliance.web.console.signing.forms import assign_problems, fields_of
from scripts.kit.authenticator import new_passkey
from tests.kit.console import Browser, Console, console
from tests.kit.founded import policy_set
from tests.web.console.test_policies import form_of
from tests.web.console.test_signing import HERE, REVIEW, asserted, entry_of, hidden, shown, sign_in, signed

TRAIN = {"recipe.name": "other", "recipe.base": "smollm2", "recipe.dataset": "clauses@1"}


@pytest.fixture
def desk(home: Path) -> Iterator[Console]:
    with console("sealed", home) as made:
        made.site.adopt(policy_set(passkeys_on_localhost=True))
        yield made


def options(browser: Browser, action: str, field: str, given: str = "") -> list[str]:
    text = html.unescape(browser.get(f"/sign/{action}{given}").text)
    found = re.search(rf'<select id="f-{re.escape(field)}".*?</select>', text, re.S)
    assert found is not None, text
    return re.findall(r'<option value="([^"]+)"', found[0])


# Lists.


@pytest.mark.parametrize(
    ("name", "action", "field", "expected"),
    [
        ("rita", "review", "adapter", "clauses@1"),
        ("rita", "review", "unit", "legal"),
        ("rita", "review", "review_function", "privacy"),
        ("olga", "request-release", "exposure", "public"),
        ("olga", "request-release", "purpose", "decide"),
        ("olga", "import-dataset", "classification", "confidential"),
        ("olga", "train", "recipe.base", "smollm2"),
        ("olga", "train", "recipe.dataset", "clauses@1"),
        ("olga", "train", "recipe.method", "dora"),
        ("olga", "train", "tier", "high"),
        ("anna", "grant", "principal", "rita"),
        ("anna", "grant", "role", "release-owner:legal"),
        ("anna", "grant", "role", "reviewer:privacy"),
        ("rita", "add-finding", "owner", "olga"),
        ("anna", "revoke-principal", "principal", "legal"),
        ("audrey", "replay", "run", "r-000001"),
        ("rita", "revoke-dataset", "dataset", "clauses@1"),
    ],
)
def test_known_names_and_words_are_chosen_from_lists(
    desk: Console, name: str, action: str, field: str, expected: str
) -> None:
    assert expected in options(desk.signed_in(name), action, field)


def test_a_list_of_people_has_those_about_whom_the_rules_allow_the_action(desk: Console) -> None:
    rita, anna = desk.signed_in("rita"), desk.signed_in("anna")
    people = set(options(rita, "delegate", "principal"))
    assert {"raul", "otto"} <= people and not people & {"rita", "olga", "anna", "audrey", "legal"}
    people = set(options(anna, "grant", "principal"))
    assert {"rita", "olga"} <= people and not people & {"anna", "audrey", "legal"}
    assert "ends the delegation" not in rita.get("/sign/delegate").text
    assert "empty to end the delegation now" in rita.get("/sign/delegate").text.lower()
    assert "the number of the first entry" in anna.get("/sign/revoke-key").text


def test_a_person_chooses_among_their_own_keys_and_an_administrator_among_all(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    own, every = (options(desk.signed_in(name), "revoke-key", "keyid") for name in ("rita", "anna"))
    assert passkey.keyid in own and set(own) < set(every)
    assert options(desk.signed_in("rita"), "revoke-key", "principal") == ["rita"]
    assert (
        f"passkey {desk.context.ledger.state.keys.get(passkey.keyid).passkey.name}"
        in desk.signed_in("rita")
        .get(  # type: ignore[union-attr]
            "/sign/revoke-key"
        )
        .text
    )


def test_roles_are_boxes_and_another_role_can_be_typed(desk: Console) -> None:
    browser = desk.signed_in("anna")
    _, documents = desk.site.enrolment("eve", ("auditor",))
    proof = documents["possession"].decode()
    boxes = {"roles:operator": "yes", "roles.other": "reviewer:safety"}
    answer = browser.fill("enrol", {"possession": proof, "printed_name": "Eve Example", **boxes})
    assert answer.status_code == 200, answer.text
    made = parse_proposal(hidden(answer, "file").encode())[0].order
    assert isinstance(made, Enrol) and made.roles == ("operator", "reviewer:safety")
    again = browser.fill("enrol", {"possession": proof, **boxes})
    assert 'name="roles:operator" value="yes" checked' in again.text
    assert 'value="reviewer:safety"' in again.text and '<a href="#f-printed_name">' in again.text
    none = browser.fill("enrol", {"possession": proof, "printed_name": "Eve Example"})
    assert 'id="p-roles">' in none.text


@pytest.mark.thorough
def test_gates_are_chosen_from_shipped_files_and_those_of_earlier_runs(desk: Console) -> None:
    browser = desk.signed_in("olga")
    for digest in options(browser, "train", "gates")[:2]:
        answer = browser.fill("train", {**TRAIN, "gates": digest})
        proposal = parse_proposal(hidden(answer, "file").encode())[0]
        assert proposal.order.model_dump(mode="json")["gates"] == digest
        assert parse_gates(proposal.documents["gates"]).name in ("answers", "classification", "preferences", "thorough")
    unknown = browser.fill("train", {**TRAIN, "gates": "sha256:" + "0" * 64})
    assert (unknown.status_code, 'id="p-gates">' in unknown.text) == (400, True)
    both = browser.fill("train", {**TRAIN, "gates": digest, "gates.other": "{}"})
    assert "one of the list, or one of your own, got both" in both.text


@pytest.mark.thorough
def test_a_field_says_that_nothing_was_imported_yet(tmp_path: Path) -> None:
    with console("staffed", tmp_path / "h") as desk:
        page = desk.signed_in("olga").get("/sign/train").text
        assert page.count("None was imported yet") == 2
    with console("imported", tmp_path / "other") as desk:
        assert "None was imported yet" not in desk.signed_in("olga").get("/sign/train").text


@pytest.mark.thorough
def test_a_problem_begins_with_the_label_of_its_field(desk: Console) -> None:
    for action in (name for name, one in ACTIONS.items() if one.has_form):
        for field in fields_of(action):
            error = BadInput(f"order {action}: {field.name}: expected one, got none")
            assert assign_problems(action, error) == {field.name: f"{field.label}: expected one, got none"}
    found = assign_problems("review", BadInput("order review: conditions: served_models.0: expected one"))
    assert found == {"conditions.served_models": "served models: expected one"}
    newcomer = {"principal": "Bad Name", "printed_name": "x", "roles:auditor": "yes", "secret": "sha256:" + "0" * 64}
    page = desk.signed_in("anna").fill("invite", {**newcomer, "until": "1h"}).text
    assert page.count(">Name: expected") == 2 and "principal: expected" not in page.lower()


def test_a_field_with_a_default_offers_no_empty_choice(desk: Console) -> None:
    page = desk.signed_in("olga").get("/sign/train").text
    for field, empty in (("recipe.quantisation", 0), ("recipe.method", 0), ("on", 0), ("tier", 1)):
        found = re.search(rf'<select id="f-{re.escape(field)}".*?</select>', page, re.S)
        assert found is not None and found[0].count('<option value="">') == empty, field


def test_a_gates_file_that_policy_requires_is_chosen_already(desk: Console) -> None:
    digest = options(desk.signed_in("olga"), "train", "gates")[1]
    desk.site.adopt(policy_set(passkeys_on_localhost=True, required_gates=(digest,)))
    text = desk.signed_in("olga").get("/sign/train").text
    assert f'<option value="{digest}" selected>' in text and "required by policy" in text


def test_a_value_that_is_in_no_list_is_kept_and_the_rules_decide_on_it(desk: Console) -> None:
    text = html.unescape(desk.signed_in("rita").get("/sign/review?given=adapter:gone@7").text)
    assert '<option value="gone@7" selected>' in text
    assert '<option value="clauses@1">' in text


# Drafts.


def test_a_draft_is_its_person_s_alone_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    kept = Drafts(lambda: now[0])
    one = kept.keep("rita", "review", {"meaning": "I read it."})
    assert kept.find("rita", "review", one.key).fields == {"meaning": "I read it."}
    for owner, action in (("raul", "review"), ("rita", "train")):
        with pytest.raises(NotFound):
            kept.find(owner, action, one.key)
    monkeypatch.setattr(drafts, "MOST_OF_ONE", 3)
    others = [kept.keep("rita", "review", {}).key for _ in range(2)]
    assert kept.find("rita", "review", one.key)
    kept.keep("rita", "review", {})
    with pytest.raises(NotFound):
        kept.find("rita", "review", others[0])
    assert kept.find("rita", "review", one.key), "the one that was opened last is kept"
    monkeypatch.setattr(drafts, "MOST", 2)
    kept.keep("raul", "review", {})
    with pytest.raises(NotFound):
        kept.find("rita", "review", others[1])
    kept.finish(one, 7)
    done = kept.find("rita", "review", one.key)
    assert (done.entry, done.fields) == (7, {}), "the texts of a signed order are dropped"
    now[0] = drafts.KEPT_S + 1
    with pytest.raises(NotFound):
        kept.find("rita", "review", one.key)


def draft_of(answer: httpx.Response) -> str:
    return answer.url.path


def test_a_signed_draft_leads_to_what_it_did_and_has_no_text_any_more(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    page = shown(browser, "review", REVIEW)
    answer = signed(browser, page, passkey, draft=hidden(page, "draft"))
    assert answer.status_code == 303
    for address in (draft_of(page), f"{draft_of(page)}?change=form"):
        again = browser.get(address)
        assert (again.status_code, again.headers["location"]) == (303, answer.headers["location"])


def test_a_refused_order_leads_back_to_its_form_with_the_reasons(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    page = shown(browser, "review", REVIEW)
    desk.site.request_release()
    answer = signed(browser, page, passkey, draft=hidden(page, "draft"))
    assert (answer.status_code, answer.headers["location"]) == (303, draft_of(page))
    form = html.unescape(browser.get(answer.headers["location"]).text)
    assert "The order does not name the current release request." in form
    assert "I read it." in form and "needs a reason" in form


@pytest.mark.thorough
def test_another_session_of_the_same_person_continues_with_the_draft(desk: Console) -> None:
    page = shown(desk.signed_in("rita"), "review", REVIEW)
    other = desk.signed_in("rita")
    assert "I read it." in other.get(f"{draft_of(page)}?change=form").text
    others = desk.signed_in("raul").get(draft_of(page))
    assert others.status_code == 404 and "I read it." not in others.text


@pytest.mark.thorough
def test_a_form_that_is_no_longer_kept_begins_empty_and_its_signed_order_is_taken(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.signed_in("rita")
    browser.get("/adapters/clauses@1.json")
    page = shown(browser, "review", REVIEW)
    draft = hidden(page, "draft")
    lost = browser.get(f"/sign/review/{'A' * 22}")
    assert lost.status_code == 404 and "This form is no longer kept." in lost.text and 'name="meaning"' in lost.text
    assert "kept for 8 hours, or until the service restarts" in browser.get("/sign/review").text
    entry = entry_of(desk, signed(browser, page, passkey, draft=f"{draft[:-1]}{'A' if draft[-1] != 'A' else 'B'}"))
    assert entry.type == "review.recorded"


@pytest.mark.parametrize(("name", "may"), [("rita", False), ("anna", False), ("otto", True)])
def test_a_form_says_at_once_that_the_viewer_s_roles_do_not_allow_the_order(
    desk: Console, name: str, may: bool
) -> None:
    page = desk.signed_in(name).get("/sign/activate").text
    assert ("Your roles do not let you sign this order." not in page) == may
    assert "Signed by a release owner of the unit" in page and "release-owner:UNIT" not in page


def test_a_decision_begins_with_the_usual_words_and_conditions_open_where_they_are_asked_for(desk: Console) -> None:
    browser, link = desk.signed_in("rita"), "/sign/review?given=adapter:clauses@1&given=unit:legal&given=decision:"
    approval = browser.filled(f"{link}approve")
    assert approval["valid_until"] == "90d"
    assert approval["meaning"] == (
        "I reviewed the adapter and its evidence, and approve it for legal as reviewer for privacy."
    )
    assert browser.filled(f"{link}reject")["valid_until"] == ""
    assert "ask for changes" in browser.filled(f"{link}request-changes")["meaning"]
    folded, unfolded = "<summary>Conditions", '<details class="part" open><summary>Conditions'
    assert unfolded in browser.get(f"{link}approve-with-conditions").text
    for page in (browser.get(f"{link}approve").text, browser.fill("review", {**REVIEW, "valid_until": ""}).text):
        assert folded in page and unfolded not in page


# The page to sign.


@pytest.mark.thorough
def test_an_order_that_would_be_refused_has_another_main_button(desk: Console) -> None:
    blocked = shown(desk.signed_in("olga"), "review", REVIEW).text
    assert "It would be refused now" in blocked
    assert '<a class="button" href="' in blocked and 'class="main" type="button" data-sign disabled' not in blocked
    allowed = shown(desk.signed_in("rita"), "review", REVIEW).text
    assert 'class="main" type="button" data-sign disabled' in allowed


def test_a_policy_set_with_a_syntax_error_says_that_it_would_be_refused(desk: Console) -> None:
    fields = form_of(policy_set(passkeys_on_localhost=True)) | {"policy.cedar": "permit ("}
    answer = desk.signed_in("anna").fill("adopt-policy", fields)
    page = html.unescape(answer.text)
    assert "It would be refused now" in page and "expected Cedar policies, got: unexpected end of input" in page
    assert 'class="main" type="button" data-sign disabled' not in page


# After the signature.


@pytest.mark.thorough
def test_the_page_after_a_signature_says_who_has_to_countersign(desk: Console) -> None:
    order, documents = desk.site.enrolment("eve", ("auditor",))
    pending = desk.site.pend(order, documents)
    index = desk.context.ledger.state.pending.get(pending.pae_digest).index  # type: ignore[union-attr]
    page = html.unescape(desk.signed_in("anna").get(f"/signed/{index}").text)
    assert "Signed: Add a person or unit" in page
    assert "/people/eve" not in page, "there is no such person yet"
    assert "when a second administrator countersigns it: ben." in page and f'href="/log/{index}"' in page
    passkey = desk.site.enrol_passkey("ben", new_passkey(**HERE))
    browser = desk.signed_in("ben")
    answer = signed(browser, shown(browser, "countersign", {"order": pending.pae_digest}), passkey)
    effect = entry_of(desk, answer).index
    after = html.unescape(desk.signed_in("anna").get(f"/signed/{index}").text)
    assert "It took effect" in after and f'href="/signed/{effect}"' in after
    done = html.unescape(browser.get(f"/signed/{effect}").text)
    assert "The order of anna took effect with this countersignature." in done and "/people/eve" in done


@pytest.mark.thorough
def test_an_order_that_waits_is_withdrawn_by_its_signer_on_the_page_of_waiting_orders(desk: Console) -> None:
    order, documents = desk.site.enrolment("eve", ("auditor",))
    pending = desk.site.pend(order, documents)
    index = desk.context.ledger.state.pending.get(pending.pae_digest).index  # type: ignore[union-attr]
    link = f"/sign/withdraw-order?given=order%3A{pending.pae_digest.replace(':', '%3A')}"
    assert link in desk.signed_in("anna").get("/orders").text
    assert "/sign/withdraw-order" not in desk.signed_in("ben").get("/orders").text
    assert options(desk.signed_in("anna"), "withdraw-order", "order")[-1] == pending.pae_digest
    assert "/sign/withdraw-order" not in desk.signed_in("anna").get("/sign").text
    ben = desk.signed_in("ben").fill("withdraw-order", {"order": pending.pae_digest}).text
    assert "It would be refused now" in ben
    passkey = desk.site.enrol_passkey("anna", new_passkey(**HERE))
    browser = desk.signed_in("anna")
    answer = signed(browser, shown(browser, "withdraw-order", {"order": pending.pae_digest}), passkey)
    withdrawn = entry_of(desk, answer)
    assert withdrawn.type == "order.withdrawn" and f"order:{pending.pae_digest}" in withdrawn.subjects
    page = html.unescape(browser.get(f"/signed/{index}").text)
    assert f'anna withdrew it with <a href="/signed/{withdrawn.index}">' in page and "It took effect" not in page
    assert "No order is waiting" in browser.get("/orders").text
    again = desk.signed_in("ben").fill("countersign", {"order": pending.pae_digest}).text
    assert "waits for a second administrator" in again


def test_the_page_after_a_signature_says_what_happens_next_and_who_is_needed(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("olga", new_passkey(**HERE))
    browser = desk.signed_in("olga")
    fields = {"adapter": "clauses@1", "unit": "legal", "exposure": "public", "purpose": "decide"}
    page = shown(browser, "request-release", {**fields, "intended_use": "Sorting.", "limits": "No advice."})
    index = entry_of(desk, signed(browser, page, passkey)).index
    text = html.unescape(browser.get(f"/signed/{index}").text)
    assert "Done: Request a release" in text and "/adapters/clauses@1" in text
    assert re.search(r"clauses@1 for legal[^<]*</a>. Who can do it: raul, rita\.", text), text


def test_only_the_entry_of_an_accepted_order_has_such_a_page(desk: Console) -> None:
    browser = desk.signed_in("anna")
    assert [browser.get(f"/signed/{index}").status_code for index in (0, 10**9)] == [404, 404]


# Sessions.


def test_a_page_without_a_session_asks_for_the_passkey_and_knows_the_name(desk: Console) -> None:
    passkey = desk.site.enrol_passkey("rita", new_passkey(**HERE))
    browser = desk.browser()
    assert browser.post("/sign-in/passkey.json", sign_in(browser, "rita", passkey)).json() == {"viewer": "rita"}
    told = browser.get("/session.json").json()
    assert told["viewer"] == "rita" and told["csrf"] == browser.csrf and told["left_s"] > 0
    browser.take("ended")
    page = browser.get("/reviews")
    assert page.status_code == 401 and 'data-signing-in=""' in page.text and 'name="name" value="rita"' in page.text
    assert "Your session has ended." in page.text
    posted = browser.post("/sign/review", {"csrf": "x", **REVIEW})
    assert posted.status_code in (401, 403)
    assert browser.get("/session.json").status_code == 401
    browser.http.cookies.set("appliance-8330-name", '"><script>')
    assert "<script>" not in browser.get("/reviews").text.split("data-signing-in")[1].split("</form>")[0]


def test_the_pages_of_signing_in_lead_home_once_signed_in(desk: Console) -> None:
    browser, link = desk.browser(), desk.link("rita")
    assert browser.post(link).status_code == 303
    for path in ("/sign-in", link):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/home")
    browser.post("/sign-out", {"csrf": browser.csrf})
    assert 'name="name" value=""' in browser.get("/sign-in").text, "signing out forgets the name"


def test_help_with_passkeys_is_there_before_and_after_signing_in(desk: Console) -> None:
    for browser in (desk.browser(), desk.signed_in("rita"), desk.signed_in("legal")):
        page = browser.get("/help/passkeys")
        assert page.status_code == 200 and desk.url in page.text


@pytest.mark.thorough
def test_a_passkey_that_waits_to_be_enrolled_is_named_with_who_is_needed(desk: Console) -> None:
    key = desk.site.enrol_passkey("anna", new_passkey(**HERE))
    made, browser = new_passkey(**HERE), desk.signed_in("rita")
    fields = {"csrf": browser.csrf, "name": "blue", "data": encode_base64url(made.creation_data)}
    answer = browser.post("/passkeys/new", fields)
    proof = browser.post("/passkeys/proof", {"csrf": browser.csrf, **asserted(answer, made)})
    assert "You have no passkey" in browser.get("/passkeys").text
    first = desk.signed_in("anna")
    entry_of(desk, signed(first, shown(first, "enrol-passkey", {"possession": proof.text}), key))
    page = html.unescape(browser.get("/passkeys").text)
    assert "The passkey blue waits to be enrolled." in page and "anna ordered it" in page and "ben" in page
    assert "You have no passkey" not in page
    assert "blue" not in desk.signed_in("raul").get("/passkeys").text
