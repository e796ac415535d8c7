"""The passkey profile of an envelope's signature: WebAuthn level 3, ES256, which can always be verified offline.

`sig` is canonical JSON {"authenticatorData", "clientDataJSON", "signature"}, each base64url without padding. The
assertion's challenge is SHA-256 of the envelope's PAE; the authenticator signs authenticatorData ‖
SHA-256(clientDataJSON). The first byte `{` tells it from a DER signature; an authenticator cannot be made to produce a
plain signature over a PAE, since what it signs begins with the SHA-256 of the relying party's id.
docs/formats/passkey.md is the page.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import encode_base64url, parse_base64url, parse_object, show
from appliance.formats.signatures.authenticator_data import Flags
from appliance.formats.signatures.keys import parse_spki, verify_signature
from appliance.formats.signatures.relying_party import PasskeyScope

MAX_AUTHENTICATOR_DATA_BYTES = 1_024
MAX_CLIENT_DATA_BYTES = 4_096
_MAX_SIGNATURE_BYTES = 72
"""DER of two integers of 33 bytes at most."""

_MEMBERS = frozenset({"authenticatorData", "clientDataJSON", "signature"})
_FIXED_BYTES = 37


@dataclass(frozen=True, slots=True)
class Assertion:
    """What `navigator.credentials.get` answered; nothing of it is checked but sizes."""

    authenticator_data: bytes
    client_data_json: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _check_size("authenticatorData", self.authenticator_data, _FIXED_BYTES, MAX_AUTHENTICATOR_DATA_BYTES)
        _check_size("clientDataJSON", self.client_data_json, 1, MAX_CLIENT_DATA_BYTES)
        _check_size("signature", self.signature, 8, _MAX_SIGNATURE_BYTES)

    @property
    def counter(self) -> int:
        """How often the authenticator says that it signed; 0 where it does not count. No check rests on it."""
        return int.from_bytes(self.authenticator_data[33:_FIXED_BYTES], "big")

    @property
    def backup_eligible(self) -> bool:
        """Whether the authenticator says that the key can be copied, such as to a cloud."""
        return bool(self.authenticator_data[32] & Flags.BACKUP_ELIGIBLE)


def challenge_of(pae: bytes) -> bytes:
    """What the console asks the authenticator to sign."""
    return hashlib.sha256(pae).digest()


def is_assertion(sig: bytes) -> bool:
    """Whether an ECDSA key's `sig` is an assertion: the other form, DER, begins with 0x30. Ask for ECDSA keys only."""
    return sig.startswith(b"{")


def encode_assertion(assertion: Assertion) -> bytes:
    """The `sig` bytes of an envelope."""
    return encode_canonical(
        {
            "authenticatorData": encode_base64url(assertion.authenticator_data),
            "clientDataJSON": encode_base64url(assertion.client_data_json),
            "signature": encode_base64url(assertion.signature),
        }
    )


def parse_assertion(sig: bytes) -> Assertion:
    value = parse_object(parse_canonical(sig), "passkey signature", _MEMBERS)
    return Assertion(
        parse_base64url(value["authenticatorData"], "passkey signature, authenticatorData"),
        parse_base64url(value["clientDataJSON"], "passkey signature, clientDataJSON"),
        parse_base64url(value["signature"], "passkey signature, signature"),
    )


def verify_assertion(spki: bytes, pae: bytes, sig: bytes, scope: PasskeyScope) -> Assertion:
    """Section 7.2 of WebAuthn level 3, the steps that need no server state; the assertion that holds."""
    if not is_passkey_key(spki):
        raise Tampered("passkey signature, key: expected P-256, got a key of a different kind or curve")
    if not is_assertion(sig):
        raise Tampered("passkey signature: expected a passkey's assertion, got a plain signature")
    try:
        assertion = parse_assertion(sig)
        client_data = _parse_client_data(assertion.client_data_json)
    except BadInput as error:
        raise Tampered(error.message) from None
    _check_client_data(client_data, encode_base64url(challenge_of(pae)), scope)
    _check_authenticator_data(assertion.authenticator_data, scope)
    signed = assertion.authenticator_data + hashlib.sha256(assertion.client_data_json).digest()
    verify_signature(spki, signed, assertion.signature)
    return assertion


def is_passkey_key(spki: bytes) -> bool:
    """Whether the key is of the one kind that signs assertions here."""
    key = parse_spki(spki)
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)


def _parse_client_data(data: bytes) -> dict[str, Any]:
    """The browser's JSON: not canonical, members may be added, but none twice."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadInput(f"passkey signature, clientDataJSON: expected JSON in UTF-8, got {show(data)}") from None
    if not isinstance(value, dict):
        raise BadInput(f"passkey signature, clientDataJSON: expected an object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadInput("passkey signature, clientDataJSON: expected each member once, got one twice")
    return value


def _no_constant(name: str) -> None:
    """Python reads NaN and Infinity, which are no JSON."""
    raise ValueError(name)


def _check_client_data(value: dict[str, Any], challenge: str, scope: PasskeyScope) -> None:
    for name, expected in (("type", "webauthn.get"), ("challenge", challenge)):
        if value.get(name) != expected:
            raise Tampered(f"passkey signature, {name}: expected {expected}, got {show(value.get(name))}")
    # Absent means false. A page of another origin that embeds ours must not collect signatures.
    if value.get("crossOrigin", False) is not False or "topOrigin" in value:
        raise Tampered("passkey signature, crossOrigin: expected false, got a page in a frame of another origin")
    if value.get("origin") not in scope.origins:
        enrolled = " or ".join(scope.origins)
        raise Tampered(f"passkey signature, origin: expected {enrolled}, got {show(value.get('origin'))}")


def _check_authenticator_data(data: bytes, scope: PasskeyScope) -> None:
    expected = hashlib.sha256(scope.rp_id.encode("utf-8")).digest()
    if data[:32] != expected:
        raise Tampered(f"passkey signature, rpIdHash: expected {expected.hex()}, got {data[:32].hex()}")
    flags = data[32]
    if not flags & Flags.USER_PRESENT or not flags & Flags.USER_VERIFIED:
        raise Tampered(f"passkey signature, flags: expected user present and verified, got 0x{flags:02x}")
    if bool(flags & Flags.BACKUP_ELIGIBLE) != scope.backup_eligible:
        kind = "a key that can be copied" if scope.backup_eligible else "a key that cannot be copied"
        raise Tampered(f"passkey signature, flags: expected {kind}, as enrolled, got 0x{flags:02x}")
    if flags & Flags.BACKED_UP and not flags & Flags.BACKUP_ELIGIBLE:
        raise Tampered(f"passkey signature, flags: expected no backup of what is not eligible, got 0x{flags:02x}")
    if flags & Flags.ATTESTED:
        raise Tampered(f"passkey signature, flags: expected no attested credential data, got 0x{flags:02x}")
    if bool(flags & Flags.EXTENSIONS) != (len(data) > _FIXED_BYTES):
        with_them = "more than " if flags & Flags.EXTENSIONS else ""
        raise Tampered(
            f"passkey signature, authenticatorData: expected {with_them}{_FIXED_BYTES} bytes, got {len(data)}"
        )


def _check_size(what: str, data: bytes, least: int, most: int) -> None:
    if not least <= len(data) <= most:
        raise BadInput(f"passkey signature, {what}: expected {least} to {most} bytes, got {len(data)}")
