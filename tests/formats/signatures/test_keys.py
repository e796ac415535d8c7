"""A public key has one encoding and one id; a signature holds by its key's own kind; a key file opens only for its
passphrase and only unchanged."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.errors import BadInput, NotAuthenticated, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.signatures.keys import (
    EcdsaSigner,
    Ed25519Signer,
    Signer,
    encode_key_file,
    encode_spki_pem,
    generate_ed25519,
    is_ecdsa,
    keyid_of,
    load_spki_pem,
    parse_key_file,
    parse_key_file_spki,
    parse_spki,
    verify_signature,
)
from tests.kit.curve import FIELD, torsion, twins

SIGNERS = ["ed25519", "p256", "p384"]
N_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
PASSPHRASE = b"correct horse battery staple"


@pytest.fixture(params=SIGNERS)
def signer(request: pytest.FixtureRequest) -> Signer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def key_file(ed25519: Ed25519Signer) -> bytes:
    return encode_key_file(ed25519.private, PASSPHRASE, salt=bytes(32), nonce=bytes(12))


def test_a_key_id_is_the_digest_of_the_spki(signer: Signer) -> None:
    assert signer.keyid == keyid_of(signer.spki) == f"sha256:{hashlib.sha256(signer.spki).hexdigest()}"


def test_a_signature_holds_for_its_key_and_its_bytes_only(signer: Signer) -> None:
    sig = signer.sign(b"data")
    verify_signature(signer.spki, b"data", sig)
    others = [sig[:-1], sig + b"\0", b"", b"{}"]
    for data, other in [(b"Data", sig), (b"", sig), *((b"data", other) for other in others)]:
        with pytest.raises(Tampered):
            verify_signature(signer.spki, data, other)
    with pytest.raises(Tampered):
        verify_signature(generate_ed25519().spki, b"data", sig)


def test_no_bit_of_a_signature_is_free(ed25519: Ed25519Signer) -> None:
    sig = ed25519.sign(b"data")
    for bit in range(512):
        flipped = (int.from_bytes(sig, "big") ^ 1 << bit).to_bytes(64, "big")
        with pytest.raises(Tampered):
            verify_signature(ed25519.spki, b"data", flipped)


def test_an_ecdsa_signature_has_a_valid_twin(p256: EcdsaSigner) -> None:
    """Why a document's identity is never taken from its signature."""
    r, s = decode_dss_signature(p256.sign(b"data"))
    verify_signature(p256.spki, b"data", encode_dss_signature(r, N_P256 - s))


def test_each_curve_has_its_own_hash(p384: EcdsaSigner) -> None:
    with pytest.raises(Tampered):
        verify_signature(p384.spki, b"data", p384.private.sign(b"data", ec.ECDSA(SHA256())))


def test_kinds_are_told_apart(ed25519: Ed25519Signer, p256: EcdsaSigner, p384: EcdsaSigner) -> None:
    assert [is_ecdsa(key.spki) for key in (ed25519, p256, p384)] == [False, True, True]


def _spki(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_other_kinds_of_keys_are_refused() -> None:
    others = [
        ec.derive_private_key(5, ec.SECP521R1()),
        ec.derive_private_key(5, ec.SECP256K1()),
        x25519.X25519PrivateKey.from_private_bytes(bytes(32)),
        rsa.generate_private_key(65537, 2048),
        dsa.generate_private_key(2048),
    ]
    for key in others:
        with pytest.raises(BadInput):
            parse_spki(_spki(key))
    for curve in (ec.SECP521R1(), ec.SECP256K1()):
        with pytest.raises(BadInput, match="curve"):
            EcdsaSigner(ec.derive_private_key(5, curve))


def test_a_key_has_no_second_encoding(p256: EcdsaSigner, ed25519: Ed25519Signer) -> None:
    point = p256.private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    off_curve = p256.spki[:-1] + bytes([p256.spki[-1] ^ 1])
    long_form = b"\x30\x81\x2a" + ed25519.spki[2:]
    for spki in (compressed, off_curve, long_form, ed25519.spki + b"\0", ed25519.spki[:-1], ed25519.spki[-32:], b""):
        with pytest.raises(BadInput):
            parse_spki(spki)


def test_an_ed25519_key_of_small_order_is_refused(ed25519: Ed25519Signer) -> None:
    """Under such a key one signature (R = key's own small point, S = 0) fits a large part of all messages."""
    start = ed25519.spki[:12]
    points = torsion()
    assert len(points) == 8
    for x, y in points:
        for sign in {x & 1, 0, 1}:
            with pytest.raises(BadInput, match="prime order"):
                parse_spki(start + (y | sign << 255).to_bytes(32, "little"))
    forged = start + (1).to_bytes(32, "little")
    with pytest.raises(BadInput):
        verify_signature(forged, b"anything", (1).to_bytes(32, "little") + bytes(32))


def test_an_ed25519_key_of_mixed_order_is_refused(ed25519: Ed25519Signer) -> None:
    """Each is a key for the same secret: who has that could be enrolled again, as somebody else."""
    found = twins(ed25519.spki[-32:])
    assert len(found) == 7
    for twin in found:
        with pytest.raises(BadInput, match="prime order"):
            parse_spki(ed25519.spki[:12] + twin)


@pytest.mark.parametrize("y", [FIELD, FIELD + 1, FIELD + 5, 2**255 - 1])
def test_an_ed25519_key_beyond_the_field_is_refused(y: int, ed25519: Ed25519Signer) -> None:
    with pytest.raises(BadInput):
        parse_spki(ed25519.spki[:12] + y.to_bytes(32, "little"))


def test_pem_comes_back(signer: Signer) -> None:
    pem = encode_spki_pem(signer.spki)
    for variant in (pem, pem.replace(b"\n", b"\r\n"), pem.rstrip(b"\n")):
        assert load_spki_pem(variant) == signer.spki


def test_pem_with_anything_else_is_refused(p256: EcdsaSigner, ed25519: Ed25519Signer) -> None:
    pem = encode_spki_pem(p256.spki)
    lines = pem.split(b"\n")
    others = [
        b"",
        b"\xff",
        pem + pem,
        b"comment\n" + pem,
        pem + b"tail",
        pem.replace(b"PUBLIC", b"EC PUBLIC"),
        b"\n".join([lines[0], b"".join(lines[1:-2]), *lines[-2:]]),
        lines[0] + b"\n" + lines[-2] + b"\n",
        pem.replace(b"M", b"\xc3\x84", 1),
        encode_spki_pem(ed25519.spki).replace(b"MCow", b"MCo=w"),
        p256.spki,
    ]
    for other in others:
        with pytest.raises(BadInput):
            load_spki_pem(other)


def test_a_key_file_opens_for_its_passphrase(key_file: bytes, ed25519: Ed25519Signer) -> None:
    assert parse_key_file(key_file, PASSPHRASE).sign(b"data") == ed25519.sign(b"data")
    assert parse_key_file_spki(key_file) == ed25519.spki


def test_a_wrong_passphrase_is_not_authenticated(key_file: bytes) -> None:
    with pytest.raises(NotAuthenticated):
        parse_key_file(key_file, PASSPHRASE + b" ")


def test_a_key_file_without_passphrase_is_never_made(ed25519: Ed25519Signer) -> None:
    with pytest.raises(BadInput, match="passphrase"):
        encode_key_file(ed25519.private, b"", salt=bytes(32), nonce=bytes(12))
    with pytest.raises(BadInput, match="salt and nonce"):
        encode_key_file(ed25519.private, PASSPHRASE, salt=bytes(16), nonce=bytes(12))


def test_a_key_file_holds_the_seed_nowhere_in_the_clear(key_file: bytes) -> None:
    value = json.loads(key_file)
    seed = bytes(range(32))
    assert seed not in key_file
    assert all(seed not in base64.b64decode(value[name]) for name in ("ciphertext", "nonce", "publicKey"))


def test_the_public_key_in_a_key_file_cannot_be_exchanged(key_file: bytes, other_ed25519: Ed25519Signer) -> None:
    """It is associated data of the cipher: the file no longer opens."""
    value = json.loads(key_file)
    value["publicKey"] = base64.b64encode(other_ed25519.spki).decode()
    with pytest.raises(NotAuthenticated):
        parse_key_file(encode_canonical(value) + b"\n", PASSPHRASE)


def test_a_key_file_that_was_locked_around_another_key_is_tampered(
    key_file: bytes, other_ed25519: Ed25519Signer
) -> None:
    """An author of the file has the passphrase, and may still name another public key than the one inside."""
    value = json.loads(key_file)
    del value["ciphertext"]
    value["publicKey"] = base64.b64encode(other_ed25519.spki).decode()
    key = hashlib.scrypt(PASSPHRASE, salt=bytes(32), n=2**16, r=8, p=1, dklen=32, maxmem=2**27)
    sealed = ChaCha20Poly1305(key).encrypt(bytes(12), bytes(range(32)), encode_canonical(value))
    value["ciphertext"] = base64.b64encode(sealed).decode()
    with pytest.raises(Tampered, match="publicKey"):
        parse_key_file(encode_canonical(value) + b"\n", PASSPHRASE)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("_type", "urn:appliance:key-file:v2"),
        ("cipher", "none"),
        ("kdf", {"n": 2**30, "name": "scrypt", "p": 1, "r": 8, "salt": base64.b64encode(bytes(32)).decode()}),
        ("kdf", {"n": 2, "name": "scrypt", "p": 1, "r": 8, "salt": base64.b64encode(bytes(32)).decode()}),
        ("kdf", {"n": 2**16, "name": "scrypt", "p": 1, "r": 8, "salt": ""}),
        ("kdf", []),
        ("nonce", "AAAA"),
        ("nonce", 5),
        ("ciphertext", ""),
        ("publicKey", ""),
        ("extra", 1),
    ],
)
def test_another_key_file_is_refused_before_any_work(member: str, value: Any, key_file: bytes) -> None:
    changed = json.loads(key_file) | {member: value}
    with pytest.raises(BadInput):
        parse_key_file(encode_canonical(changed) + b"\n", PASSPHRASE)


def test_a_key_file_ends_in_one_newline(key_file: bytes) -> None:
    for other in (key_file[:-1], key_file + b"\n", b"\n" + key_file, b""):
        with pytest.raises(BadInput):
            parse_key_file(other, PASSPHRASE)


def test_private_keys_do_not_print(ed25519: Ed25519Signer, p256: EcdsaSigner) -> None:
    assert repr(ed25519) + repr(p256) == "Ed25519Signer()EcdsaSigner()"
