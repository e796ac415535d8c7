from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.client.support import orders
from appliance.client.support.door import Door
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order
from appliance.domain.governance.delegations import Delegate
from appliance.domain.governance.people import Enroll, Grant, RevokePrincipal
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.releases.activations import Activate, RollBack
from appliance.domain.releases.findings import AddFinding
from appliance.domain.releases.reviews import Review
from appliance.domain.rulebook.proposals import Proposal
from appliance.domain.rulebook.registry import VERBS
from appliance.domain.rulebook.showing import describe
from appliance.domain.runs.cancellation import Cancel
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotAuthenticated, Tampered, Unavailable
from appliance.formats.core.commitment import commit
from appliance.formats.core.timestamp import parse_time
from appliance.formats.signatures.keys import generate_ed25519
from appliance.workflows.queries.log import show
from scripts.kit.log_builder import ORIGIN, b64, policy_digest, stage
from tests.client.conftest import Office
from tests.kit.founded import policy_set


def _revocation(office: Office, name: str = "sales", signer: str = "anna") -> Proposal:
    about = office.door.about
    return orders.propose(about, signer, RevokePrincipal, {"principal": name}, texts={"reason": "left the firm"})


def _submit(office: Office, proposal: Proposal) -> orders.Receipt:
    signed = orders.sign(proposal, office.site.keys[proposal.order.signer])
    return orders.submit(office.door, signed, office.anchor.log_key)


def test_an_order_becomes_an_entry_and_the_receipt_names_it(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    receipt = _submit(office, _revocation(office))
    assert receipt.type == "principal.revoked"
    assert receipt.index == len(office.site.entries) - 1
    sales = office.site.state.principals.get("sales")
    assert sales is not None and sales.revoked == receipt.index


def test_an_order_is_checked_before_it_is_signed_and_nothing_is_recorded(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    door = office.as_("anna")
    orders.check(door, _revocation(office))
    size = len(office.site.entries)
    with pytest.raises(Denied) as refused:
        orders.check(door, _revocation(office, "nobody"))
    assert refused.value.reasons and "nobody" in refused.value.message
    assert len(office.site.entries) == size


def test_nobody_asks_of_an_order_of_somebody_else(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    with pytest.raises(Denied, match="expected an order signed by olga, got one signed by anna"):
        orders.check(office.as_("olga"), _revocation(office))
    with pytest.raises(NotAuthenticated):
        office.door.post("/v1/orders/check", {"statement": ""}, reading=False)


def test_free_text_is_committed_in_the_order_and_disclosed_beside_it(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    proposal = _revocation(office)
    (disclosure,) = proposal.disclosures
    assert proposal.order.reason == commit("left the firm", disclosure.salt) == disclosure.commitment
    _submit(office, proposal)
    assert b"left the firm" not in b"".join(office.site.entries) + b"".join(office.site.documents.values())


def test_every_order_has_its_own_nonce_and_salt(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    first, second = _revocation(office), _revocation(office)
    assert first.order.nonce != second.order.nonce
    assert first.disclosures[0].salt != second.disclosures[0].salt


def test_the_same_order_is_accepted_once(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    proposal = orders.propose(office.door.about, "anna", Grant, {"principal": "olga", "role": "reviewer:privacy"})
    signed = orders.sign(proposal, office.site.keys["anna"])
    orders.submit(office.door, signed, office.anchor.log_key)
    with pytest.raises(Conflict, match="accepted as entry"):
        orders.submit(office.door, signed, office.anchor.log_key)


def test_a_refusal_carries_the_rules_reasons(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    with pytest.raises(Denied) as raised:
        _submit(office, _revocation(office, signer="olga"))
    assert raised.value.reasons == ("role: expected olga to be administrator, got operator",)


def test_a_value_that_cannot_be_is_refused_before_anything_is_signed(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    with pytest.raises(BadInput, match="order cancel: run: "):
        orders.propose(office.door.about, "olga", Cancel, {"run": "seven"})


def test_an_order_stands_for_a_quarter_of_an_hour_and_one_for_two_as_long_as_policy_lets_it(
    open_office: Callable[..., Office],
) -> None:
    about = open_office("staffed").door.about
    alone = orders.propose(about, "anna", RevokePrincipal, {"principal": "sales"}).order
    two = orders.propose(about, "anna", Grant, {"principal": "olga", "role": "operator"}).order
    assert _lasts_s(alone) == 900
    assert _lasts_s(two) == about.parameters["order_lifetime_s"] == 172_800


def _lasts_s(order: Order) -> float:
    return (parse_time(order.expires_at) - parse_time(order.issued_at)).total_seconds()


def _other_checkpoint(office: Office) -> Callable[[Any], Any]:
    def bend(answer: Any) -> Any:
        forger = copy.copy(office.site)
        forger.log, forger.log_signers = generate_ed25519(), {}
        forged = forger.checkpoint().decode()
        return {**answer, "checkpoint": forged}

    return bend


def _other_entry(office: Office) -> Callable[[Any], Any]:
    """The receipt of another order, which was recorded too."""
    proposal = orders.propose(office.door.about, "anna", Grant, {"principal": "olga", "role": "reviewer:privacy"})
    earlier = _submit(office, proposal)
    return lambda answer: {**answer, **show(office.service.context, earlier.index)}


@pytest.mark.parametrize(
    ("bend", "error", "words"),
    [
        (_other_entry, Tampered, "receipt, order: expected entry .* to hold the envelope"),
        (lambda office: lambda answer: {**answer, "proof": answer["proof"][:-1]}, Tampered, "inclusion proof"),
        (_other_checkpoint, Tampered, "note, signature"),
        (lambda office: lambda answer: {**answer, "proof": None}, Unavailable, "a receipt, got"),
        (lambda office: lambda answer: {**answer, "bytes": "e30="}, BadInput, "entry: "),
    ],
    ids=["another order's entry", "no proof of it", "another log's key", "without a proof", "no entry"],
)
def test_a_receipt_that_lies_is_not_believed(
    open_office: Callable[..., Office],
    bend: Callable[[Office], Callable[[Any], Any]],
    error: type[ApplianceError],
    words: str,
) -> None:
    office = open_office("staffed")
    bent = bend(office)  # before any other answer is bent
    office.service.bend["/v1/orders"] = bent
    with pytest.raises(error, match=words):
        _submit(office, _revocation(office))


def test_what_came_of_an_order_is_what_its_entry_says(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    lies = {"index": 1, "type": "principal.enrolled", "outcome": "pending", "result": {"run": "r-000009"}}
    office.service.bend["/v1/orders"] = lambda answer: {**answer, **lies}
    proposal = _revocation(office)
    signed = orders.sign(proposal, office.site.keys["anna"])
    receipt = orders.submit(office.door, signed, office.anchor.log_key)
    size = len(office.site.entries)
    told = (receipt.index, receipt.type, receipt.outcome, receipt.result, receipt.size)
    assert told == (size - 1, "principal.revoked", "success", {"order": signed.digest}, size)


def test_an_order_whose_entry_refuses_it_was_not_carried_out(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    refused = orders.sign(_revocation(office, signer="olga"), office.site.keys["olga"])
    with pytest.raises(Denied):
        orders.submit(office.door, refused, office.anchor.log_key)
    index = len(office.site.entries) - 1
    shown = {**show(office.service.context, index), "type": "principal.revoked", "outcome": "success"}
    liar = cast(Door, SimpleNamespace(post=lambda *given, **more: shown, waiting=0))
    with pytest.raises(Denied, match=f"entry {index}") as raised:
        orders.submit(liar, refused, office.anchor.log_key)
    assert raised.value.reasons == ("role: expected olga to be administrator, got operator",)


def test_what_is_shown_holds_every_value_of_the_order_and_the_text_behind_each_commitment(
    open_office: Callable[..., Office],
) -> None:
    proposal = _revocation(open_office("staffed"))
    shown = dict(describe(proposal))
    assert shown["verb"] == "revoke-principal"
    assert shown["signer"] == "anna"
    assert shown["log"] == ORIGIN
    assert shown["principal"] == "sales"
    assert shown["reason"] == "left the firm"
    assert shown["expires"] == proposal.order.expires_at


def test_every_verb_says_what_its_signature_means() -> None:
    """By a text of its own, or by one of the order; each of these has a test of its own."""
    of_the_order = {row.order for row in VERBS.values() if not isinstance(row.meaning, str)}
    assert of_the_order == {Review, Activate, RollBack, RevokeTokens, AddFinding, Delegate}
    assert all(row.meaning.endswith(".") for row in VERBS.values() if isinstance(row.meaning, str))


def test_a_rejections_meaning_names_no_date() -> None:
    site = stage("sealed")
    approval, rejection = (site.review_order("rita", "privacy", decision=how) for how in ("approve", "reject"))
    assert "until this date" in VERBS["review"].means(approval)
    assert VERBS["review"].means(rejection).endswith("It counts until you replace it.")
    assert "date" not in VERBS["review"].means(rejection)


def test_a_findings_meaning_says_whether_it_stops_releases_and_from_when() -> None:
    site = stage("sealed")
    blocks, issue = (VERBS["add-finding"].means(site.finding_order(blocks=how)) for how in (True, False))
    exception = VERBS["add-finding"].means(site.finding_order(blocks=False, kind="exception"))
    assert "No release of it answers until the finding is closed." in blocks
    assert issue.endswith("it stops no release.")
    assert exception.endswith("Open after it, it stops every release.")


def test_a_delegations_meaning_says_what_its_end_leaves() -> None:
    site = stage("sealed")
    given, ended = (VERBS["delegate"].means(site.delegation_order("raul", **how)) for how in ({}, {"until": None}))
    assert given.startswith("Until then this person decides on adapters in your place")
    assert ended.endswith("What they decided so far still counts.")


def _pending(office: Office) -> None:
    order, documents = office.site.enrolment("dora", ("operator",))
    office.site.pend(order, documents)


def test_a_pending_order_is_read_from_its_own_bytes(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    _pending(office)
    (found,) = orders.pending_orders(office.as_("ben"))
    assert isinstance(found.proposal.order, Enroll)
    assert dict(describe(found.proposal))["printed name"] == "Dora Example"


def test_the_second_administrator_endorses_the_digest_that_was_hashed_here(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    _pending(office)
    (found,) = orders.pending_orders(office.as_("ben"))
    receipt = _submit(office, orders.propose_endorsement(office.door.about, "ben", found))
    assert receipt.type == "principal.enrolled"
    assert "dora" in office.site.state.principals


def test_a_pending_order_is_shown_from_its_proved_entry_with_the_documents_that_it_binds(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    _pending(office)
    door, policy = office.as_("ben"), office.site.state.site.policy
    (found,) = orders.pending_orders(door)
    assert orders.prove_pending(door, office.anchor, found) == replace(found, policy=policy)
    office.service.bend["/v1/orders/pending"] = lambda rows: [{**row, "documents": {}} for row in rows]
    (bare,) = orders.pending_orders(door)
    assert orders.prove_pending(door, office.anchor, bare).proposal.documents == found.proposal.documents != {}
    with pytest.raises(Tampered, match=r"log: expected other\.example/log"):
        orders.prove_pending(door, replace(office.anchor, origin="other.example/log"), found)
    office.service.bend["/v1/orders/pending"] = lambda rows: [{**rows[0], "documents": None}]
    with pytest.raises(Unavailable, match="pending order: expected one that waits"):
        orders.pending_orders(door)


def test_an_order_that_the_log_does_not_have_as_pending_is_not_shown(open_office: Callable[..., Office]) -> None:
    """One that waits, one that was refused, and one that was never recorded."""
    office = open_office("staffed")
    _pending(office)
    door = office.as_("ben")
    (found,) = orders.pending_orders(door)
    other = orders.propose(office.door.about, "olga", Grant, {"principal": "rob", "role": "administrator"})
    signed = orders.sign(other, office.site.keys["olga"])
    with pytest.raises(Denied):
        orders.submit(office.door, signed, office.anchor.log_key)
    refused = len(office.site.entries) - 1
    for index, words in ((refused, "got order.refused"), (found.index, f"got {found.digest}")):
        invented = orders.Pending(signed.digest, index, other)
        with pytest.raises(Tampered, match=f"expected it as entry {index}, {words}"):
            orders.prove_pending(door, office.anchor, invented)


def _swap_text(rows: Any) -> Any:
    rows[0]["disclosures"][0]["text"] = "Dora the Good"
    return rows


def _swap_digest(rows: Any) -> Any:
    rows[0]["digest"] = "sha256:" + "1" * 64
    return rows


def _swap_document(rows: Any) -> Any:
    rows[0]["documents"]["policy"] = b64(b"a policy that nobody ordered")
    return rows


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (_swap_text, "disclosure, commitment"),
        (_swap_digest, "pending order, digest"),
        (_swap_document, "order, document policy"),
    ],
)
def test_a_pending_order_shown_as_something_else_is_refused(
    open_office: Callable[..., Office], bend: Callable[[Any], Any], words: str
) -> None:
    office = open_office("staffed")
    _pending(office)
    office.service.bend["/v1/orders/pending"] = bend
    with pytest.raises(Tampered, match=words):
        orders.pending_orders(office.as_("ben"))


def test_a_policy_document_that_is_not_the_ordered_one_is_refused(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    policy = policy_set(reviewers=3)
    order = office.site.order(AdoptPolicy, "anna", policy=policy_digest(policy))
    office.site.pend(order, {"policy": encode_value(policy)})

    def bend(rows: Any) -> Any:
        rows[0]["documents"]["policy"] = b64(encode_value(policy_set(reviewers=1, distinct_fields=1)))
        return rows

    office.service.bend["/v1/orders/pending"] = bend
    with pytest.raises(Tampered, match="document policy"):
        orders.pending_orders(office.as_("ben"))


def test_a_digest_may_be_cut_but_not_so_far_that_it_fits_two(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    _pending(office)
    (found,) = orders.pending_orders(office.as_("ben"))
    twin = replace(found, digest=found.digest[:30] + "0" * 41)
    assert orders.find_pending([found], found.digest[:13]) == found
    assert orders.find_pending([found], found.digest.removeprefix("sha256:")[:6]) == found
    for prefix, listed in ((found.digest[:20], [found, twin]), (found.digest[:12], [found]), ("sha256:ffffff", [])):
        with pytest.raises(BadInput, match="6 digits or more"):
            orders.find_pending(listed, prefix)
    assert orders.find_pending([found], None) == found
    for listed in ([], [found, twin]):
        with pytest.raises(BadInput, match="exactly one pending order"):
            orders.find_pending(listed, None)
