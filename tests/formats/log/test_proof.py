"""A proof file shows one entry's place in a log to anybody with the leaf hash and a policy, and to nobody without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.core.merkle import hash_leaf, hash_node, inclusion_proof, root_of
from appliance.formats.log.checkpoint import Checkpoint, cosign, sign_checkpoint, witness_vkey_of
from appliance.formats.log.note import add_signature, encode_note, parse_note, vkey_of
from appliance.formats.log.proof import HEADER, Proof, encode_proof, parse_proof, verify_proof
from appliance.formats.signatures.keys import Ed25519Signer
from tests.formats.conftest import LEAVES, ORIGIN, read_node
from tests.kit.log_policies import quorum_policy

SIZE = 7


@pytest.fixture(scope="module")
def proof(ed25519: Ed25519Signer, other_ed25519: Ed25519Signer) -> Proof:
    note = parse_note(sign_checkpoint(Checkpoint(ORIGIN, SIZE, root_of(LEAVES[:SIZE])), ed25519))
    cosigned = add_signature(note, cosign(note, "w1", other_ed25519, 1_764_000_000))
    return Proof(3, tuple(inclusion_proof(3, SIZE, read_node)), encode_note(cosigned))


@pytest.mark.parametrize("extra", [None, b"", b"file name"])
def test_a_proof_comes_back_and_holds(
    extra: bytes | None, proof: Proof, ed25519: Ed25519Signer, other_ed25519: Ed25519Signer
) -> None:
    data = encode_proof(replace(proof, extra=extra))
    assert parse_proof(data) == replace(proof, extra=extra)
    policy = quorum_policy([vkey_of(ORIGIN, ed25519)], [witness_vkey_of("w1", other_ed25519)], 1)
    witnessed = verify_proof(data, LEAVES[3], policy)
    assert (witnessed.checkpoint.size, witnessed.times_s) == (SIZE, {"w1": 1_764_000_000})


def test_its_text_is_the_specification_s(proof: Proof) -> None:
    lines = encode_proof(replace(proof, extra=b"more")).decode().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra bW9yZQ==", "index 3"]
    assert [len(line) for line in lines[3:7]] == [44, 44, 44, 0]
    assert lines[7:10] == proof.checkpoint.decode().split("\n")[:3]


def test_another_entry_another_log_and_a_missing_witness_are_refused(
    proof: Proof, ed25519: Ed25519Signer, other_ed25519: Ed25519Signer
) -> None:
    log, witness = vkey_of(ORIGIN, ed25519), witness_vkey_of("w1", other_ed25519)
    data = encode_proof(proof)
    with pytest.raises(Tampered, match="inclusion proof"):
        verify_proof(data, LEAVES[4], quorum_policy([log], [witness], 1))
    with pytest.raises(Tampered, match="inclusion proof"):
        verify_proof(encode_proof(replace(proof, index=4)), LEAVES[3], quorum_policy([log], [], 0))
    with pytest.raises(Tampered, match="one of the policy's logs"):
        verify_proof(data, LEAVES[3], quorum_policy([vkey_of(ORIGIN, other_ed25519)], [witness], 1))
    with pytest.raises(Tampered, match="quorum"):
        verify_proof(data, LEAVES[3], quorum_policy([log], [witness_vkey_of("w2", ed25519)], 1))
    with pytest.raises(Tampered, match="proof"):
        verify_proof(b"no proof", LEAVES[3], quorum_policy([log], [], 0))


def test_every_flipped_byte_is_found(proof: Proof, ed25519: Ed25519Signer, other_ed25519: Ed25519Signer) -> None:
    policy = quorum_policy([vkey_of(ORIGIN, ed25519)], [witness_vkey_of("w1", other_ed25519)], 1)
    data = encode_proof(proof)
    for place in range(len(data)):
        with pytest.raises(ApplianceError):
            verify_proof(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], LEAVES[3], policy)


def test_malformed_proofs_of_another_program_s_tests_are_refused(proof: Proof, vectors: Callable[[str], Any]) -> None:
    for head in vectors("transparency")["badProofHeads"]:
        with pytest.raises(BadInput):
            parse_proof(head.encode() + proof.checkpoint)


@pytest.mark.parametrize(
    "head",
    [
        "",
        f"{HEADER}",
        f"{HEADER}\r\nindex 3\r\n",
        f"{HEADER}\nindex 03\n",
        f"{HEADER}\nindex +3\n",
        f"{HEADER}\nindex 3 \n",
        f"{HEADER}\nindex  3\n",
        f"{HEADER}\nindex 7\n",
        f"{HEADER}\nindex 9223372036854775808\n",
        f"{HEADER}\nindex \u0663\n",
        f"{HEADER}\nindex 3\nextra bW9yZQ==\n",
        f"{HEADER}\nextra\nindex 3\n",
        f"{HEADER}\nextra bW9yZQ==\nextra bW9yZQ==\nindex 3\n",
        f"{HEADER}\nextra bW9yZR==\nindex 3\n",
        f"{HEADER}\nindex 3\n\n",
        f"{HEADER}\nindex 3\n" + f"{'A' * 43}=\n" * 64,
    ],
)
def test_malformed_proofs_are_refused(head: str, proof: Proof) -> None:
    with pytest.raises(BadInput):
        parse_proof(f"{head}\n".encode() + proof.checkpoint)


def test_a_tree_of_one_entry_needs_no_hash(ed25519: Ed25519Signer) -> None:
    leaf = hash_leaf(b"alone")
    data = encode_proof(Proof(0, (), sign_checkpoint(Checkpoint(ORIGIN, 1, leaf), ed25519)))
    assert verify_proof(data, leaf, quorum_policy([vkey_of(ORIGIN, ed25519)], [], 0)).checkpoint.root == leaf
    with pytest.raises(Tampered):
        verify_proof(data, hash_node(leaf, leaf), quorum_policy([vkey_of(ORIGIN, ed25519)], [], 0))
