"""Admission: from bytes and proofs alone, every reason against, and what counts as tampering."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.releases.admission import (
    Admission,
    AdmissionInputs,
    LoggedOrder,
    decide_admission,
    entries_needed,
)
from appliance.formats.artifacts.manifest import MANIFEST_PATH
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, root_of
from scripts.kit.log_builder import STEPS, LogBuilder, stage

FILES = {"adapter_model.safetensors": b"weights", "recipe.json": b"{}", "steps.jsonl": STEPS}


def node(site: LogBuilder, level: int, index: int) -> bytes:
    leaves = [hash_leaf(data) for data in site.entries]
    return root_of(leaves[index << level : (index + 1) << level])


def evidence(site: LogBuilder) -> AdmissionInputs:
    """What the store would read for the release of clauses@1 to legal/labels."""
    adapter = site.state.adapters.get("clauses@1")
    assert adapter is not None
    sealed = parse_entry(site.entries[adapter.index])
    size = len(site.entries)
    logged = {}
    for index in entries_needed(site.state, "legal", adapter, "labels", site.now):
        entry = parse_entry(site.entries[index])
        proof = inclusion_proof(index, size, lambda level, place: node(site, level, place))
        order = entry.documents.get("order")
        logged[index] = LoggedOrder(site.entries[index], tuple(proof), None if order is None else site.documents[order])
    return AdmissionInputs(
        files={**FILES, MANIFEST_PATH: site.documents[sealed.documents["manifest"]]},
        signature=site.documents[sealed.documents["signature"]],
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
    return replace(found, signature=found.signature.replace(b'"sig":"', b'"sig":"AAAA'))


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
    made_up = replace(adapter.reviews[0], index=3, reviewer="raul", field="model-risk")
    site.state.adapters.put("clauses@1", adapter.model_copy(update={"reviews": (adapter.reviews[0], made_up)}))
    admission = decide(site, evidence(site))
    assert admission.reasons


@pytest.mark.parametrize("name", ["rita", "raul"])
def test_a_reviewer_who_was_revoked_is_a_refusal_and_no_tampering(name: str) -> None:
    site = stage("released")
    site.revoke(name)
    admission = decide(site, evidence(site))
    assert any("quorum" in reason for reason in admission.reasons)
    assert not admission.tampered


def test_a_release_owner_who_was_revoked_is_a_refusal_and_no_tampering() -> None:
    """The adapter's bytes are whole: it must not end in quarantine because somebody left."""
    site = stage("released")
    site.revoke("otto")
    admission = decide(site, evidence(site))
    assert any("expected otto to be a standing release owner" in reason for reason in admission.reasons)
    assert not admission.tampered
