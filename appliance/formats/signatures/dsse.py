"""DSSE v1 envelopes and the in-toto statements in them.

The profile has canonical JSON, one signature, and keyid = digest of the key's SPKI. A signed document is identified by
the digest of its PAE, never by its signature or envelope, because an ECDSA signature (r, s) has a valid twin
(r, n - s). The format is described in docs/formats/envelope.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

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
from appliance.formats.signatures.keys import Signer, is_ecdsa, verify_signature
from appliance.formats.signatures.webauthn import PasskeyScope, is_assertion, verify_assertion

PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of an envelope and the id of its key."""

    keyid: str
    sig: bytes

    def __post_init__(self) -> None:
        parse_digest(self.keyid, "envelope, keyid")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A DSSE envelope with its one signature, which is unverified."""

    payload: bytes
    signature: Signature

    @property
    def pae(self) -> bytes:
        """Return the bytes that were signed."""
        return pae(PAYLOAD_TYPE, self.payload)

    @property
    def pae_digest(self) -> str:
        """Return the digest of the PAE, which identifies the document independently of its signer."""
        return digest_bytes(self.pae)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Encode type and payload for signing (DSSE v1, pre-authentication encoding); lengths are in bytes."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_pae(data: bytes) -> bytes:
    """Return the payload of a PAE of this profile's payload type.

    Raises:
        BadInput: the bytes are another PAE, or none.
    """
    payload = data.split(b" ", 4)[-1]
    if pae(PAYLOAD_TYPE, payload) != data:
        raise BadInput(f"PAE: expected one of {PAYLOAD_TYPE}, got {show(data[:80].hex())}")
    return payload


def envelope_value(envelope: Envelope) -> dict[str, Any]:
    """Return the JSON object of an envelope, for a document that includes it."""
    signature = envelope.signature
    return {
        "payload": encode_base64(envelope.payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": signature.keyid, "sig": encode_base64(signature.sig)}],
    }


def encode_envelope(envelope: Envelope) -> bytes:
    """Encode the envelope as canonical JSON."""
    return encode_canonical(envelope_value(envelope))


def parse_envelope(data: bytes) -> Envelope:
    """Parse an envelope from canonical JSON without verifying its signature."""
    value = parse_object(parse_canonical(data), "envelope", frozenset({"payload", "payloadType", "signatures"}))
    parse_constant(value["payloadType"], "envelope, payloadType", PAYLOAD_TYPE)
    signatures = parse_list(value["signatures"], "envelope, signatures")
    if len(signatures) != 1:
        raise BadInput(f"envelope, signatures: expected 1, got {len(signatures)}")
    signature = parse_object(signatures[0], "envelope, signature", frozenset({"keyid", "sig"}))
    return Envelope(
        payload=parse_base64(value["payload"], "envelope, payload"),
        signature=Signature(signature["keyid"], parse_base64(signature["sig"], "envelope, sig")),
    )


def sign_envelope(payload: bytes, key: Signer) -> Envelope:
    return Envelope(payload, Signature(key.keyid, key.sign(pae(PAYLOAD_TYPE, payload))))


def verify_envelope(envelope: Envelope, spki: bytes, scope: PasskeyScope | None = None) -> None:
    """Verify the envelope's signature under this key.

    With `scope`, the key is a passkey and the signature must be its assertion within that scope. Without it, the
    signature must be a plain one. The caller decides whether the key may sign the document.
    """
    signature = envelope.signature
    keyid = digest_bytes(spki)
    if signature.keyid != keyid:
        raise Tampered(f"envelope, keyid: expected {keyid}, got {show(signature.keyid)}")
    if scope is not None:
        verify_assertion(spki, envelope.pae, signature.sig, scope)
    elif is_ecdsa(spki) and is_assertion(signature.sig):
        # Check the kind of the key first: one Ed25519 signature in 256 begins with the byte that marks an assertion.
        raise Tampered(f"envelope, signature by {keyid}: expected a plain signature, got a passkey's assertion")
    else:
        verify_signature(spki, envelope.pae, signature.sig)


STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_MEMBERS = frozenset({"_type", "subject", "predicateType", "predicate"})
_TYPE_URI = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]+")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement about subjects, which are (name, digest) pairs in the signer's order: at least one, names unique."""

    subjects: tuple[tuple[str, str], ...]
    predicate_type: str
    predicate: dict[str, Any]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.subjects]
        if not names:
            raise BadInput("statement, subject: expected at least one, got none")
        if not all(names):
            raise BadInput("statement, subject name: expected text, got an empty string")
        if len(set(names)) != len(names):
            raise BadInput(f"statement, subject names: expected each once, got {show(names)}")
        for _, digest in self.subjects:
            parse_digest(digest, "statement, subject digest")
        if _TYPE_URI.fullmatch(self.predicate_type) is None:
            raise BadInput(f"statement, predicateType: expected a URI, got {show(self.predicate_type)}")


def encode_statement(statement: Statement) -> bytes:
    """Encode the statement as canonical JSON."""
    return encode_canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"digest": {"sha256": digest.removeprefix("sha256:")}, "name": name}
                for name, digest in statement.subjects
            ],
            "predicateType": statement.predicate_type,
            "predicate": statement.predicate,
        }
    )


def parse_statement(data: bytes) -> Statement:
    """Parse a statement from canonical JSON."""
    value = parse_object(parse_canonical(data), "statement", _MEMBERS)
    parse_constant(value["_type"], "statement, _type", STATEMENT_TYPE)
    predicate = value["predicate"]
    if not isinstance(predicate, dict):
        raise BadInput(f"statement, predicate: expected an object, got {type(predicate).__name__}")
    return Statement(
        subjects=tuple(_parse_subject(item) for item in parse_list(value["subject"], "statement, subject")),
        predicate_type=parse_text(value["predicateType"], "statement, predicateType"),
        predicate=predicate,
    )


def _parse_subject(value: object) -> tuple[str, str]:
    subject = parse_object(value, "statement, subject", frozenset({"digest", "name"}))
    digest = parse_object(subject["digest"], "statement, subject digest", frozenset({"sha256"}))
    name = parse_text(subject["name"], "statement, subject name")
    return name, parse_digest(f"sha256:{parse_text(digest['sha256'], 'statement, sha256')}", "statement, sha256")
