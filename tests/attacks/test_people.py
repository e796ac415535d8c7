"""Refused acts of insiders: approving alone or for another, old or foreign signatures, becoming an administrator
alone."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.core.names import add_seconds
from appliance.domain.governance.people import Grant, RevokePrincipal
from appliance.domain.releases.activations import Activate
from appliance.domain.releases.adapters import RevokeAdapter
from appliance.errors import BadInput
from appliance.formats.signatures.dsse import Envelope, Signature
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.appliance import Appliance, Refused


def refused(site: Appliance, action: Any, status: int = 403, *, recorded: bool = True) -> Refused:
    """Check that the action is refused, and that the refusal of an authentic order is an entry."""
    before = len(site.entries(type="order.refused"))
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.status == status, caught.value
    assert len(site.entries(type="order.refused")) - before == int(recorded)
    return caught.value


def enrol_unit(site: Appliance, unit: str) -> None:
    """Enrol a unit of the test's own, so that no other test's approvals apply to it."""
    site.enrol(unit, "unit")
    site.enrol(f"{unit}-owner", f"release-owner:{unit}")


def activation(site: Appliance, unit: str, name: str = "clauses@1") -> Activate:
    return Activate(
        unit=unit, served_model="labels", adds_instruction=False, **site.on(name), **site.terms(f"{unit}-owner")
    )


def grant(site: Appliance, principal: str, role: str) -> None:
    envelope = site.sign(Grant(principal=principal, role=role, **site.terms("anna")))
    site.send(envelope)
    site.countersign(envelope.pae_digest)


# --- separation of duties ---------------------------------------------------------------------------------------------


def test_an_operator_without_a_reviewers_role_approves_nothing(shared: Appliance) -> None:
    error = refused(shared, lambda: shared.review("olga", review_function="privacy"))
    assert any("This action needs reviewer:privacy" in str(reason) for reason in error.reasons)


@pytest.mark.essential
def test_neither_who_ordered_the_run_nor_who_imported_the_dataset_approves(site: Appliance) -> None:
    """Both hold a reviewer's role, so that only the separation of duties prevents it."""
    site.enrol("otto", "operator", "reviewer:privacy")
    site.enrol("una", "operator", "reviewer:privacy")
    grant(site, "olga", "reviewer:privacy")
    run = site.order(site.train_order(by="otto"))["result"]["run"]
    assert site.wait_run(run)["adapter"] == "clauses@2"
    ordered = refused(site, lambda: site.review("otto", name="clauses@2", review_function="privacy"))
    assert [one.partition(".")[0] for one in ordered.reasons] == ["otto ordered the training run"]
    imported = refused(site, lambda: site.review("olga", name="clauses@2", review_function="privacy"))
    assert [one.partition(".")[0] for one in imported.reasons] == ["olga imported the training data"]
    assert site.adapter("clauses@2")["reviews"] == []
    # An operator who made neither may.
    assert site.review("una", name="clauses@2", review_function="privacy")["type"] == "review.recorded"


def test_one_reviewer_signing_twice_is_one_vote_whatever_the_function(shared: Appliance) -> None:
    enrol_unit(shared, "twice")
    shared.enrol("tina", "reviewer:privacy", "reviewer:model-risk")
    for field in ("privacy", "model-risk", "model-risk"):
        shared.review("tina", "twice", review_function=field)
    error = refused(shared, lambda: shared.order(activation(shared, "twice")))
    assert any("needs 2 valid approvals for twice and has 1" in one for one in error.reasons)
    shared.review("rita", "twice")
    assert shared.order(activation(shared, "twice"))["type"] == "release.activated"


def test_two_reviewers_of_one_field_are_no_quorum(shared: Appliance) -> None:
    enrol_unit(shared, "samefield")
    shared.enrol("tara", "reviewer:privacy")
    shared.review("tara", "samefield", review_function="privacy")
    shared.review("rita", "samefield")
    error = refused(shared, lambda: shared.order(activation(shared, "samefield")))
    assert [one.partition(".")[0] for one in error.reasons] == [
        "Adapter clauses@1 needs approvals of 2 different review functions and has privacy"
    ]


def test_a_reviewer_signs_for_their_own_field_only(shared: Appliance) -> None:
    error = refused(shared, lambda: shared.review("rita", review_function="model-risk"))
    assert [one.partition(".")[0] for one in error.reasons] == ["rita is reviewer:privacy"]


def test_an_approval_for_another_unit_counts_for_that_unit_alone(shared: Appliance) -> None:
    enrol_unit(shared, "east")
    enrol_unit(shared, "west")
    shared.approve("east")
    error = refused(shared, lambda: shared.order(activation(shared, "west")))
    assert any("needs 2 valid approvals for west and has 0" in one for one in error.reasons)
    assert shared.order(activation(shared, "east"))["type"] == "release.activated"


# --- keys and dates ---------------------------------------------------------------------------------------------------


def test_a_signature_by_a_key_that_is_enrolled_later_is_nobodys(shared: Appliance) -> None:
    shared.keys["nina"] = generate_ed25519()
    order, meaning = shared.review_order("nina", review_function="privacy")
    error = refused(shared, lambda: shared.order(order, meaning), 401, recorded=False)
    assert error.code == "not-authenticated"
    reviews = len(shared.adapter()["reviews"])
    shared.enrol("nina", "reviewer:privacy")
    assert len(shared.adapter()["reviews"]) == reviews


def test_who_was_revoked_signs_no_more_and_their_approval_lapses(shared: Appliance) -> None:
    enrol_unit(shared, "north")
    shared.enrol("rex", "reviewer:privacy")
    shared.review("rex", "north", review_function="privacy")
    shared.review("rob", "north")
    shared.order(RevokePrincipal(principal="rex", **shared.terms("anna")))
    order, meaning = shared.review_order("rex", "north", review_function="privacy")
    refused(shared, lambda: shared.order(order, meaning), 401, recorded=False)
    error = refused(shared, lambda: shared.order(activation(shared, "north")))
    assert any("needs 2 valid approvals for north and has 1" in one for one in error.reasons)


def test_an_approval_that_has_expired_already_is_refused(shared: Appliance) -> None:
    past = add_seconds(shared.now(), -1)
    error = refused(shared, lambda: shared.review("rita", valid_until=past))
    assert error.codes == ["review-date-out-of-range"]
    assert error.reasons[0].startswith(f"The approval would be valid until {past}. It must end after ")


def test_an_approval_for_longer_than_policy_allows_is_refused(shared: Appliance) -> None:
    for_ever = add_seconds(shared.now(), 100 * 365 * 86_400)
    error = refused(shared, lambda: shared.review("rita", valid_until=for_ever))
    assert error.codes == ["review-date-out-of-range"]
    assert error.reasons[0].startswith(f"The approval would be valid until {for_ever}. It must end after ")


@pytest.mark.thorough
def test_a_release_whose_approval_lapses_stops_answering(shared: Appliance) -> None:
    enrol_unit(shared, "brief")
    shared.review("rob", "brief")
    shared.review("rita", "brief")
    shared.order(activation(shared, "brief"))
    assert shared.chat("brief", "labels")["choices"]
    # The latest decision counts: this one ends in a few seconds, with the adapter loaded and answering.
    until = answered_until(shared)
    while shared.now() <= until:
        time.sleep(0.1)
    with pytest.raises(Refused) as lapsed:
        shared.chat("brief", "labels")
    assert (lapsed.value.status, lapsed.value.code) == (403, "not-admitted")
    assert shared.entries(type="admission.refused")[-1]["body"]["refusals"][0]["values"]["valid"] == 1
    assert shared.entries(type="adapter.unloaded")[-1]["body"]["unit"] == "brief"


def answered_until(site: Appliance) -> str:
    """Return the end of rita's approval, under which brief was answered. On a busy machine the approval is longer."""
    for seconds in (3, 12, 48):
        until = add_seconds(site.now(), seconds)
        try:
            site.review("rita", "brief", valid_until=until)
            assert site.chat("brief", "labels")["choices"]
        except Refused:
            assert site.now() > until, "refused before its end"
        else:
            return until
    raise AssertionError("expected an answer within 48 s, got none")


# --- power ------------------------------------------------------------------------------------------------------------


def test_one_administrator_enrols_nobody_alone(shared: Appliance) -> None:
    for name, field in (("mole", "privacy"), ("vole", "model-risk")):
        envelope, printed, proof = shared.propose_enrolment(name, f"reviewer:{field}")
        assert shared.send(envelope, printed, possession=proof)["type"] == "order.pending"
        error = refused(shared, lambda digest=envelope.pae_digest: shared.countersign(digest, by="anna"))
        assert [one.partition(".")[0] for one in error.reasons] == ["anna signed this order and cannot countersign it"]
        order, meaning = shared.review_order(name, review_function=field)
        refused(shared, lambda o=order, m=meaning: shared.order(o, m), 401, recorded=False)
    names = {row["name"] for row in shared.get("/v1/principals")}
    assert not names & {"mole", "vole"}


def test_nobody_but_an_administrator_countersigns(shared: Appliance) -> None:
    envelope, printed, proof = shared.propose_enrolment("mink", "reviewer:privacy")
    shared.send(envelope, printed, possession=proof)
    error = refused(shared, lambda: shared.countersign(envelope.pae_digest, by="olga"))
    assert "This action needs administrator" in error.reasons[0]


@pytest.mark.parametrize("owner", ["rita", "gone"])
def test_a_key_belongs_to_one_principal_for_ever(shared: Appliance, owner: str) -> None:
    if owner == "gone":
        shared.enrol("gone", "reviewer:privacy")
        shared.order(RevokePrincipal(principal="gone", **shared.terms("anna")))
    shared.keys[f"double-{owner}"] = shared.keys[owner]
    envelope, printed, proof = shared.propose_enrolment(f"double-{owner}", "reviewer:model-risk")
    error = refused(shared, lambda: shared.send(envelope, printed, possession=proof))
    assert len(error.reasons) == 1 and "was enrolled before" in error.reasons[0]


def test_nobody_is_enrolled_without_having_the_key(shared: Appliance) -> None:
    """The proof of possession is made with another key than the one that is to be enrolled."""
    envelope, printed, _ = shared.propose_enrolment("nokey", "reviewer:privacy")
    _, _, other = shared.propose_enrolment("other", "reviewer:privacy")
    with pytest.raises(Refused) as error:
        shared.send(envelope, printed, possession=other)
    assert error.value.status == 400
    assert "possession" in error.value.message


# --- orders -----------------------------------------------------------------------------------------------------------


def test_an_order_counts_once(shared: Appliance) -> None:
    order, meaning = shared.review_order("rita")
    envelope = shared.sign(order)
    shared.send(envelope, meaning)
    reviews = len(shared.adapter()["reviews"])
    error = refused(shared, lambda: shared.send(envelope, meaning), 409, recorded=False)
    assert error.code == "conflict"
    assert len(shared.adapter()["reviews"]) == reviews


def test_an_order_signed_with_another_key_is_nobodys(shared: Appliance) -> None:
    order, meaning = shared.review_order("rita")
    honest = shared.sign(order)
    outsider = shared.sign(order, generate_ed25519())
    insider = shared.sign(order, shared.keys["rob"])
    # ... and one that claims rita's key over a signature that her key did not make.
    claimed = replace(outsider, signature=Signature(honest.signature.keyid, outsider.signature.sig))
    reviews = len(shared.adapter()["reviews"])
    for envelope in (outsider, insider, claimed):
        refused(shared, lambda e=envelope: shared.send(e, meaning), 401, recorded=False)
    assert len(shared.adapter()["reviews"]) == reviews


def test_no_flipped_byte_of_an_order_is_accepted(shared: Appliance) -> None:
    order, meaning = shared.review_order("rita")
    honest = shared.sign(order)
    unit = honest.payload.index(b'"unit":"legal"') + len(b'"unit":"')
    size = len(shared.entries(type="review.recorded"))
    for at in (*range(0, len(honest.payload), 97), unit):
        payload = bytearray(honest.payload)
        payload[at] ^= 1
        try:
            forged = Envelope(bytes(payload), honest.signature)
        except BadInput:
            continue
        with pytest.raises(Refused) as error:
            shared.send(forged, meaning)
        assert error.value.status in (400, 401), (at, error.value)
    assert len(shared.entries(type="review.recorded")) == size


def test_an_order_for_another_appliance_is_nobodys(shared: Appliance) -> None:
    order, meaning = shared.review_order("rita", origin="bank.example/other")
    error = refused(shared, lambda: shared.order(order, meaning), 401, recorded=False)
    assert "bank.example/other" in error.message


@pytest.mark.parametrize(
    ("issued_s", "expires_s", "code"), [(-600, -1, "expired"), (3600, 4000, "not-yet-valid"), (0, 10**8, "too-long")]
)
def test_an_order_counts_for_as_long_as_it_says(shared: Appliance, issued_s: int, expires_s: int, code: str) -> None:
    now = shared.now()
    times = {"issued_at": add_seconds(now, issued_s), "expires_at": add_seconds(now, expires_s)}
    order, meaning = shared.review_order("rita", **times)
    error = refused(shared, lambda: shared.order(order, meaning), recorded=code != "expired")
    assert code in error.code, error


@pytest.mark.thorough
def test_nobody_releases_to_a_unit_that_is_not_theirs(released: Appliance) -> None:
    for who in ("cleo", "olga", "rita", "anna"):
        order = Activate(
            unit="legal",
            served_model="labels",
            adds_instruction=False,
            **released.on("clauses@1"),
            **released.terms(who),
        )
        error = refused(released, lambda o=order: released.order(o))
        assert "This action needs release-owner:legal" in error.reasons[0], error
    # Revoked by one reviewer alone: the adapter that answered a moment ago answers no more.
    assert released.chat("legal", "labels")["choices"]
    released.order(RevokeAdapter(**released.on("clauses@1"), **released.terms("rita")))
    with pytest.raises(Refused) as revoked:
        released.chat("legal", "labels")
    assert (revoked.value.status, revoked.value.code) == (403, "not-admitted")
    types = released.types()
    assert types.index("adapter.revoked") < types.index("adapter.unloaded")
    assert "request.admitted" not in types[types.index("adapter.revoked") :]
