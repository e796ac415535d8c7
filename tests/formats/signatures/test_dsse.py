"""An envelope is DSSE v1 with one signature; its identity is the digest of what was signed, not of the signature."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.signatures.dsse import (
    PAYLOAD_TYPE,
    Envelope,
    Signature,
    encode_envelope,
    pae,
    parse_envelope,
    sign_envelope,
    verify_envelope,
)
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, Signer, verify_signature

Vectors = Callable[[str], Any]
N_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture(params=["ed25519", "p256", "p384"])
def signer(request: pytest.FixtureRequest) -> Signer:
    return request.getfixturevalue(request.param)


def test_the_published_pae_comes_out_and_its_signature_holds(vectors: Vectors) -> None:
    vector = vectors("dsse")
    signed = pae(vector["payloadType"], vector["payload"].encode())
    assert signed == vector["pae"].encode()
    key = ec.EllipticCurvePublicNumbers(int(vector["x"]), int(vector["y"]), ec.SECP256R1()).public_key()
    raw = base64.b64decode(vector["signature"])
    sig = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    verify_signature(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), signed, sig)


def test_lengths_in_the_pae_count_bytes() -> None:
    assert pae("é", "ü".encode()) == "DSSEv1 2 é 2 ü".encode()


def test_no_two_documents_share_a_pae() -> None:
    assert pae("a", b"b c") != pae("a b", b"c")
    assert pae("a 1 b", b"") != pae("a", b"b")


def test_an_envelope_comes_back_and_holds(signer: Signer) -> None:
    envelope = sign_envelope(b"payload", signer)
    assert parse_envelope(encode_envelope(envelope)) == envelope
    verify_envelope(envelope, signer.spki)


def test_the_identity_is_the_digest_of_the_pae_whoever_signed(ed25519: Ed25519Signer, p256: EcdsaSigner) -> None:
    expected = f"sha256:{hashlib.sha256(pae(PAYLOAD_TYPE, b'payload')).hexdigest()}"
    assert sign_envelope(b"payload", ed25519).pae_digest == sign_envelope(b"payload", p256).pae_digest == expected


def test_the_twin_of_an_ecdsa_signature_is_the_same_order(p256: EcdsaSigner) -> None:
    envelope = sign_envelope(b"payload", p256)
    r, s = decode_dss_signature(envelope.signature.sig)
    twin = Envelope(b"payload", Signature(p256.keyid, encode_dss_signature(r, N_P256 - s)))
    verify_envelope(twin, p256.spki)
    assert twin != envelope
    assert twin.pae_digest == envelope.pae_digest


def test_an_envelope_holds_for_no_other_payload_key_or_key_id(
    ed25519: Ed25519Signer, other_ed25519: Ed25519Signer
) -> None:
    envelope = sign_envelope(b"payload", ed25519)
    sig = envelope.signature.sig
    with pytest.raises(Tampered):
        verify_envelope(Envelope(b"Payload", envelope.signature), ed25519.spki)
    with pytest.raises(Tampered, match="keyid"):
        verify_envelope(envelope, other_ed25519.spki)
    with pytest.raises(Tampered, match="keyid"):
        verify_envelope(Envelope(b"payload", Signature(other_ed25519.keyid, sig)), ed25519.spki)
    with pytest.raises(Tampered, match="signature"):
        verify_envelope(Envelope(b"payload", Signature(other_ed25519.keyid, sig)), other_ed25519.spki)


def test_an_ed25519_signature_that_begins_like_an_assertion_holds(ed25519: Ed25519Signer) -> None:
    """One in 256 begins with `{`, the byte that marks a passkey's assertion."""
    envelopes = (sign_envelope(b"payload %d" % number, ed25519) for number in range(5000))
    envelope = next(envelope for envelope in envelopes if envelope.signature.sig.startswith(b"{"))
    verify_envelope(envelope, ed25519.spki)


def _members(envelope: Envelope) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(encode_envelope(envelope))
    return value


def test_anything_but_the_profile_is_refused(ed25519: Ed25519Signer) -> None:
    good = _members(sign_envelope(b"payload", ed25519))
    signature = good["signatures"][0]
    variants: list[Any] = [
        [],
        "x",
        good | {"extra": 1},
        {name: value for name, value in good.items() if name != "payload"},
        good | {"payloadType": "application/json"},
        good | {"payloadType": 5},
        good | {"payload": None},
        good | {"payload": good["payload"].rstrip("=")},
        good | {"payload": good["payload"].rstrip("=") + "\n"},
        good | {"payload": "_-8="},
        good | {"payload": "YR=="},
        good | {"signatures": []},
        good | {"signatures": [signature, signature]},
        good | {"signatures": signature},
        good | {"signatures": [{"sig": signature["sig"]}]},
        good | {"signatures": [signature | {"cert": ""}]},
        good | {"signatures": [signature | {"keyid": ""}]},
        good | {"signatures": [signature | {"keyid": signature["keyid"].upper()}]},
        good | {"signatures": [signature | {"sig": 5}]},
    ]
    for variant in variants:
        with pytest.raises(BadInput):
            parse_envelope(encode_canonical(variant))
    with pytest.raises(BadInput):
        parse_envelope(json.dumps(good).encode())


def test_a_signature_has_the_digest_of_a_key() -> None:
    with pytest.raises(BadInput):
        Signature("key", b"sig")
