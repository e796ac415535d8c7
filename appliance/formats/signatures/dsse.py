"""DSSE v1 envelopes in the appliance's profile: canonical JSON, one signature, keyid = digest of the key's SPKI.

What identifies a signed document is the digest of its PAE, never its signature or its envelope: an ECDSA signature
(r, s) has a valid twin (r, n - s). docs/formats/envelope.md is the page.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import digest_bytes, parse_digest
from appliance.formats.core.fields import (
    encode_base64,
    parse_base64,
    parse_constant,
    parse_list,
    parse_object,
    parse_text,
    show,
)
from appliance.formats.signatures.keys import Signer, is_ecdsa, keyid_of, verify_signature
from appliance.formats.signatures.relying_party import PasskeyScope
from appliance.formats.signatures.webauthn import is_assertion, verify_assertion

PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True, slots=True)
class Signature:
    keyid: str
    sig: bytes

    def __post_init__(self) -> None:
        parse_digest(self.keyid, "envelope, keyid")


@dataclass(frozen=True, slots=True)
class Envelope:
    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        parse_constant(self.payload_type, "envelope, payloadType", PAYLOAD_TYPE)
        if len(self.signatures) != 1:
            raise BadInput(f"envelope, signatures: expected 1, got {len(self.signatures)}")

    @property
    def pae(self) -> bytes:
        """The bytes that were signed."""
        return pae(self.payload_type, self.payload)

    @property
    def pae_digest(self) -> str:
        """The document's identity. It does not depend on who signed it, or how often."""
        return digest_bytes(self.pae)

    @property
    def signature(self) -> Signature:
        """The profile's one signature."""
        return self.signatures[0]


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding; lengths count bytes, not characters."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode_envelope(envelope: Envelope) -> bytes:
    signature = envelope.signature
    return encode_canonical(
        {
            "payload": encode_base64(envelope.payload),
            "payloadType": envelope.payload_type,
            "signatures": [{"keyid": signature.keyid, "sig": encode_base64(signature.sig)}],
        }
    )


def parse_envelope(data: bytes) -> Envelope:
    value = parse_object(parse_canonical(data), "envelope", frozenset({"payload", "payloadType", "signatures"}))
    signatures = parse_list(value["signatures"], "envelope, signatures")
    return Envelope(
        payload_type=parse_text(value["payloadType"], "envelope, payloadType"),
        payload=parse_base64(value["payload"], "envelope, payload"),
        signatures=tuple(_parse_signature(signature) for signature in signatures),
    )


def _parse_signature(value: object) -> Signature:
    member = parse_object(value, "envelope, signature", frozenset({"keyid", "sig"}))
    return Signature(
        keyid=parse_digest(member["keyid"], "envelope, keyid"),
        sig=parse_base64(member["sig"], "envelope, sig"),
    )


def sign_envelope(payload: bytes, key: Signer) -> Envelope:
    sig = key.sign(pae(PAYLOAD_TYPE, payload))
    return Envelope(PAYLOAD_TYPE, payload, (Signature(key.keyid, sig),))


def verify_envelope(envelope: Envelope, spki: bytes, scope: PasskeyScope | None = None) -> None:
    """The one signature holds under this key: plain, or where the key is a passkey, its assertion within its `scope`.

    A passkey makes no plain signature that counts, and no other key an assertion. Which key may sign what is not
    decided here.
    """
    signature = envelope.signature
    keyid = keyid_of(spki)
    if signature.keyid != keyid:
        raise Tampered(f"envelope, keyid: expected {keyid}, got {show(signature.keyid)}")
    if scope is not None:
        verify_assertion(spki, envelope.pae, signature.sig, scope)
    elif is_ecdsa(spki) and is_assertion(signature.sig):
        # By the key's kind first: one Ed25519 signature in 256 begins with the byte that marks an assertion.
        raise Tampered(f"envelope, signature by {keyid}: expected a plain signature, got a passkey's assertion")
    else:
        verify_signature(spki, envelope.pae, signature.sig)
