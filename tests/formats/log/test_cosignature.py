"""A cosignature is C2SP's: those of public witnesses hold here, and one holds for its key, time and text only."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.errors import BadInput, Tampered
from appliance.formats.log.checkpoint import (
    Checkpoint,
    WitnessKey,
    cosign,
    open_checkpoint,
    parse_witness_vkey,
    sign_checkpoint,
    verify_cosignature,
    witness_vkey_of,
)
from appliance.formats.log.note import Note, NoteSignature, add_signature, encode_note, parse_note, parse_vkey, vkey_of
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer
from tests.kit.curve import twins

Vectors = Callable[[str], Any]
ORIGIN, WITNESS = "log.example/one", "witness.example/w1"
TIME_S = 1_764_000_000


@pytest.fixture(scope="module")
def note(ed25519: Ed25519Signer) -> Note:
    return parse_note(sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(32)), ed25519))


def test_cosignatures_of_public_witnesses_hold(vectors: Vectors) -> None:
    public = vectors("transparency")["witnessed"]
    note = parse_note(public["note"].encode())
    for vkey in public["witnesses"]:
        assert parse_witness_vkey(vkey).vkey == vkey
        assert verify_cosignature(note, vkey) == public["time_s"]
        with pytest.raises(Tampered):
            verify_cosignature(Note(note.text.replace("1432088532", "1432088533"), note.signatures), vkey)
    assert open_checkpoint(public["note"].encode(), public["log"]).size == 1_432_088_532


def test_the_specification_s_example_carries_the_time_it_shows(vectors: Vectors) -> None:
    data = vectors("transparency")["cosignature"].encode()
    note = parse_note(data)
    assert encode_note(note) == data
    assert int.from_bytes(note.signatures[1].sig[:8], "big") == 1_679_315_147


def test_a_witness_of_another_program_has_its_key_here(vectors: Vectors) -> None:
    lite = vectors("transparency")["litewitness"]
    signer = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(lite["witnessSeed"])))
    assert signer.spki[-32:].hex() == lite["witnessPublic"]
    assert parse_witness_vkey(witness_vkey_of("example.com", signer)).spki == signer.spki


def test_a_cosignature_signs_time_and_text(note: Note, other_ed25519: Ed25519Signer) -> None:
    line = cosign(note, WITNESS, other_ed25519, TIME_S)
    message = f"cosignature/v1\ntime {TIME_S}\n{note.text}".encode()
    assert line.sig == TIME_S.to_bytes(8, "big") + other_ed25519.sign(message)
    vkey = witness_vkey_of(WITNESS, other_ed25519)
    assert verify_cosignature(add_signature(note, line), vkey) == TIME_S
    later = NoteSignature(line.name, line.key_id, (TIME_S + 1).to_bytes(8, "big") + line.sig[8:])
    with pytest.raises(Tampered):
        verify_cosignature(add_signature(note, later), vkey)


def test_the_log_s_line_still_holds_beside_a_cosignature(note: Note, ed25519: Ed25519Signer) -> None:
    cosigned = add_signature(note, cosign(note, WITNESS, ed25519, TIME_S))
    assert open_checkpoint(encode_note(cosigned), vkey_of(ORIGIN, ed25519)).size == 7


def test_one_key_as_log_and_as_witness_has_two_ids(note: Note, ed25519: Ed25519Signer) -> None:
    """The log's own line is no cosignature, even under the same name and key."""
    vkey = witness_vkey_of(ORIGIN, ed25519)
    assert parse_witness_vkey(vkey).key_id != parse_vkey(vkey_of(ORIGIN, ed25519)).key_id
    with pytest.raises(Tampered, match="expected one by"):
        verify_cosignature(note, vkey)


def test_a_vkey_is_a_log_s_or_a_witness_s(ed25519: Ed25519Signer, p256: EcdsaSigner) -> None:
    for vkey in (vkey_of(WITNESS, ed25519), vkey_of(WITNESS, p256)):
        with pytest.raises(BadInput, match="expected 04"):
            parse_witness_vkey(vkey)
    with pytest.raises(BadInput, match="vkey, type"):
        parse_vkey(witness_vkey_of(WITNESS, ed25519))
    with pytest.raises(BadInput, match="Ed25519"):
        WitnessKey(WITNESS, p256.spki)


def test_no_key_of_mixed_order_is_a_log_s_or_a_witness_s(ed25519: Ed25519Signer) -> None:
    """Else one secret could be two witnesses, or a log its own."""
    for twin in twins(ed25519.spki[-32:]):
        for kind, parse in ((b"\x04", parse_witness_vkey), (b"\x01", parse_vkey)):
            keyid = hashlib.sha256(WITNESS.encode() + b"\n" + kind + twin).hexdigest()[:8]
            with pytest.raises(BadInput, match="prime order"):
                parse(f"{WITNESS}+{keyid}+{base64.b64encode(kind + twin).decode()}")


def test_every_piece_of_a_witness_vkey_is_none(ed25519: Ed25519Signer) -> None:
    vkey = witness_vkey_of(WITNESS, ed25519)
    pieces = {vkey[i:j] for i in range(len(vkey)) for j in range(i, len(vkey) + 1)} - {vkey}
    changed = {vkey[:i] + chr(ord(vkey[i]) + 1) + vkey[i + 1 :] for i in range(len(vkey))}
    for other in pieces | changed:
        with pytest.raises(BadInput):
            parse_witness_vkey(other)


def test_a_second_line_by_the_witness_that_does_not_hold_spoils_the_note(
    note: Note, other_ed25519: Ed25519Signer
) -> None:
    line = cosign(note, WITNESS, other_ed25519, TIME_S)
    bad = NoteSignature(line.name, line.key_id, bytes(72))
    for lines in ((line, bad), (bad, line)):
        with pytest.raises(Tampered):
            verify_cosignature(Note(note.text, lines), witness_vkey_of(WITNESS, other_ed25519))


@pytest.mark.parametrize("length", [1, 64, 71, 73])
def test_a_cosignature_has_72_bytes(length: int, note: Note, other_ed25519: Ed25519Signer) -> None:
    line = cosign(note, WITNESS, other_ed25519, TIME_S)
    cut = NoteSignature(line.name, line.key_id, (line.sig + b"\0")[:length])
    with pytest.raises(Tampered, match="expected 72 bytes"):
        verify_cosignature(Note(note.text, (cut,)), witness_vkey_of(WITNESS, other_ed25519))


@pytest.mark.parametrize("time_s", [-1, 0, 2**63])
def test_a_time_is_after_1970_and_fits_63_bits(time_s: int, note: Note, other_ed25519: Ed25519Signer) -> None:
    with pytest.raises(BadInput, match="time"):
        cosign(note, WITNESS, other_ed25519, time_s)
    message = f"cosignature/v1\ntime {time_s}\n{note.text}".encode()
    blob = (time_s % 2**64).to_bytes(8, "big") + other_ed25519.sign(message)
    key = WitnessKey(WITNESS, other_ed25519.spki)
    with pytest.raises(Tampered, match="time"):
        verify_cosignature(Note(note.text, (NoteSignature(key.name, key.key_id, blob),)), key.vkey)


def test_a_newer_line_takes_an_older_one_s_place(note: Note, other_ed25519: Ed25519Signer) -> None:
    first = add_signature(note, cosign(note, WITNESS, other_ed25519, TIME_S))
    second = add_signature(first, cosign(note, WITNESS, other_ed25519, TIME_S + 60))
    assert second.signatures[0] == note.signatures[0]
    assert len(second.signatures) == 2
    assert verify_cosignature(second, witness_vkey_of(WITNESS, other_ed25519)) == TIME_S + 60


def test_only_log_checkpoints_are_cosigned(ed25519: Ed25519Signer) -> None:
    with pytest.raises(BadInput, match="log checkpoint"):
        cosign(Note("a text\n", (NoteSignature("n", bytes(4), b"x"),)), WITNESS, ed25519, TIME_S)
