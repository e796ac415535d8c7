"""Admission from bytes and proofs alone: every refusal reason, and the detection of tampering."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.records.runs import Adapter
from appliance.domain.releases.adapters import SIGNATURE_ROLES
from appliance.domain.releases.admission import (
    Admission,
    AdmissionInputs,
    LoggedOrder,
    decide_admission,
    entries_needed,
)
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, root_of
from scripts.kit.log_builder import ITEMS, STEPS, LogBuilder, stage
from tests.kit.evaluated_release import adapter_of, conditions

FILES = {"adapter_model.safetensors": b"weights", "recipe.json": b"{}", "steps.jsonl": STEPS, "items.jsonl": ITEMS}


def node(site: LogBuilder, level: int, index: int) -> bytes:
    leaves = [hash_leaf(data) for data in site.entries]
    return root_of(leaves[index << level : (index + 1) << level])


def evidence(site: LogBuilder) -> AdmissionInputs:
    """Return the store's inputs for the release of clauses@1 to legal/labels."""
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    sealed = parse_entry(site.entries[adapter.index])
    size = len(site.entries)
    logged = {}
    for index in entries_needed(site.state, "legal", adapter, "labels", site.now):
        entry = parse_entry(site.entries[index])
        proof = inclusion_proof(index, size, lambda level, place: node(site, level, place))
        envelopes = (site.documents.get(entry.documents.get(role, "")) for role in ("order", "countersigned"))
        logged[index] = LoggedOrder(site.entries[index], tuple(proof), *envelopes)
    return AdmissionInputs(
        files={**FILES, MANIFEST_PATH: site.documents[sealed.documents["manifest"]]},
        signatures=tuple(
            site.documents[sealed.documents[role]] for role in SIGNATURE_ROLES if role in sealed.documents
        ),
        logged=logged,
        checkpoint=site.checkpoint(),
    )


def decide(site: LogBuilder, found: AdmissionInputs) -> Admission:
    admission = decide_admission(site.state, "legal", "labels", found, site.now)
    assert admission is not None
    return admission


def test_what_holds_is_admitted_with_its_approvals() -> None:
    site = stage("released")
    admission = decide(site, evidence(site))
    assert (admission.reasons, admission.tampered) == ((), False)
    assert admission.approvals == site.admitted().approvals


def test_nothing_released_is_nothing_to_admit() -> None:
    site = stage("approved")
    assert decide_admission(site.state, "legal", "labels", evidence(site), site.now) is None


def other_file(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, files={**found.files, "recipe.json": b"[]"})


def more_files(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, files={**found.files, "more.py": b""})


def fewer_files(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, files={path: data for path, data in found.files.items() if path != "recipe.json"})


def other_manifest(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, files={**found.files, MANIFEST_PATH: found.files[MANIFEST_PATH] + b" "})


def no_manifest(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, files=FILES)


def other_signature(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, signatures=(found.signatures[0].replace(b'"sig":"', b'"sig":"AAAA'),))


def no_log(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, logged={})


def no_envelopes(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, logged={index: replace(one, envelope=None) for index, one in found.logged.items()})


def no_proofs(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, logged={index: replace(one, proof=()) for index, one in found.logged.items()})


def swapped_entries(found: AdmissionInputs) -> AdmissionInputs:
    first, *rest = sorted(found.logged)
    return replace(found, logged={**found.logged, first: found.logged[rest[0]]})


def other_checkpoint(found: AdmissionInputs) -> AdmissionInputs:
    return replace(found, checkpoint=stage("released").fork().checkpoint(5))


@pytest.mark.parametrize("spoil", [other_file, more_files, fewer_files, other_manifest, no_manifest, other_signature])
def test_bytes_that_do_not_hold_are_tampering(spoil: Any) -> None:
    site = stage("released")
    admission = decide(site, spoil(evidence(site)))
    assert admission.reasons and admission.tampered and admission.changed


@pytest.mark.parametrize("spoil", [no_log, no_envelopes, no_proofs, swapped_entries, other_checkpoint])
def test_a_log_that_does_not_hold_is_tampering_and_says_nothing_of_the_adapters_bytes(spoil: Any) -> None:
    """Else whoever can change a row for a moment, or rotates the log's key, has a good adapter put into quarantine."""
    site = stage("released")
    admission = decide(site, spoil(evidence(site)))
    assert admission.reasons and admission.tampered and not admission.changed


def test_a_row_that_says_approved_admits_nothing() -> None:
    """A review is put into the state by hand: no entry proves it."""
    site = stage("released")
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    made_up = replace(adapter.reviews[0], index=3, reviewer="raul", review_function="model-risk")
    site.state.adapters.put("clauses@1", adapter.model_copy(update={"reviews": (adapter.reviews[0], made_up)}))
    admission = decide(site, evidence(site))
    assert admission.reasons


@pytest.mark.parametrize("name", ["rita", "raul"])
def test_a_reviewer_who_was_revoked_is_a_refusal_and_no_tampering(name: str) -> None:
    site = stage("released")
    site.revoke(name)
    admission = decide(site, evidence(site))
    assert any(reason.code == "approvals-missing" for reason in admission.reasons)
    assert not admission.tampered


def test_a_release_owner_who_was_revoked_is_a_refusal_and_no_tampering() -> None:
    """The adapter's bytes are whole: it must not end in quarantine because somebody left."""
    site = stage("released")
    site.revoke("otto")
    admission = decide(site, evidence(site))
    assert any("otto, who signed the release" in str(reason) for reason in admission.reasons)
    assert not admission.tampered


def asked_and_delegated() -> LogBuilder:
    """On a request, with an approval in another's place."""
    site = stage("sealed")
    site.enrol("dana", "reviewer:legal-risk")
    site.delegate("dana")
    site.request_release()
    site.review("dana", "privacy", on_behalf_of="rita")
    site.review("raul", "model-risk")
    site.activate()
    return site


def in_an_emergency() -> LogBuilder:
    site = stage("released")
    site.review("rita", "privacy", decision="withdraw")
    site.break_glass()
    return site


@pytest.mark.parametrize("make", [asked_and_delegated, in_an_emergency])
def test_requests_delegations_and_emergencies_are_admitted_by_their_own_orders(make: Callable[[], LogBuilder]) -> None:
    site = make()
    admission = decide(site, evidence(site))
    assert (admission.reasons, admission.tampered) == ((), False)


ROWS: dict[str, tuple[Callable[[], LogBuilder], Callable[[Adapter], Adapter], str]] = {
    "a request for another exposure": (
        asked_and_delegated,
        lambda row: row.model_copy(
            update={"requests": (row.requests[0].model_copy(update={"exposure": "public", "purpose": "draft"}),)}
        ),
        "request: expected",
    ),
    "a request without its conditions": (
        asked_and_delegated,
        lambda row: row.model_copy(
            update={"requests": (row.requests[0].model_copy(update={"conditions": conditions(answers_a_day=9)}),)}
        ),
        "request: expected",
    ),
    "an approval in nobody's place": (
        asked_and_delegated,
        lambda row: row.model_copy(
            update={
                "reviews": (
                    dataclasses.replace(row.reviews[0], review_function="legal-risk", on_behalf_of=None),
                    row.reviews[1],
                )
            }
        ),
        "review: expected",
    ),
    "an approval without its conditions": (
        asked_and_delegated,
        lambda row: row.model_copy(
            update={
                "reviews": (
                    row.reviews[0],
                    dataclasses.replace(row.reviews[1], conditions=conditions(served_models=("labels",))),
                )
            }
        ),
        "review: expected",
    ),
}


@pytest.mark.parametrize(("make", "change", "why"), ROWS.values(), ids=ROWS)
def test_a_row_that_says_otherwise_than_the_signed_order_is_refused(
    make: Callable[[], LogBuilder], change: Callable[[Adapter], Adapter], why: str
) -> None:
    site = make()
    found = evidence(site)
    site.state.adapters.put("clauses@1", change(adapter_of(site)))
    admission = decide(site, found)
    assert admission.tampered and any(why in str(reason) for reason in admission.reasons)


def test_an_emergency_needs_both_orders_and_lasts_no_longer_than_they_say() -> None:
    site = in_an_emergency()
    found, release = evidence(site), site.state.releases.get("legal/labels")
    assert release is not None
    index = release.current.index
    alone = replace(found, logged={**found.logged, index: replace(found.logged[index], countersigned=None)})
    assert decide(site, alone).tampered
    longer = dataclasses.replace(release.current, until="2030-01-01T00:00:00.000Z")
    site.state.releases.put("legal/labels", release.model_copy(update={"history": (*release.history[:-1], longer)}))
    assert any("release: expected" in str(reason) for reason in decide(site, found).reasons)


def test_a_delegation_of_another_field_admits_nothing() -> None:
    """The row names an entry that delegates something else."""
    site = asked_and_delegated()
    row = adapter_of(site)
    other = site.delegate("dana", "raul", review_function="model-risk")
    approval = row.reviews[0]
    assert approval.on_behalf_of is not None
    moved = dataclasses.replace(approval.on_behalf_of, index=other.index)
    changed = dataclasses.replace(approval, on_behalf_of=moved)
    site.state.adapters.put("clauses@1", row.model_copy(update={"reviews": (changed, row.reviews[1])}))
    admission = decide(site, evidence(site))
    assert admission.tampered
