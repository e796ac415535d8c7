"""A signed note is C2SP's: the published notes and keys come out, and a signature holds for its key and text only."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.errors import BadInput, Tampered
from appliance.formats.log.note import (
    MAX_SIGNATURES,
    ML_DSA_TYPE,
    Note,
    NoteSignature,
    encode_note,
    is_post_quantum,
    name_key,
    parse_note,
    parse_vkey,
    sign_note,
    verify_note,
    vkey_of,
)
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer
from appliance.formats.signatures.ml_dsa import MlDsaSigner, ml_dsa_raw

Vectors = Callable[[str], Any]
NAME = "log.example/one"


@pytest.fixture
def peter(vectors: Vectors) -> Ed25519Signer:
    typed = base64.b64decode(vectors("signed_note")["go"]["typedSeed"])
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(typed[1:]))


def test_signing_the_go_example_gives_its_bytes(vectors: Vectors, peter: Ed25519Signer) -> None:
    go = vectors("signed_note")["go"]
    assert vkey_of("PeterNeumann", peter) == vkey_of("PeterNeumann", peter.spki) == go["vkey"]
    data = sign_note(go["text"], "PeterNeumann", peter)
    assert data == go["note"].encode()
    note = parse_note(data)
    assert encode_note(note) == data
    verify_note(note, go["vkey"])


def test_an_ecdsa_key_of_another_log_has_its_published_id(vectors: Vectors) -> None:
    rekor = vectors("signed_note")["rekor"]
    key = parse_vkey(rekor["vkey"])
    assert key.name == rekor["name"]
    assert vkey_of(key.name, key.spki) == rekor["vkey"]


def test_the_specification_s_examples_parse_and_come_back(vectors: Vectors) -> None:
    for name in ("poem", "checkpoint"):
        data = vectors("signed_note")[name].encode()
        assert encode_note(parse_note(data)) == data
    assert parse_note(vectors("signed_note")["poem"].encode()).text.endswith("\n\ned è subito sera.\n")


def test_every_piece_of_a_vkey_is_no_vkey(vectors: Vectors) -> None:
    vkey = vectors("signed_note")["go"]["vkey"]
    pieces = {vkey[i:j] for i in range(len(vkey)) for j in range(i, len(vkey) + 1)} - {vkey}
    changed = {vkey[:i] + chr(ord(vkey[i]) + 1) + vkey[i + 1 :] for i in range(len(vkey))}
    for other in pieces | changed | set(vectors("signed_note")["badVkeys"]):
        with pytest.raises(BadInput):
            parse_vkey(other)


@pytest.mark.parametrize("kind", ["ed25519", "p256", "ml_dsa_key"])
def test_a_signature_holds_for_its_key_name_and_text(kind: str, request: pytest.FixtureRequest) -> None:
    signer = request.getfixturevalue(kind)
    note = parse_note(sign_note("text\n", NAME, signer))
    verify_note(note, vkey_of(NAME, signer))
    with pytest.raises(Tampered, match="expected one by"):
        verify_note(note, vkey_of("log.example/two", request.getfixturevalue("other_ed25519")))
    with pytest.raises(Tampered, match="signature, key"):
        verify_note(Note("Text\n", note.signatures), vkey_of(NAME, signer))


def test_a_note_may_carry_signatures_of_others(ed25519: Ed25519Signer, other_ed25519: Ed25519Signer) -> None:
    ours = parse_note(sign_note("text\n", NAME, ed25519)).signatures
    theirs = parse_note(sign_note("text\n", "witness.example", other_ed25519)).signatures
    verify_note(Note("text\n", theirs + ours), vkey_of(NAME, ed25519))
    with pytest.raises(Tampered):
        verify_note(Note("text\n", theirs), vkey_of(NAME, ed25519))


def test_a_second_signature_by_the_key_that_does_not_hold_spoils_the_note(ed25519: Ed25519Signer) -> None:
    good = parse_note(sign_note("text\n", NAME, ed25519)).signatures[0]
    bad = NoteSignature(good.name, good.key_id, bytes(64))
    for signatures in ((good, bad), (bad, good)):
        with pytest.raises(Tampered):
            verify_note(Note("text\n", signatures), vkey_of(NAME, ed25519))


def test_a_key_of_ml_dsa_has_the_reserved_type_and_a_long_identifier(
    ml_dsa_key: MlDsaSigner, ed25519: Ed25519Signer
) -> None:
    """C2SP: the key id is the hash of name, newline, type and key; 0xff is followed by a longer identifier."""
    vkey = vkey_of(NAME, ml_dsa_key)
    typed = b"\xff" + ML_DSA_TYPE + ml_dsa_raw(ml_dsa_key.spki)
    key_id = hashlib.sha256(NAME.encode() + b"\n" + typed).hexdigest()[:8]
    assert vkey == f"{NAME}+{key_id}+{base64.b64encode(typed).decode()}"
    assert parse_vkey(vkey).spki == ml_dsa_key.spki
    assert name_key(vkey) == f"{NAME}+{key_id}"
    assert [is_post_quantum(vkey_of(NAME, key)) for key in (ml_dsa_key, ed25519)] == [True, False]


@pytest.mark.parametrize(
    "typed", [b"\xff", b"\xff" + ML_DSA_TYPE, b"\xff" + ML_DSA_TYPE + bytes(1951), b"\xff" + bytes(1952)]
)
def test_another_key_of_the_reserved_type_is_refused(typed: bytes) -> None:
    key_id = hashlib.sha256(NAME.encode() + b"\n" + typed).hexdigest()[:8]
    with pytest.raises(BadInput):
        parse_vkey(f"{NAME}+{key_id}+{base64.b64encode(typed).decode()}")


def test_p384_does_not_sign_notes(p384: EcdsaSigner) -> None:
    with pytest.raises(BadInput, match="P-384"):
        sign_note("text\n", NAME, p384)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\tb", "a\u00a0b", "a\u2003b", "a\nb", "a\x00", "\ud800"])
def test_names_with_spaces_or_plus_are_refused(name: str, ed25519: Ed25519Signer) -> None:
    with pytest.raises(BadInput):
        vkey_of(name, ed25519)
    with pytest.raises(BadInput):
        sign_note("text\n", name, ed25519)


@pytest.mark.parametrize("text", ["", "text", "a\rb\n", "a\tb\n", "a\x00\n", "\ud800\n"])
def test_texts_without_end_or_with_control_characters_are_refused(text: str, ed25519: Ed25519Signer) -> None:
    with pytest.raises(BadInput):
        sign_note(text, NAME, ed25519)


SIGNATURE = "— n AAAAAAA="


@pytest.mark.parametrize(
    "data",
    [
        "",
        "text\n",
        "text\n\n",
        f"text\n{SIGNATURE}\n",
        f"text\n\n{SIGNATURE}",
        f"text\n\n{SIGNATURE}\n\n",
        f"text\n\n{SIGNATURE}\nmore\n",
        f"text\n\n {SIGNATURE}\n",
        f"text\n\n{SIGNATURE} \n",
        f"text\n\n{SIGNATURE}\r\n",
        "text\n\n- n AAAAAAA=\n",
        "text\n\n—  AAAAAAA=\n",
        "text\n\n— n AAAAAAA\n",
        "text\n\n— n AAAAAAB=\n",
        "text\n\n— n AAAAAA==\n",
        "text\n\n— n AAAA AAA=\n",
        "text\n\n— n+m AAAAAAA=\n",
        f"te\txt\n\n{SIGNATURE}\n",
        f"text\n\n{SIGNATURE}\n{SIGNATURE}\n",
        f"text\n\n{SIGNATURE}\n— m AAAAAAA=\n{SIGNATURE}\n",
        "text\n\n" + "".join(f"— n{number} AAAAAAA=\n" for number in range(MAX_SIGNATURES + 1)),
    ],
)
def test_malformed_notes_are_refused(data: str) -> None:
    with pytest.raises(BadInput):
        parse_note(data.encode())


def test_a_note_is_utf_8() -> None:
    with pytest.raises(BadInput):
        parse_note(b"text\xff\n\n" + f"{SIGNATURE}\n".encode())


def test_sixteen_signatures_are_accepted() -> None:
    lines = "".join(f"— n{number} AAAAAAA=\n" for number in range(16))
    assert len(parse_note(f"text\n\n{lines}".encode()).signatures) == 16
