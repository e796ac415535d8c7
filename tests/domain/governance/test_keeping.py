"""Key rotation, erasure and retention of texts, and cosignatures of witnesses."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from appliance.domain.actions.registry import ORDERS
from appliance.domain.audit.report import Report
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.decisions import Conditions
from appliance.domain.core.names import NO_DIGEST, add_seconds, encode_value
from appliance.domain.core.order import Order
from appliance.domain.core.state import State
from appliance.domain.data.imports import ImportBase, ImportFailed, ImportRequested
from appliance.domain.governance.countersignature import Countersign, OrderRefused
from appliance.domain.governance.keys import (
    MAX_ROTATIONS,
    ROTATION_PERIOD_S,
    KeyEnrolled,
    KeyRevoked,
    ReplaceKey,
    RevokeKey,
    RotateKey,
)
from appliance.domain.governance.log_control import LogKeyRotated, RotateLogKey
from appliance.domain.governance.people import PrincipalEnrolled, PrincipalRevoked, RevokePrincipal
from appliance.domain.governance.service import Heartbeat, ServiceStopped
from appliance.domain.releases.activations import Activate, ReleaseActivated
from appliance.domain.releases.approval import find_blockers
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.domain.retention import Erase, HoldLifted, HoldPlaced, LiftHold, TextErased
from appliance.domain.runs.training import RunRequested
from appliance.domain.witnesses import refuse_unwitnessed_log
from appliance.errors import BadInput, Denied, NotAuthenticated, Tampered
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.checkpoint import cosign, witness_vkey_of
from appliance.formats.log.note import Note, encode_note, parse_note, vkey_of
from appliance.formats.signatures.dsse import encode_envelope
from appliance.formats.signatures.keys import Signer, generate_ed25519
from scripts.kit.log_builder import ORIGIN, LogBuilder, order_of, policy_set, stage
from tests.kit.refusals import refuses

WITNESS = generate_ed25519()
VKEY = witness_vkey_of("witness.example/w1", WITNESS)


def against(site: LogBuilder) -> list[str]:
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    return find_blockers(site.state, adapter, "legal", site.now)


def printed_name(site: LogBuilder, name: str) -> str:
    person = site.state.principals.get(name)
    assert person is not None and person.printed_name is not None
    return person.printed_name


# A person's keys.


def test_after_a_rotation_both_keys_sign_until_the_old_one_ends() -> None:
    site = stage("sealed")
    end = add_seconds(site.now, 20)
    new = site.rotate("rita", end)
    site.review("rita", "privacy")
    old, site.keys["rita"] = site.keys["rita"], new
    site.review("rita", "privacy")
    site.keys["rita"], site.now = old, end
    with refuses(site, NotAuthenticated, "The key"):
        site.review("rita", "privacy")
    site.keys["rita"] = new
    site.review("rita", "privacy")


def test_a_rotation_does_not_prolong_what_an_earlier_one_ends() -> None:
    """Else who rotates each month would never end a key."""
    site = stage("sealed")
    first, end = site.keys["rita"], add_seconds(site.now, 20)
    site.keys["rita"] = site.rotate("rita", end)
    site.rotate("rita", add_seconds(site.now, 3_600))
    site.keys["rita"], site.now = first, end
    with refuses(site, NotAuthenticated, "The key"):
        site.review("rita", "privacy")


def test_nobody_is_called_as_the_appliance_itself() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "The name service is that of the service itself."):
        site.enrol("service", "operator")


def test_what_a_replaced_key_signed_still_counts() -> None:
    site = stage("approved")
    site.rotate("rita", site.now)
    site.replace("raul")
    assert against(site) == []


def test_a_rotation_is_the_persons_own_and_its_overlap_is_limited() -> None:
    site = stage("staffed")
    order, documents, _ = site.new_key(RotateKey, "raul", "rita", old_until=site.now)
    body = KeyEnrolled(policy=site.in_force)
    with refuses(site, Denied, "raul is reviewer:model-risk. This action needs the key's owner rita."):
        site.ordered(body, order, documents=documents)
    late = add_seconds(site.now, site.state.parameters.key_overlap_s + 3_600)
    order, documents, _ = site.new_key(RotateKey, "rita", "rita", old_until=late)
    with refuses(site, Denied, "Policy lets the old keys be valid until"):
        site.ordered(body, order, documents=documents)


def test_a_person_rotates_eight_times_a_day() -> None:
    """The cost of a revocation grows with the keys that the revoked one rotated to."""
    site = stage("staffed")
    for _ in range(MAX_ROTATIONS):
        site.keys["rita"] = site.rotate("rita", site.now)
        site.now = add_seconds(site.now, 1)
    with refuses(site, Denied, "rita has rotated to 8 keys in the last day"):
        site.rotate("rita", site.now)
    site.rotate("raul", site.now)
    site.keys["rita"] = site.replace("rita")
    site.now = add_seconds(site.now, ROTATION_PERIOD_S)
    site.rotate("rita", site.now)


def test_a_new_key_proves_possession_and_was_never_used_here() -> None:
    site = stage("staffed")
    body = KeyEnrolled(policy=site.in_force)
    order, documents, _ = site.new_key(RotateKey, "rita", "rita", old_until=site.now)
    with refuses(site, BadInput, "documents: expected"):
        site.ordered(body, order)
    ravi = site.possession("raul", site.keys["raul"])
    taken = site.order(
        RotateKey, "rita", principal="rita", key=order.key, keyid=site.keys["raul"].keyid,
        possession=ravi.pae_digest, old_until=site.now,
    )  # fmt: skip
    with refuses(site, Denied, "was enrolled before and belongs to", "The order names the key id"):
        site.ordered(body, taken, documents={"possession": encode_envelope(ravi)})
    other, _, _ = site.new_key(RotateKey, "rita", "rita", old_until=site.now)
    with refuses(site, BadInput, "proof of possession of rita"):
        site.ordered(body, other, documents=documents)


def test_one_administrator_alone_replaces_no_key() -> None:
    site = stage("staffed")
    order, documents, _ = site.new_key(ReplaceKey, "anna", "rita")
    with refuses(site, Denied, "administrators: expected a second one's countersignature"):
        site.ordered(KeyEnrolled(policy=site.in_force), order, documents=documents)


def test_a_replaced_key_ends_at_once() -> None:
    site = stage("sealed")
    new = site.replace("rita")
    with refuses(site, NotAuthenticated, "The key"):
        site.review("rita", "privacy")
    site.keys["rita"] = new
    site.review("rita", "privacy")


def test_a_person_who_has_gone_gets_no_key() -> None:
    site = stage("staffed")
    site.revoke("rita")
    with refuses(site, Denied, "rita was revoked by entry 17."):
        site.replace("rita")


def test_a_revoked_key_leaves_what_it_signed_before() -> None:
    site = stage("approved")
    site.revoke_key("rita")
    assert against(site) == []
    with refuses(site, NotAuthenticated, "The key"):
        site.review("rita", "privacy")


def test_a_revocation_that_names_an_earlier_entry_makes_the_sign_offs_since_stale() -> None:
    site = stage("approved")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    first, _ = adapter.reviews
    later = site.fork()
    later.revoke_key("rita", since=first.index + 1)
    assert against(later) == [], "it was signed before"
    site.revoke_key("rita", since=first.index)
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1." in str(reason) for reason in against(site)
    )
    with refuses(site, Denied, "Adapter clauses@1 needs 2 valid approvals for legal and has 1."):
        site.activate()


def test_a_revocation_can_be_dated_back_further_but_never_forward() -> None:
    site = stage("approved")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    index = adapter.reviews[0].index
    site.revoke_key("rita")
    with refuses(site, Denied, "is revoked from entry"):
        site.revoke_key("rita")
    site.revoke_key("rita", since=index)
    with refuses(site, Denied, "is revoked from entry"):
        site.revoke_key("rita", since=index + 1)


@pytest.mark.parametrize("since", [0, 10_000])
def test_a_revocation_names_an_entry_between_enrolment_and_now(since: int) -> None:
    site = stage("approved")
    with refuses(site, Denied, "The key can be revoked from an entry between"):
        site.revoke_key("rita", since=since)


def test_a_key_is_revoked_by_its_person_or_an_administrator() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "raul is reviewer:model-risk. This action needs the key's owner rita or"):
        site.revoke_key("rita", signer="raul")
    site.revoke_key("rita", signer="rita")


def test_a_logged_order_is_read_under_the_key_of_its_time_and_a_new_one_under_todays() -> None:
    site = stage("approved")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    review = adapter.reviews[0]
    envelope = next(data for data in site.documents.values() if b"review:v1" in data or _is_order(data, review.order))
    site.rotate("rita", site.now)
    assert ORDERS.read_logged(site.state, envelope, review.index).digest == review.order
    with pytest.raises(NotAuthenticated):
        ORDERS.read(site.state, envelope, site.now)


def _is_order(data: bytes, digest: str) -> bool:
    from appliance.formats.signatures.dsse import parse_envelope

    try:
        return parse_envelope(data).pae_digest == digest
    except BadInput:
        return False


def test_an_order_signed_before_its_key_was_enrolled_is_refused() -> None:
    site = stage("sealed")
    before = site.now
    site.now = add_seconds(site.now, 600)
    site.enrol("zoe", "reviewer:privacy")
    with refuses(site, Denied, ". Its key was enrolled at"):
        site.review("zoe", "privacy", issued_at=before)


# A veto.


def test_a_rejection_outlives_its_key_and_its_reviewer() -> None:
    """Otherwise one administrator could lift it by revoking the reviewer. It has no date."""
    site = stage("approved")
    site.enrol("vera", "reviewer:safety")
    site.review("vera", "safety", decision="reject")
    site.now = add_seconds(site.now, 7_200)
    assert any("vera rejected this adapter by entry 30." in str(reason) for reason in against(site))
    site.revoke_key("vera", since=site.state.size - 1)
    site.revoke("vera")
    assert any("vera rejected this adapter by entry 30." in str(reason) for reason in against(site))


def test_whoever_stole_a_reviewers_key_lifts_no_rejection_with_it() -> None:
    """From the moment on at which it shows: the key is revoked from before the approval that it was used for."""
    site = stage("approved")
    site.enrol("vera", "reviewer:safety")
    site.review("vera", "safety", decision="reject")
    stolen = site.state.size
    site.review("vera", "safety")
    assert against(site) == []
    site.revoke_key("vera", since=stolen)
    assert any("vera rejected this adapter by entry 30." in str(reason) for reason in against(site))


def test_what_a_stolen_key_rotated_to_falls_with_it() -> None:
    """And what that rotated to; a key that two administrators gave in its place stays valid."""
    site = stage("sealed")
    site.review("raul", "model-risk")
    stolen = site.state.size
    first, third = site.keys["rita"], None
    for _ in range(2):
        site.now = add_seconds(site.now, 1)
        third = site.keys["rita"] = site.rotate("rita", site.now)
    site.review("rita", "privacy")
    assert against(site) == []
    site.keys["rita"], thiefs = site.replace("rita"), third
    own = site.keys["rita"]
    site.keys["rita"] = first
    site.revoke_key("rita", since=stolen)
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1." in str(reason) for reason in against(site)
    )
    ended = [key for key in site.state.keys.values() if key.principal == "rita" and not key.counts(site.state.size)]
    assert len(ended) == 3 and thiefs is not None and thiefs.keyid in {key.keyid for key in ended}
    key = site.state.keys.get(own.keyid)
    assert key is not None and key.is_valid(site.now) and key.counts(site.state.size)


def test_who_rotates_first_and_then_revokes_the_old_key_is_not_locked_out() -> None:
    site = stage("sealed")
    old, since = site.keys["anna"], site.state.size
    new = site.rotate("anna", site.now)
    site.keys["anna"] = new
    order = site.order(RevokeKey, "anna", principal="anna", keyid=old.keyid, since=since)
    site.ordered(KeyRevoked(policy=site.in_force), order)
    key = site.state.keys.get(new.keyid)
    assert key is not None and key.is_valid(site.now) and key.counts(site.state.size)
    site.enrol("mia", "operator")


def test_a_thief_who_revokes_the_stolen_key_himself_does_not_keep_the_one_that_he_rotated_to() -> None:
    """Their own revocation leaves the key that signs it valid; administrators then use the command of the page."""
    site = stage("sealed")
    site.review("raul", "model-risk")
    stolen, since = site.keys["rita"], site.state.size
    thiefs = site.keys["rita"] = site.rotate("rita", site.now)
    site.review("rita", "privacy")
    order = site.order(RevokeKey, "rita", principal="rita", keyid=stolen.keyid, since=2 + enrolled(site, stolen))
    site.ordered(KeyRevoked(policy=site.in_force), order)
    assert against(site) == []
    site.keys["rita"] = stolen
    site.revoke_key("rita", since=since)
    row = site.state.keys.get(thiefs.keyid)
    assert row is not None and row.revoked is not None and not row.counts(site.state.size)
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1." in str(reason) for reason in against(site)
    )
    with refuses(site, Denied, "is revoked from entry"):
        site.revoke_key("rita", since=since)


def enrolled(site: LogBuilder, signer: Signer) -> int:
    row = site.state.keys.get(signer.keyid)
    assert row is not None
    return row.enrolled


def test_a_long_chain_of_rotations_falls_as_a_whole() -> None:
    site = stage("staffed")
    first, since = site.keys["rita"], site.state.size
    for _ in range(MAX_ROTATIONS):
        site.keys["rita"] = site.rotate("rita", site.now)
    row = site.state.keys.get(site.keys["rita"].keyid)
    assert row is not None
    for number in range(1_500):  # more than anybody recurses
        name = f"sha256:{number:064x}"
        site.state.keys.set(name, row.model_copy(update={"keyid": name, "rotated_from": row.keyid}))
        row = site.state.keys.get(name) or row
    site.keys["rita"] = first
    site.revoke_key("rita", since=since)
    assert all(not key.counts(site.state.size) for key in site.state.keys.values() if key.rotated_from)


def test_an_approval_before_the_theft_stands_behind_those_of_the_thief() -> None:
    site = stage("approved")
    stolen = site.state.size
    site.review("rita", "privacy")
    site.revoke_key("rita", since=stolen)
    assert against(site) == []


@pytest.mark.parametrize("narrower", ["conditions", "an earlier date", "withdrawal"])
def test_revoking_the_key_of_what_narrowed_an_approval_does_not_give_the_wider_one_back(narrower: str) -> None:
    """Otherwise one administrator alone could lift a reviewer's conditions."""
    site = stage("approved")
    later = site.state.size
    conditions = Conditions(not_before=None, not_after=None, served_models=("labels",), answers_a_day=None)
    fields: dict[str, dict[str, Any]] = {
        "conditions": {"decision": "approve-with-conditions", "conditions": conditions, "reason": site.text("Only.")},
        "an earlier date": {"valid_until": add_seconds(site.now, 3_600)},
        "withdrawal": {"decision": "withdraw"},
    }
    site.review("rita", "privacy", **fields[narrower])
    site.revoke_key("rita", since=later)
    assert any(
        "Adapter clauses@1 needs 2 valid approvals for legal and has 1." in str(reason) for reason in against(site)
    )


def test_a_reviewer_takes_a_rejection_back() -> None:
    site = stage("approved")
    site.review("rita", "privacy", decision="reject")
    assert against(site)
    site.review("rita", "privacy")
    assert against(site) == []


# What a release rests on.


def test_a_release_lapses_with_its_owner_in_the_rules_as_in_admission() -> None:
    site = stage("serving")
    site.revoke("otto")
    with refuses(site, Denied, "otto, who signed the release of entry 28, is no longer a release owner of"):
        site.add(site.request(9))


def test_a_baseline_is_neither_reviewed_nor_released() -> None:
    site = stage("imported")
    run = f"r-{len(site.state.runs) + 1:06d}"
    site.ordered(RunRequested(policy=site.in_force, run=run), site.train_order(recipe={"purpose": "baseline"}))
    site.add(site.started(run))
    site.add(site.checkpointed(run))
    site.add(site.finished(run))
    site.seal(run)
    for act in (partial(site.review, "rita", "privacy"), site.activate):
        with refuses(site, Denied, "Adapter clauses@1 was trained as a baseline and cannot be released."):
            act()


def test_a_dataset_is_rendered_for_the_base_that_its_order_named() -> None:
    site = stage("staffed")
    site.import_base()
    site.import_base("other")
    requested = site.ordered(ImportRequested(policy=site.in_force), site.dataset_order())
    from scripts.kit.log_builder import manifest

    with refuses(site, Denied, "base: expected smollm2, got other"):
        site.add(
            site.dataset_imported(requested, base="other"),
            documents={"manifest": manifest("clauses", 1, {"rows": b"rows"})},
        )


# The log's key.


def test_the_logs_key_changes_with_two_administrators_and_the_old_signs_on_for_a_while() -> None:
    site = stage("staffed")
    first = site.state.site.log_key
    end = add_seconds(site.now, 3_600)
    new = site.rotate_log_key(end)
    assert site.state.site.log_key == vkey_of(ORIGIN, new)
    assert site.state.site.signing_keys(site.now) == (first, vkey_of(ORIGIN, new))
    assert site.state.site.signing_keys(end) == (vkey_of(ORIGIN, new),)


def test_the_logs_next_key_bears_its_name_and_never_signed_it() -> None:
    site = stage("staffed")
    for vkey, words in (
        (site.state.site.log_key, "This key has signed this log before."),
        (vkey_of("other.example/log", generate_ed25519()), f"A key of this log has the name {ORIGIN}"),
        ("nonsense", "The order contains no valid key of a log."),
    ):
        order = site.order(RotateLogKey, "anna", log_key=vkey, old_until=site.now)
        with refuses(site, Denied, words):
            site.pend(order)


# Texts.


def test_a_text_is_erased_once_by_two_administrators() -> None:
    site = stage("imported")
    instruction = next(d.commitment for d in site.disclosures if d.text == "Name the clause.")
    with refuses(site, Denied, "a second one's countersignature"):
        site.ordered(TextErased(policy=site.in_force), site.order(Erase, "anna", commitment=instruction))
    entry = site.erase(instruction)
    text = site.state.texts.get(instruction)
    assert text is not None and text.erased == entry.index
    with refuses(site, Denied, f"The text was erased by entry {entry.index}"):
        site.erase(instruction)


def test_an_countersignature_whose_reason_is_the_text_itself_erases_it_all_the_same() -> None:
    site = stage("imported")
    instruction = next(d.commitment for d in site.disclosures if d.text == "Name the clause.")
    order = site.order(Erase, "anna", commitment=instruction)
    pending = site.pend(order)
    signed = site.order(Countersign, "ben", order=pending.pae_digest, reason=instruction)
    envelope = site.sign(signed)
    documents = {"order": encode_envelope(envelope), "countersigned": encode_envelope(pending)}
    both = ((envelope.pae_digest, signed), (pending.pae_digest, order))
    entry = site.add(TextErased(policy=site.in_force), documents=documents, signed=both)
    text = site.state.texts.get(instruction)
    assert text is not None and text.erased == entry.index


def test_only_what_an_entry_binds_can_be_erased() -> None:
    site = stage("staffed")
    with refuses(site, Denied, "No order and no failure of this log binds a text with the commitment"):
        site.erase("hmac-sha256:" + "0" * 64)


def test_a_signers_printed_name_stays_while_they_stand_and_for_the_retention_after() -> None:
    site = stage("approved")
    name = printed_name(site, "rita")
    with refuses(site, Denied, "The text is the printed name of an enrolled principal: rita."):
        site.erase(name)
    site.revoke("rita")
    with refuses(site, Denied, "Policy keeps this text until"):
        site.erase(name)
    site.now = add_seconds(site.now, site.state.parameters.name_retention_s)
    site.erase(name)


def test_text_stays_for_the_retention_of_texts() -> None:
    site = stage("imported")
    site.adopt(policy_set(text_retention_s=3_600))
    instruction = next(d.commitment for d in site.disclosures if d.text == "Name the clause.")
    with refuses(site, Denied, "Policy keeps this text until"):
        site.erase(instruction)
    site.now = add_seconds(site.now, 3_600)
    site.erase(instruction)


@pytest.mark.parametrize("subject", ["dataset:clauses", "principal:ines"])
def test_a_legal_hold_keeps_every_text_of_its_subject(subject: str) -> None:
    site = stage("imported")
    instruction = next(d.commitment for d in site.disclosures if d.text == "Name the clause.")
    held = site.hold(subject)
    with refuses(site, Denied, f"The legal hold of entry {held.index} keeps texts about {subject.partition(':')[2]}"):
        site.erase(instruction)
    site.lift(subject)
    site.erase(instruction)


@pytest.mark.parametrize(("subject", "keeps"), [("dataset:clauses@1", True), ("principal:raul", False)])
def test_a_hold_on_a_version_keeps_the_texts_of_its_import(subject: str, keeps: bool) -> None:
    """The order that imports a dataset names no version yet."""
    site = stage("imported")
    instruction = next(d.commitment for d in site.disclosures if d.text == "Name the clause.")
    held = site.hold(subject)
    if keeps:
        with refuses(
            site, Denied, f"The legal hold of entry {held.index} keeps texts about {subject.partition(':')[2]}"
        ):
            site.erase(instruction)
    else:
        site.erase(instruction)


def test_a_hold_on_a_name_keeps_the_texts_about_every_version() -> None:
    site = stage("sealed")
    meaning = site.review_order("rita", "privacy")
    site.ordered(ReviewRecorded(policy=site.in_force), meaning)
    held = site.hold("adapter:clauses")
    with refuses(site, Denied, f"The legal hold of entry {held.index} keeps texts about clauses"):
        site.erase(meaning.meaning)


def test_a_hold_keeps_why_an_import_failed() -> None:
    """Its message may quote a row."""
    site = stage("staffed")
    requested = site.ordered(
        ImportRequested(policy=site.in_force),
        site.order(ImportBase, "ines", base="smollm2", format="gguf", source=NO_DIGEST, licence="Apache-2.0"),
    )
    message = site.text("row 3: expected a label, got Erika Mustermann")
    site.add(ImportFailed(order=order_of(requested), code="bad-input", message=message), outcome="failure")
    held = site.hold("base:smollm2")
    with refuses(site, Denied, f"The legal hold of entry {held.index}"):
        site.erase(message)


@pytest.mark.parametrize(
    "subject",
    [
        "dataset:clausess@1",
        "dataset:clauses@2",
        "adapter:other",
        "principal:mia",
        "run:r-000009",
        "served-model:x",
        "request:1",
    ],
)
def test_a_hold_is_on_something_that_the_log_knows(subject: str) -> None:
    """A mistyped one would keep nothing, without an error."""
    site = stage("released")
    with refuses(site, Denied, f"The log has no {subject}"):
        site.hold(subject)
    for name in (
        "dataset:clauses@1",
        "adapter:clauses@1",
        "adapter:clauses",
        "unit:legal",
        "run:r-000001",
        "served-model:labels",
    ):
        site.hold(name)


def test_a_hold_is_not_placed_by_an_order_that_lifts_one() -> None:
    site = stage("staffed")
    site.hold("principal:rita")
    with refuses(site, Denied, "order: expected place-hold, got lift-hold"):
        site.ordered(HoldPlaced(policy=site.in_force), site.order(LiftHold, "anna", subject="principal:rita"))


def test_a_hold_keeps_a_printed_name_after_its_retention() -> None:
    site = stage("staffed")
    name = printed_name(site, "rita")
    site.revoke("rita")
    site.hold("principal:rita")
    site.now = add_seconds(site.now, site.state.parameters.name_retention_s)
    with refuses(site, Denied, "legal hold"):
        site.erase(name)


def refuse(site: LogBuilder, order: Order) -> None:
    envelope = site.sign(order)
    body = OrderRefused(order=envelope.pae_digest, action=order.action, code="denied", refusals=())
    documents = {"order": encode_envelope(envelope)}
    site.add(body, actor=order.signer, documents=documents, outcome="denied")


def test_a_hold_keeps_the_texts_of_an_order_that_was_refused_first() -> None:
    """Its refusal is filed under the order alone, and what the order is about counts all the same."""
    site = stage("approved")
    order = site.release_order(Activate, reason=site.text("Good enough."))
    refuse(site, order)
    held = site.hold("unit:legal")
    with refuses(site, Denied, f"The legal hold of entry {held.index}"):
        site.erase(order.reason or "")


def test_a_text_that_is_bound_again_is_kept_for_both() -> None:
    site = stage("approved")
    reason = site.text("Good enough.")
    site.ordered(ReleaseActivated(policy=site.in_force), site.release_order(Activate, reason=reason))
    bound = site.state.texts.get(reason)
    site.now = add_seconds(site.now, 60)
    site.ordered(
        PrincipalRevoked(policy=site.in_force), site.order(RevokePrincipal, "anna", principal="olga", reason=reason)
    )
    again = site.state.texts.get(reason)
    assert bound is not None and again is not None
    assert (again.entry, again.signer) == (bound.entry, "otto") and again.time > bound.time
    assert {"unit:legal", "principal:olga", "principal:anna"} <= set(again.subjects)
    for subject in ("unit:legal", "principal:olga", "principal:anna", "principal:otto"):
        forked = site.fork()
        forked.hold(subject)
        with refuses(forked, Denied, "legal hold"):
            forked.erase(reason)
    site.erase(reason)


def test_a_printed_name_of_two_stays_while_one_of_them_stands() -> None:
    site = stage("staffed")
    site.enrol("mia", "operator")
    name = printed_name(site, "mia")
    site.revoke("mia")
    enrol, documents = site.enrolment("mina", ("operator",), printed_name=name)
    site.two(PrincipalEnrolled(policy=site.in_force), enrol, documents)
    site.now = add_seconds(site.now, site.state.parameters.name_retention_s)
    with refuses(site, Denied, "The text is the printed name of an enrolled principal: mina."):
        site.erase(name)


def test_nobody_is_enrolled_under_a_name_that_was_erased_meanwhile() -> None:
    site = stage("staffed")
    enrol, documents = site.enrolment("mia", ("operator",))
    pending = site.pend(enrol, documents)
    site.erase(enrol.printed_name)
    with refuses(site, Denied, f"commitment {enrol.printed_name}: expected one that was not erased"):
        site.countersign(PrincipalEnrolled(policy=site.in_force), enrol, pending, documents)


def test_a_hold_is_placed_by_one_and_lifted_by_two() -> None:
    site = stage("staffed")
    site.hold("principal:rita")
    with refuses(site, Denied, "Entry 17 placed a legal hold on rita."):
        site.hold("principal:rita")
    with refuses(site, Denied, "olga is operator. This action needs administrator or auditor."):
        site.hold("principal:raul", signer="olga")
    with refuses(site, Denied, "a second one's countersignature"):
        site.ordered(HoldLifted(policy=site.in_force), site.order(LiftHold, "anna", subject="principal:rita"))
    with refuses(site, Denied, "There is no legal hold on principal:raul."):
        site.lift("principal:raul")
    site.lift("principal:rita")
    assert len(site.state.holds) == 0


# Witnesses.


def watched(name: str, **parameters: Any) -> LogBuilder:
    """Return a site whose policy requires the cosignature of one witness."""
    site = stage(name)
    site.adopt(policy_set(witnesses=(VKEY,), witness_quorum=1, witness_lifetime_s=3_600, **parameters))
    return site


def see(site: LogBuilder, **fields: Any) -> None:
    body, documents = site.cosigned(WITNESS, "witness.example/w1", **fields)
    site.add(body, documents=documents)


def test_an_export_is_good_no_longer_than_the_witnesses_that_it_leaves_with() -> None:
    """The unit's host counts them as admission does: the folder would end before the date that its order names."""
    site = watched("released")
    see(site)
    (seen,) = site.state.witnesses.values()
    limit = add_seconds(seen.time, 3_600)
    with refuses(site, Denied, f"The export can be valid until {limit}"):
        site.export(valid_until=add_seconds(limit, 1))
    site.export(valid_until=limit)


def test_a_cosignature_from_the_future_is_no_fresh_one() -> None:
    site = watched("released")
    note = parse_note(site.checkpoint())
    for lead_s, is_valid in ((site.state.parameters.clock_skew_s, True), (3_600, False), (1 << 62, False)):
        time_s = int(parse_time(site.now).timestamp()) + lead_s
        time = encode_time(datetime.fromtimestamp(time_s, UTC)) if lead_s < 1 << 40 else site.now
        signed = Note(note.text, (*note.signatures, cosign(note, "witness.example/w1", WITNESS, time_s)))
        body, _ = site.cosigned(WITNESS, "witness.example/w1", time=time)
        one = site.fork()
        if is_valid:
            one.add(body, documents={"note": encode_note(signed)})
            continue
        with refuses(one, Denied, "cosignature, time: expected one until"):
            one.add(body, documents={"note": encode_note(signed)})


def test_where_policy_asks_for_witnesses_nothing_is_admitted_without() -> None:
    site = watched("released")
    with refuses(site, Denied, "Policy requires 1 witnesses that have cosigned the log since"):
        site.load()
    see(site)
    site.load()


def test_a_cosignature_grows_old() -> None:
    site = watched("released")
    see(site)
    site.now = add_seconds(site.now, 3_601)
    assert refuse_unwitnessed_log(site.state, site.now)
    see(site)
    assert not refuse_unwitnessed_log(site.state, site.now)


def test_a_witness_counts_under_the_policy_in_force_only() -> None:
    site = watched("released")
    see(site)
    other = witness_vkey_of("witness.example/w2", generate_ed25519())
    site.adopt(policy_set(witnesses=(other,), witness_quorum=1))
    assert refuse_unwitnessed_log(site.state, site.now)


def test_a_cosignature_says_what_its_entry_says_and_never_less_than_before() -> None:
    site = watched("released")
    for fields, words in (
        ({"witness": "witness.example/w9"}, "witness: expected one of"),
        ({"time": add_seconds(site.now, 60)}, "time: expected"),
    ):
        body, documents = site.cosigned(WITNESS, "witness.example/w1")
        with refuses(site, Denied, words):
            site.add(body.model_copy(update=fields), documents=documents)
    body, documents = site.cosigned(WITNESS, "witness.example/w1")
    with refuses(site, Denied, "size: expected"):
        site.add(body.model_copy(update={"size": 3}), documents=documents)
    forged, documents = site.cosigned(generate_ed25519(), "witness.example/w1")
    with refuses(site, Tampered, "signature"):
        site.add(forged, documents=documents)
    see(site)
    before = site.state.size
    with refuses(site, Denied, f"size: expected more than {before - 1}, its cosignature before, got 5"):
        see(site, size=5)
    # A later time alone lets nobody cut off what came since.
    site.now = add_seconds(site.now, 3_000)
    with refuses(site, Denied, "its cosignature before"):
        see(site, size=before - 1)
    see(site, size=before)


def test_a_log_is_not_its_own_witness() -> None:
    """Under whatever name: by its key of today, by one that it had, or by one that it would rotate to."""
    site = stage("initialized")
    first = site.log
    site.rotate_log_key()
    for own in (first, site.log):
        named = policy_set(witnesses=(VKEY, witness_vkey_of("witness.example/w2", own)))
        with refuses(site, Denied, "The witness witness.example/w2 has a key of this log."):
            site.adopt(named)
    site.adopt(policy_set(witnesses=(VKEY,)))
    order = site.order(RotateLogKey, "anna", log_key=vkey_of(ORIGIN, WITNESS), old_until=site.now)
    with refuses(site, Denied, "The witness witness.example/w1 has a key of this log."):
        site.two(LogKeyRotated(policy=site.in_force), order)


def test_a_log_does_not_begin_as_its_own_witness() -> None:
    site = stage("initialized")
    named = encode_value(policy_set(witnesses=(witness_vkey_of("witness.example/w1", site.log),)))
    site.state = State()
    with refuses(site, Denied, "The witness witness.example/w1 has a key of this log."):
        site.add(site.first, documents={"policy": named})


def test_a_witness_set_is_consistent() -> None:
    with pytest.raises(ValueError, match="witness_quorum: expected at most the 0 witnesses"):
        policy_set(witness_quorum=1)
    with pytest.raises(ValueError, match="witnesses: expected each name once"):
        policy_set(witnesses=(VKEY, VKEY))
    with pytest.raises(ValueError, match="witnesses: expected a key of its own for each name"):
        policy_set(witnesses=(VKEY, witness_vkey_of("witness.example/w2", WITNESS)), witness_quorum=2)
    with pytest.raises(ValueError, match="witnesses: "):
        policy_set(witnesses=("nonsense",))


# What a verifier makes of it.


def verify(site: LogBuilder, **changes: Any) -> Report:
    given: dict[str, Any] = {
        "entries": site.entries,
        "documents": site.documents.get,
        "disclosures": site.disclosures,
        "checkpoint": site.checkpoint(),
        "trust": site.trust,
    }
    return verify_log(**given | changes, now=add_seconds(site.now, 1))


def test_a_log_whose_keys_changed_and_whose_texts_went_is_verified_from_the_first_trust_file() -> None:
    report = verify(stage("kept"))
    assert report.verdict == "verified", report.findings


def test_after_a_rotation_the_old_log_key_alone_signs_nothing() -> None:
    site = stage("kept")
    forged = site.fork()
    forged.log, forged.log_signers = stage("serving").log, {}
    report = verify(site, checkpoint=forged.checkpoint())
    assert [(finding.index, finding.rule) for finding in report.findings] == [(None, "checkpoint")]


def test_an_erased_text_that_still_travels_is_a_finding_of_the_entry_that_erased_it() -> None:
    site = stage("imported")
    text = next(text for text in site.disclosures if text.text == "Name the clause.")
    entry = site.erase(text.commitment)
    report = verify(site)
    assert [(finding.index, finding.rule) for finding in report.findings] == [(entry.index, "erasure")]
    site.disclosures.remove(text)
    assert verify(site).verdict == "verified"


def test_a_cosigned_checkpoint_of_another_log_is_found_by_its_proof() -> None:
    """Both keys signed it, and the rules see no tree: the log forked, and the witness saw the other branch."""
    site, other = watched("released"), watched("released")
    site.add(Heartbeat())
    other.add(ServiceStopped(reason="idle", process=None))
    body, documents = other.cosigned(WITNESS, "witness.example/w1")
    entry = site.add(body, documents=documents)
    report = verify(site)
    assert [(finding.index, finding.rule) for finding in report.findings] == [(entry.index, "witness")]
    assert "consistency proof" in report.findings[0].message


def test_an_erased_text_is_not_bound_again() -> None:
    """A signer who kept the salt could otherwise make its text travel beside the log once more."""
    site = stage("imported")
    text = next(text for text in site.disclosures if text.text == "Name the clause.")
    site.erase(text.commitment)
    order = site.order(RevokePrincipal, "anna", principal="olga", reason=text.commitment)
    with refuses(site, Denied, "expected one that was not erased", code="erased"):
        site.ordered(PrincipalRevoked(policy=site.in_force), order)
