from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.api.people import OrderCheck, OrderReceipt, OrderRefusals, PendingOrder
from appliance.api.wire import json_value
from appliance.client.support import orders
from appliance.client.support.connection import Connection
from appliance.domain.actions.proposals import Proposal
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.actions.showing import REPORTED, describe
from appliance.domain.core.names import encode_value
from appliance.domain.core.order import Order
from appliance.domain.governance.countersignature import Countersign
from appliance.domain.governance.delegations import Delegate
from appliance.domain.governance.people import Enrol, Grant, RevokePrincipal
from appliance.domain.governance.policies import AdoptPolicy
from appliance.domain.governance.restoration import RestoreLog
from appliance.domain.releases.activations import Activate, Rollback
from appliance.domain.releases.findings import AddFinding
from appliance.domain.releases.requests import RequestRelease
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.domain.releases.suspensions import SuspendRelease
from appliance.domain.runs.control import Cancel
from appliance.domain.serving.tokens import RevokeTokens
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotAuthenticated, Tampered, Unavailable
from appliance.formats.core.commitment import commit
from appliance.formats.core.timestamp import parse_time
from appliance.formats.signatures.keys import generate_ed25519
from appliance.workflows.queries.log import show
from scripts.kit.log_builder import ORIGIN, policy_digest, stage
from tests.client.conftest import Office
from tests.kit.founded import policy_set
from tests.kit.restored import lose, restore_order


def _revocation(office: Office, name: str = "sales", signer: str = "anna") -> Proposal:
    return office.propose(signer, RevokePrincipal, {"principal": name}, texts={"reason": "left the firm"})


def _submit(office: Office, proposal: Proposal) -> orders.Receipt:
    signed = orders.sign(proposal, office.site.keys[proposal.order.signer])
    return orders.submit(office.connection, signed, office.anchor.log_keys)


def test_an_order_becomes_an_entry_and_the_receipt_names_it(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    receipt = _submit(office, _revocation(office))
    assert receipt.type == "principal.revoked"
    assert receipt.index == len(office.site.entries) - 1
    sales = office.site.state.principals.get("sales")
    assert sales is not None and sales.revoked == receipt.index


def test_an_order_is_checked_before_it_is_signed_and_nothing_is_recorded(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    connection = office.as_("anna")
    orders.check(connection, _revocation(office))
    size = len(office.site.entries)
    with pytest.raises(Denied) as refused:
        orders.check(connection, _revocation(office, "nobody"))
    assert refused.value.refusals and "nobody" in refused.value.message
    assert len(office.site.entries) == size


def test_nobody_asks_of_an_order_of_somebody_else(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    with pytest.raises(Denied, match="expected an order signed by olga, got one signed by anna"):
        orders.check(office.as_("olga"), _revocation(office))
    with pytest.raises(NotAuthenticated):
        office.connection.post("/v1/orders/check", OrderRefusals, OrderCheck(statement=b""), reading=False)


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
    proposal = office.propose("anna", Grant, {"principal": "olga", "role": "reviewer:privacy"})
    signed = orders.sign(proposal, office.site.keys["anna"])
    orders.submit(office.connection, signed, office.anchor.log_keys)
    with pytest.raises(Conflict, match="accepted as entry"):
        orders.submit(office.connection, signed, office.anchor.log_keys)


def test_a_refusal_carries_the_rules_reasons(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    with pytest.raises(Denied) as raised:
        _submit(office, _revocation(office, signer="olga"))
    assert [one.code for one in raised.value.refusals] == ["role-missing"]


def test_a_value_that_cannot_be_is_refused_before_anything_is_signed(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    with pytest.raises(BadInput, match="order cancel: run: "):
        office.propose("olga", Cancel, {"run": "seven"})


def test_an_order_stands_for_a_quarter_of_an_hour_and_one_for_two_as_long_as_policy_lets_it(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    about = office.connection.about
    alone = office.propose("anna", RevokePrincipal, {"principal": "sales"}).order
    two = office.propose("anna", Grant, {"principal": "olga", "role": "operator"}).order
    assert _lasts_s(alone) == 900
    assert _lasts_s(two) == about.parameters.order_lifetime_s == 172_800


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
    """Return a function that puts the receipt of another recorded order into an answer."""
    proposal = office.propose("anna", Grant, {"principal": "olga", "role": "reviewer:privacy"})
    earlier = _submit(office, proposal)
    shown = json_value(show(office.service.context, earlier.index))
    return lambda answer: {**answer, **{name: shown[name] for name in ("bytes", "proof", "checkpoint")}}


@pytest.mark.parametrize(
    ("bend", "error", "words"),
    [
        (_other_entry, Tampered, "receipt, order: expected entry .* to hold the envelope"),
        (lambda office: lambda answer: {**answer, "proof": answer["proof"][:-1]}, Tampered, "inclusion proof"),
        (_other_checkpoint, Tampered, "note, signature"),
        (
            lambda office: lambda answer: {**answer, "proof": None},
            Unavailable,
            "expected a response of this build, got proof",
        ),
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
    proposal = _revocation(office)
    signed = orders.sign(proposal, office.site.keys["anna"])
    receipt = orders.submit(office.connection, signed, office.anchor.log_keys)
    size = len(office.site.entries)
    told = (receipt.index, receipt.type, receipt.outcome, receipt.result, receipt.log_size)
    assert told == (size - 1, "principal.revoked", "success", {"order": signed.digest}, size)


def test_an_order_whose_entry_refuses_it_was_not_carried_out(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    refused = orders.sign(_revocation(office, signer="olga"), office.site.keys["olga"])
    with pytest.raises(Denied):
        orders.submit(office.connection, refused, office.anchor.log_keys)
    index = len(office.site.entries) - 1
    shown = show(office.service.context, index)
    receipt = OrderReceipt(bytes=shown.bytes, proof=shown.proof, checkpoint=shown.checkpoint, waiting=0)
    liar = cast(Connection, SimpleNamespace(post=lambda *given, **more: receipt, waiting=0))
    with pytest.raises(Denied, match=f"entry {index}") as raised:
        orders.submit(liar, refused, office.anchor.log_keys)
    assert [one.code for one in raised.value.refusals] == ["role-missing"]


def test_what_is_shown_holds_every_value_of_the_order_and_the_text_behind_each_commitment(
    open_office: Callable[..., Office],
) -> None:
    proposal = _revocation(open_office("staffed"))
    shown = dict(describe(proposal))
    assert shown["action"] == "revoke-principal"
    assert shown["signer"] == "anna"
    assert shown["log"] == ORIGIN
    assert shown["principal"] == "sales"
    assert shown["reason"] == "left the firm"
    assert shown["expires"] == proposal.order.expires_at


def test_every_action_says_what_its_signature_means() -> None:
    """By a text of its own, or by one of the order; each of these has a test of its own."""
    of_the_order = {row.order for row in ACTIONS.values() if not isinstance(row.meaning, str)}
    assert of_the_order == {
        *(ReviewAdapter, Activate, Rollback, RevokeTokens),
        *(AddFinding, Delegate, SuspendRelease, RestoreLog),
    }
    assert all(row.meaning.endswith(".") for row in ACTIONS.values() if isinstance(row.meaning, str))


def test_a_rejections_meaning_names_no_date() -> None:
    site = stage("sealed")
    approval, rejection = (site.review_order("rita", "privacy", decision=how) for how in ("approve", "reject"))
    assert "until this date" in ACTIONS["review"].explain(approval)
    assert ACTIONS["review"].explain(rejection).endswith("It is valid until you decide again.")
    assert "date" not in ACTIONS["review"].explain(rejection)


def test_a_findings_meaning_says_whether_it_stops_releases_and_from_when() -> None:
    site = stage("sealed")
    blocks, issue = (ACTIONS["add-finding"].explain(site.finding_order(blocks=how)) for how in (True, False))
    exception = ACTIONS["add-finding"].explain(site.finding_order(blocks=False, kind="exception"))
    assert "No unit can use the adapter until the finding is closed." in blocks
    assert issue.endswith("It stops no release.")
    assert exception.endswith("If it is open then, it stops every release.")


def test_a_restorations_meaning_says_how_many_entries_are_kept_and_given_up() -> None:
    site = stage("staffed")
    kept = site.state.size
    meaning = ACTIONS["restore-log"].explain(restore_order(site, lose(site, 5).checkpoint()))
    assert f"continues from its first {kept} entries. Up to 5 entries after them are given up" in meaning
    assert f"up to a log of {kept + 5}," in meaning
    assert "Revoke again what was revoked" in meaning


def test_a_suspensions_meaning_says_what_it_stops_and_who_can_lift_it() -> None:
    site = stage("serving")
    orders_of = (site.suspension_order("rita", served_model=name) for name in (None, "labels"))
    whole, one = map(ACTIONS["suspend-release"].explain, orders_of)
    assert "no response of this version under any name," in whole
    assert "no response of this version under the name labels," in one
    assert all("Only somebody with the role reviewer:privacy, or two administrators," in text for text in (whole, one))


def test_a_delegations_meaning_says_what_its_end_leaves() -> None:
    site = stage("sealed")
    given, ended = (ACTIONS["delegate"].explain(site.delegation_order("raul", **how)) for how in ({}, {"until": None}))
    assert given.startswith("Until then this person decides on adapters in your place")
    assert ended.endswith("What they decided so far still counts.")


def _pending(office: Office) -> None:
    order, documents = office.site.enrolment("dora", ("operator",))
    office.site.pend(order, documents)


def test_a_pending_order_is_read_from_its_own_bytes(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    _pending(office)
    (found,) = orders.pending_orders(office.as_("ben"))
    assert isinstance(found.proposal.order, Enrol)
    assert dict(describe(found.proposal))["printed name"] == "Dora Example"


def test_the_second_administrator_countersigns_the_digest_that_was_hashed_here(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    _pending(office)
    (found,) = orders.pending_orders(office.as_("ben"))
    receipt = _submit(office, office.propose("ben", Countersign, {"order": found.digest}))
    assert receipt.type == "principal.enrolled"
    assert "dora" in office.site.state.principals


def test_a_pending_order_is_shown_from_its_proved_entry_with_the_documents_that_it_binds(
    open_office: Callable[..., Office],
) -> None:
    office = open_office("staffed")
    _pending(office)
    connection, policy = office.as_("ben"), office.site.state.site.policy
    (found,) = orders.pending_orders(connection)
    proved = orders.prove_pending(connection, office.anchor, found)
    assert found.proposal.documents == {} != proved.proposal.documents
    assert proved == replace(found, policy=policy, proposal=proved.proposal)
    assert proved.proposal.order == found.proposal.order
    with pytest.raises(Tampered, match=r"log: expected other\.example/log"):
        orders.prove_pending(connection, replace(office.anchor, origin="other.example/log"), found)
    office.service.bend["/v1/orders/pending"] = lambda rows: [{**rows[0], "disclosures": None}]
    with pytest.raises(Unavailable, match=r"got 0\.disclosures: expected a list"):
        orders.pending_orders(connection)


def test_an_order_that_the_log_does_not_have_as_pending_is_not_shown(open_office: Callable[..., Office]) -> None:
    """One that waits, one that was refused, and one that was never recorded."""
    office = open_office("staffed")
    _pending(office)
    connection = office.as_("ben")
    (found,) = orders.pending_orders(connection)
    other = office.propose("olga", Grant, {"principal": "rob", "role": "administrator"})
    signed = orders.sign(other, office.site.keys["olga"])
    with pytest.raises(Denied):
        orders.submit(office.connection, signed, office.anchor.log_keys)
    refused = len(office.site.entries) - 1
    for index, words in ((refused, "got order.refused"), (found.index, f"got {found.digest}")):
        invented = orders.Pending(signed.digest, index, other)
        with pytest.raises(Tampered, match=f"expected it as entry {index}, {words}"):
            orders.prove_pending(connection, office.anchor, invented)


def _swap_text(rows: Any) -> Any:
    rows[0]["disclosures"][0]["text"] = "Dora the Good"
    return rows


def _swap_digest(rows: Any) -> Any:
    rows[0]["digest"] = "sha256:" + "1" * 64
    return rows


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (_swap_text, "disclosure, commitment"),
        (_swap_digest, "pending order, digest"),
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


def test_a_list_of_waiting_orders_has_no_documents_and_no_expired_order(open_office: Callable[..., Office]) -> None:
    office = open_office("staffed")
    policy = policy_set(reviewers=3)
    document, digest = encode_value(policy), policy_digest(policy)
    order = office.site.order(AdoptPolicy, "anna", policy=digest)
    office.site.pend(order, {"policy": document})
    connection = office.as_("ben")
    (row,) = connection.get("/v1/orders/pending", list[PendingOrder])
    assert row.documents == {"policy": digest} and len(row.model_dump_json()) < len(document)
    office.service.context.clock = lambda: parse_time(order.expires_at)
    assert connection.get("/v1/orders/pending", list[PendingOrder]) == []


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


def test_a_value_that_the_service_states_without_a_proof_is_marked_before_it_is_signed(
    open_office: Callable[..., Office],
) -> None:
    """The tier follows from the policy that the service describes; the verdict is bound by the adapter's entry."""
    office = open_office("sealed")
    values = {"adapter": "clauses@1", "unit": "legal", "exposure": "internal", "conditions": None}
    values["purpose"] = office.connection.about.parameters.purposes[0]
    texts = {"intended_use": "Reading leases.", "limits": "Nothing else."}
    proposal = office.propose("olga", RequestRelease, values, texts=texts)
    assert proposal.reported == {"tier"}
    shown = dict(describe(proposal))
    assert {label for label, text in shown.items() if text.endswith(REPORTED)} == {"tier"}
    with pytest.raises(BadInput, match="exposure: expected one of"):
        office.propose("olga", RequestRelease, {**values, "exposure": "none"}, texts=texts)
