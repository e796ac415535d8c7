"""The proof of an entry as a file: verified with a trust file alone; every change is detected."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from appliance.domain.core.entry import parse_entry
from appliance.domain.queries.proofs import VerifiedEntry, parse_entry_proof, verify_entry_proof
from appliance.errors import ApplianceError, BadInput, Tampered, Unavailable
from appliance.formats.core.commitment import disclose, disclosure_value
from appliance.formats.log.log_policy import parse_log_policy
from appliance.formats.signatures.keys import generate_ed25519
from scripts.kit.log_builder import LogBuilder
from tests.kit.entry_proofs import (
    COSIGNATURE,
    TAMPERED,
    TIME_S,
    UNUSABLE,
    W1,
    W2,
    Witnessed,
    encoded,
    entry_proof_of,
)
from tests.kit.log_policies import quorum_policy
from tests.verifier.test_program import run


@pytest.fixture(scope="module")
def log() -> Witnessed:
    return Witnessed()


def verified(data: bytes, policy: bytes, genesis: str | None = None) -> VerifiedEntry:
    return verify_entry_proof(parse_entry_proof(data), parse_log_policy(policy), genesis)


def test_an_entry_is_proved_with_its_order_and_texts(log: Witnessed) -> None:
    found = verified(encoded(log.proof()), log.policy(0))
    assert (found.entry.type, found.entry.actor) == ("review.recorded", "rita")
    assert list(found.documents) == ["order"] and found.disclosures
    size = len(log.site.entries)
    assert found.sizes == (size, size - 2, size - 1)


def test_witnesses_that_saw_the_log_at_different_sizes_make_the_quorum_together(log: Witnessed) -> None:
    assert verified(encoded(log.proof()), log.policy(2)).times_s == {W1: TIME_S, W2: TIME_S}


def test_a_cosignature_of_a_witness_that_the_policy_does_not_name_counts_for_nothing(log: Witnessed) -> None:
    outsider = generate_ed25519()
    named = log.policy(1, **{W1: outsider, "witness.example/w3": generate_ed25519()})
    with pytest.raises(Unavailable, match=r"expected the quorum 'witnesses' of the trust policy, got none"):
        verified(encoded(log.proof()), named)
    with pytest.raises(Unavailable, match=r"got witness\.example/w2"):
        verified(encoded(log.proof()), log.policy(2, **{W2: log.w2, W1: outsider}))


@pytest.mark.parametrize("case", TAMPERED)
def test_whatever_was_changed_in_a_proof_is_found(log: Witnessed, case: str) -> None:
    value = log.proof()
    TAMPERED[case](value)
    with pytest.raises(Tampered):
        verified(encoded(value), log.policy(0))


@pytest.mark.parametrize("case", COSIGNATURE)
def test_a_false_cosignature_of_a_known_witness_voids_the_proof_and_one_of_an_outsider_is_not_evaluated(
    log: Witnessed, case: str
) -> None:
    value = log.proof()
    COSIGNATURE[case](value)
    with pytest.raises(Tampered):
        verified(encoded(value), log.policy(0))
    assert verified(encoded(value), log.policy(0, **{W2: log.w2})).times_s == {W2: TIME_S}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_is_no_proof_is_refused(log: Witnessed, case: str) -> None:
    value = log.proof()
    UNUSABLE[case](value)
    with pytest.raises(BadInput):
        verified(encoded(value), log.policy(0))


def test_a_member_twice_bytes_that_are_no_text_and_too_many_of_them_are_refused(log: Witnessed) -> None:
    whole = encoded(log.proof())
    for data in (b'{"entry": "", ' + whole[1:], b"\xef\xbb\xbf" + whole, whole + b"\xff", b"[" * 100_000, b""):
        with pytest.raises(BadInput):
            parse_entry_proof(data)


def test_another_log_s_key_proves_nothing_and_its_first_entry_is_compared(log: Witnessed) -> None:
    other = LogBuilder()
    data = encoded(log.proof())
    with pytest.raises(Tampered):
        verify_entry_proof(parse_entry_proof(data), quorum_policy([other.trust.log_key], [], 0))
    first = encoded(log.proof(0))
    assert verified(first, log.policy(0), log.site.trust.genesis).entry.index == 0
    with pytest.raises(Tampered, match="entry 0"):
        verified(first, log.policy(0), other.trust.genesis)


def test_a_text_that_fits_its_commitment_and_is_not_the_entry_s_is_refused(log: Witnessed) -> None:
    value = log.proof()
    value["disclosures"].append(disclosure_value(disclose("I read it twice.", bytes(32))))
    with pytest.raises(Tampered, match="expected one that the entry binds"):
        verified(encoded(value), log.policy(0))


def test_an_entry_of_every_type_is_proved_with_its_documents(log: Witnessed) -> None:
    site, policy = log.site, log.policy(0)
    for index in {parse_entry(data).type: index for index, data in enumerate(site.entries)}.values():
        found = verified(encoded(entry_proof_of(site, index).model_dump(mode="json")), policy)
        assert found.entry.index == index


def test_the_program_says_what_is_proved_and_ends_with_the_verdict_s_code(
    log: Witnessed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof, trust, policy = (tmp_path / name for name in ("proof.json", "trust.json", "policy"))
    proof.write_bytes(encoded(log.proof()))
    trust.write_bytes(log.trust())
    code, out, err = run(capsys, "--proof", proof, "--trust", trust)
    assert (code, err) == (0, "")
    assert f"entry          {log.reviewed}, review.recorded by rita at " in out
    assert "witnesses      none: the proof does not exclude a second history of this log" in out
    policy.write_bytes(log.policy(2))
    code, out, _ = run(capsys, "--proof", proof, "--trust", policy, "--json")
    value = json.loads(out)
    assert (code, value["verdict"], value["index"]) == (0, "verified", log.reviewed)
    assert f"{W1} at 2026-02-02T02:40:00.000Z; {W2} at" in value["witnesses"]
    policy.write_bytes(log.policy(1, **{W1: generate_ed25519()}))
    assert run(capsys, "--proof", proof, "--trust", policy)[0] == Unavailable.exit_code
    assert run(capsys, "--proof", proof)[0] == Unavailable.exit_code
    value = log.proof()
    TAMPERED["checkpoint, root"](value)
    proof.write_bytes(encoded(value))
    code, out, err = run(capsys, "--proof", proof, "--trust", trust)
    assert (code, out) == (Tampered.exit_code, "") and err.startswith("appliance-verify: failed: ")
    proof.write_bytes(b"{}")
    assert run(capsys, "--proof", proof, "--trust", trust)[0] == BadInput.exit_code
    assert run(capsys, "--proof", proof, "--record", proof)[0] == BadInput.exit_code


def test_a_random_change_verifies_only_where_it_changes_nothing(log: Witnessed) -> None:
    """Every 97th byte with a bit flipped; the same as read, or refused."""
    data, policy = encoded(log.proof()), log.policy(0)
    good = parse_entry_proof(data)
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 1
        try:
            proof = parse_entry_proof(bytes(changed))
            verify_entry_proof(proof, parse_log_policy(policy))
        except ApplianceError:
            continue
        assert proof == good, at


def test_bytes_of_a_document_are_those_that_the_entry_binds(log: Witnessed) -> None:
    found = verified(encoded(log.proof()), log.policy(0))
    assert base64.b64decode(log.proof()["documents"]["order"]) == found.documents["order"]
