"""A passkey's assertion signs an envelope when every check of WebAuthn level 3 that needs no server state holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.fields import encode_base64url
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
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer
from appliance.formats.signatures.webauthn import challenge_of, encode_assertion, parse_assertion, verify_assertion

PAYLOAD = b"payload"
PAE = pae(PAYLOAD_TYPE, PAYLOAD)
RP_ID = "appliance.example"


@dataclass
class Authenticator:
    """Signs as a browser and its authenticator do; every part can be set wrong."""

    key: EcdsaSigner
    rp_id: str = RP_ID
    flags: int = 0x05
    after: bytes = b""
    client: dict[str, Any] = field(default_factory=dict)

    def sign(self, signed: bytes = PAE) -> bytes:
        client_data = {
            "type": "webauthn.get",
            "challenge": encode_base64url(challenge_of(signed)),
            "origin": f"https://{RP_ID}",
            "crossOrigin": False,
        } | self.client
        client_data_json = json.dumps({k: v for k, v in client_data.items() if v is not None}).encode()
        return self.assert_over(client_data_json)

    def assert_over(self, client_data_json: bytes) -> bytes:
        data = hashlib.sha256(self.rp_id.encode()).digest() + bytes([self.flags]) + bytes(4) + self.after
        signature = self.key.sign(data + hashlib.sha256(client_data_json).digest())
        return encode_assertion(data, client_data_json, signature)


def test_an_assertion_signs_an_envelope(p256: EcdsaSigner) -> None:
    envelope = Envelope(PAYLOAD_TYPE, PAYLOAD, (Signature(p256.keyid, Authenticator(p256).sign()),))
    assert parse_envelope(encode_envelope(envelope)) == envelope
    verify_envelope(envelope, p256.spki, rp_id=RP_ID)


def test_an_assertion_needs_the_relying_party(p256: EcdsaSigner) -> None:
    envelope = Envelope(PAYLOAD_TYPE, PAYLOAD, (Signature(p256.keyid, Authenticator(p256).sign()),))
    with pytest.raises(Tampered, match="rp id"):
        verify_envelope(envelope, p256.spki)
    with pytest.raises(Tampered, match="origin"):
        verify_envelope(envelope, p256.spki, rp_id="other.example")


def test_the_identity_is_the_same_for_both_signature_kinds(p256: EcdsaSigner) -> None:
    passkey = Envelope(PAYLOAD_TYPE, PAYLOAD, (Signature(p256.keyid, Authenticator(p256).sign()),))
    assert passkey.pae_digest == sign_envelope(PAYLOAD, p256).pae_digest


def test_an_assertion_holds_for_no_other_payload_or_key(p256: EcdsaSigner, other_p256: EcdsaSigner) -> None:
    sig = Authenticator(p256).sign()
    with pytest.raises(Tampered, match="challenge"):
        verify_assertion(p256.spki, pae(PAYLOAD_TYPE, b"Payload"), sig, rp_id=RP_ID)
    with pytest.raises(Tampered, match="signature"):
        verify_assertion(other_p256.spki, PAE, sig, rp_id=RP_ID)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"client": {"type": "webauthn.create"}}, "type"),
        ({"client": {"type": None}}, "type"),
        ({"client": {"challenge": None}}, "challenge"),
        ({"client": {"challenge": ""}}, "challenge"),
        ({"client": {"challenge": encode_base64url(challenge_of(PAE)) + "="}}, "challenge"),
        ({"client": {"crossOrigin": True}}, "crossOrigin"),
        ({"client": {"crossOrigin": 0}}, "crossOrigin"),
        ({"client": {"topOrigin": "https://evil.example"}}, "crossOrigin"),
        ({"client": {"origin": None}}, "origin"),
        ({"client": {"origin": f"http://{RP_ID}"}}, "origin"),
        ({"client": {"origin": "https://evil.example"}}, "origin"),
        ({"client": {"origin": f"https://evil{RP_ID}"}}, "origin"),
        ({"client": {"origin": f"https://{RP_ID}.evil.example"}}, "origin"),
        ({"client": {"origin": f"https://{RP_ID}/"}}, "origin"),
        ({"client": {"origin": f"https://user@{RP_ID}"}}, "origin"),
        ({"client": {"origin": f"https://{RP_ID}:x"}}, "origin"),
        ({"client": {"origin": "https://[::1"}}, "origin"),
        ({"client": {"origin": "null"}}, "origin"),
        ({"client": {"origin": "http://localhost"}}, "origin"),
        ({"client": {"origin": 5}}, "origin"),
        ({"rp_id": "other.example"}, "rpIdHash"),
        ({"flags": 0x00}, "flags"),
        ({"flags": 0x01}, "flags"),
        ({"flags": 0x04}, "flags"),
        ({"flags": 0x15}, "backup"),
        ({"flags": 0x45}, "attested"),
        ({"after": b"x"}, "authenticatorData"),
    ],
)
def test_each_wrong_part_is_refused_even_when_signed(wrong: dict[str, Any], match: str, p256: EcdsaSigner) -> None:
    with pytest.raises(Tampered, match=match):
        verify_assertion(p256.spki, PAE, Authenticator(p256, **wrong).sign(), rp_id=RP_ID)


@pytest.mark.parametrize(
    "right",
    [
        {"client": {"crossOrigin": None}},
        {"client": {"later": ["added", {"by": "browsers"}]}},
        {"client": {"origin": f"https://{RP_ID}:8443"}},
        {"client": {"origin": f"https://console.{RP_ID}"}},
        {"flags": 0x1D},
        {"flags": 0x85, "after": b"\xa0"},
    ],
)
def test_what_browsers_may_add_is_accepted(right: dict[str, Any], p256: EcdsaSigner) -> None:
    verify_assertion(p256.spki, PAE, Authenticator(p256, **right).sign(), rp_id=RP_ID)


def test_localhost_needs_no_tls(p256: EcdsaSigner) -> None:
    local = Authenticator(p256, rp_id="localhost", client={"origin": "http://localhost:8443"})
    verify_assertion(p256.spki, PAE, local.sign(), rp_id="localhost")


def test_only_p256_signs_assertions(p256: EcdsaSigner, p384: EcdsaSigner, ed25519: Ed25519Signer) -> None:
    with pytest.raises(Tampered, match="P-256"):
        verify_assertion(p384.spki, PAE, Authenticator(p384).sign(), rp_id=RP_ID)
    with pytest.raises(Tampered, match="P-256"):
        verify_assertion(ed25519.spki, PAE, Authenticator(p256).sign(), rp_id=RP_ID)


def test_a_plain_signature_is_no_assertion(p256: EcdsaSigner) -> None:
    with pytest.raises(Tampered):
        verify_assertion(p256.spki, PAE, p256.sign(PAE), rp_id=RP_ID)


def test_client_data_must_be_one_object_without_double_members(p256: EcdsaSigner) -> None:
    challenge = encode_base64url(challenge_of(PAE))
    twice = f'{{"type":"webauthn.get","challenge":"x","challenge":"{challenge}","origin":"https://{RP_ID}"}}'
    for client_data in (b"", b"[]", b"\xff", b"[" * 100_000, twice.encode()):
        with pytest.raises(Tampered, match="clientDataJSON"):
            verify_assertion(p256.spki, PAE, Authenticator(p256).assert_over(client_data), rp_id=RP_ID)


def test_the_wrapping_has_one_spelling(p256: EcdsaSigner) -> None:
    good = json.loads(Authenticator(p256).sign())
    parse_assertion(encode_canonical(good))
    variants: list[Any] = [
        [],
        good | {"userHandle": ""},
        {name: value for name, value in good.items() if name != "signature"},
        good | {"signature": 5},
        good | {"signature": good["signature"] + "="},
        good | {"signature": "+/+/"},
        good | {"signature": "A"},
        good | {"signature": "AB"},
        good | {"authenticatorData": ""},
    ]
    for variant in variants[:-1]:
        with pytest.raises(BadInput):
            parse_assertion(encode_canonical(variant))
    for variant in variants:
        with pytest.raises(Tampered):
            verify_assertion(p256.spki, PAE, encode_canonical(variant), rp_id=RP_ID)
    with pytest.raises(BadInput):
        parse_assertion(json.dumps(good).encode())
