"""The passkey profile of an envelope's signature: WebAuthn level 3, ES256, which can always be verified offline.

`sig` is canonical JSON {"authenticatorData", "clientDataJSON", "signature"}, each base64url without padding. The
assertion's challenge is SHA-256 of the envelope's PAE; the authenticator signs authenticatorData ‖
SHA-256(clientDataJSON). The first byte `{` tells it from a DER signature; an authenticator cannot be made to produce a
plain signature over a PAE, since what it signs begins with the SHA-256 of the relying party's id.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.fields import encode_base64url, parse_base64url, parse_object, show
from appliance.formats.signatures.keys import parse_spki, verify_signature

_MEMBERS = frozenset({"authenticatorData", "clientDataJSON", "signature"})
_USER_PRESENT, _USER_VERIFIED = 0x01, 0x04
_BACKUP_ELIGIBLE, _BACKED_UP = 0x08, 0x10
_ATTESTED, _EXTENSIONS = 0x40, 0x80
_FIXED_BYTES = 37


def challenge_of(pae: bytes) -> bytes:
    """What the console asks the authenticator to sign."""
    return hashlib.sha256(pae).digest()


def is_assertion(sig: bytes) -> bool:
    """Whether an ECDSA key's `sig` is an assertion: the other form, DER, begins with 0x30. Ask for ECDSA keys only."""
    return sig.startswith(b"{")


def encode_assertion(authenticator_data: bytes, client_data_json: bytes, signature: bytes) -> bytes:
    """The `sig` bytes of an envelope, from what `navigator.credentials.get` answered."""
    return encode_canonical(
        {
            "authenticatorData": encode_base64url(authenticator_data),
            "clientDataJSON": encode_base64url(client_data_json),
            "signature": encode_base64url(signature),
        }
    )


def parse_assertion(sig: bytes) -> tuple[bytes, bytes, bytes]:
    """authenticatorData, clientDataJSON and the DER signature."""
    value = parse_object(parse_canonical(sig), "passkey signature", _MEMBERS)
    return (
        parse_base64url(value["authenticatorData"], "passkey signature, authenticatorData"),
        parse_base64url(value["clientDataJSON"], "passkey signature, clientDataJSON"),
        parse_base64url(value["signature"], "passkey signature, signature"),
    )


def verify_assertion(spki: bytes, pae: bytes, sig: bytes, *, rp_id: str) -> None:
    """Section 7.2 of WebAuthn level 3, the steps that need no server state."""
    key = parse_spki(spki)
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise Tampered("passkey signature, key: expected P-256, got a key of a different kind or curve")
    try:
        authenticator_data, client_data_json, signature = parse_assertion(sig)
        client_data = _parse_client_data(client_data_json)
    except BadInput as error:
        raise Tampered(error.message) from None
    _check_client_data(client_data, encode_base64url(challenge_of(pae)), rp_id)
    _check_authenticator_data(authenticator_data, rp_id)
    verify_signature(spki, authenticator_data + hashlib.sha256(client_data_json).digest(), signature)


def _parse_client_data(data: bytes) -> dict[str, Any]:
    """The browser's JSON: not canonical, members may be added, but none twice."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
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


def _check_client_data(value: dict[str, Any], challenge: str, rp_id: str) -> None:
    for name, expected in (("type", "webauthn.get"), ("challenge", challenge)):
        if value.get(name) != expected:
            raise Tampered(f"passkey signature, {name}: expected {expected}, got {show(value.get(name))}")
    # Absent means false. A page of another origin that embeds ours must not collect signatures.
    if value.get("crossOrigin", False) is not False or "topOrigin" in value:
        raise Tampered("passkey signature, crossOrigin: expected false, got a page in a frame of another origin")
    if not _is_origin_of(value.get("origin"), rp_id):
        raise Tampered(f"passkey signature, origin: expected https of {show(rp_id)}, got {show(value.get('origin'))}")


def _is_origin_of(origin: object, rp_id: str) -> bool:
    """Whether the origin's host is the relying party's domain or below it, over https (http on localhost only)."""
    if not isinstance(origin, str):
        return False
    try:
        parts = urlsplit(origin)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        return False
    host = parts.hostname or ""
    if origin != f"{parts.scheme}://{host}{port}":
        return False
    if parts.scheme != "https" and (parts.scheme, host) != ("http", "localhost"):
        return False
    return host == rp_id or host.endswith(f".{rp_id}")


def _check_authenticator_data(data: bytes, rp_id: str) -> None:
    if len(data) < _FIXED_BYTES:
        raise Tampered(f"passkey signature, authenticatorData: expected {_FIXED_BYTES} bytes or more, got {len(data)}")
    expected = hashlib.sha256(rp_id.encode("utf-8")).digest()
    if data[:32] != expected:
        raise Tampered(f"passkey signature, rpIdHash: expected {expected.hex()}, got {data[:32].hex()}")
    flags = data[32]
    if not flags & _USER_PRESENT or not flags & _USER_VERIFIED:
        raise Tampered(f"passkey signature, flags: expected user present and verified, got 0x{flags:02x}")
    if flags & _BACKED_UP and not flags & _BACKUP_ELIGIBLE:
        raise Tampered(f"passkey signature, flags: expected no backup of what is not eligible, got 0x{flags:02x}")
    if flags & _ATTESTED:
        raise Tampered(f"passkey signature, flags: expected no attested credential data, got 0x{flags:02x}")
    if not flags & _EXTENSIONS and len(data) != _FIXED_BYTES:
        raise Tampered(f"passkey signature, authenticatorData: expected {_FIXED_BYTES} bytes, got {len(data)}")
