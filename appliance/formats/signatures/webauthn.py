"""Passkey signatures of envelopes: WebAuthn level 3 with ES256, verifiable offline.

`sig` is canonical JSON {"authenticatorData", "clientDataJSON", "signature"}, each base64url without padding. The
challenge of the assertion is SHA-256 of the envelope's PAE; the authenticator signs authenticatorData ‖
SHA-256(clientDataJSON). The first byte `{` distinguishes it from a DER signature. An authenticator cannot be made to
produce a plain signature over a PAE, since the signed bytes begin with the SHA-256 of the relying party's id. The
format is described in docs/formats/passkey.md.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

from appliance.errors import BadInput, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical, parse_json
from appliance.formats.core.fields import as_tampered, encode_base64url, parse_base64url, parse_object, show
from appliance.formats.signatures.keys import p256_spki, parse_spki, verify_signature

MAX_CREDENTIAL_ID_BYTES = 1_023
_MAX_BYTES = 4_096
_HEADER_BYTES = 55
"""Length of rpIdHash (32), flags (1), counter (4), AAGUID (16) and the length of the credential id (2)."""
# An ES256 key in COSE (RFC 9053) and CTAP2's canonical CBOR: {1: 2, 3: -7, -1: 1, -2: x, -3: y}.
_COSE_START, _COSE_MIDDLE = bytes.fromhex("a5010203262001215820"), bytes.fromhex("225820")
_COORDINATE_BYTES = 32
_COSE_BYTES = len(_COSE_START) + len(_COSE_MIDDLE) + 2 * _COORDINATE_BYTES


class Flags(IntFlag):
    """The flags byte of authenticator data (WebAuthn level 3 section 6.1)."""

    USER_PRESENT = 0x01
    USER_VERIFIED = 0x04
    BACKUP_ELIGIBLE = 0x08
    BACKED_UP = 0x10
    ATTESTED = 0x40
    EXTENSIONS = 0x80


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A newly registered passkey, from its authenticator data."""

    rp_id_hash: bytes
    credential_id: bytes
    spki: bytes
    backup_eligible: bool


def parse_authenticator_data(data: bytes) -> NewCredential:
    """Parse the result of `response.getAuthenticatorData()` at a registration; extensions are not read.

    Raises:
        BadInput: the data is malformed, the key is not ES256, or the user was not present and verified.
    """
    what = "new passkey, authenticator data"
    if not _HEADER_BYTES + _COSE_BYTES < len(data) <= _MAX_BYTES:
        raise BadInput(f"{what}: expected {_HEADER_BYTES + _COSE_BYTES + 1} to {_MAX_BYTES} bytes, got {len(data)}")
    flags = data[32]
    if not flags & Flags.ATTESTED:
        raise BadInput(f"{what}: expected attested credential data, got flags 0x{flags:02x}")
    if not flags & Flags.USER_PRESENT or not flags & Flags.USER_VERIFIED:
        raise BadInput(f"{what}: expected user present and verified, got flags 0x{flags:02x}")
    size = int.from_bytes(data[53:_HEADER_BYTES], "big")
    if not 1 <= size <= MAX_CREDENTIAL_ID_BYTES:
        raise BadInput(f"{what}: expected a credential id of 1 to {MAX_CREDENTIAL_ID_BYTES} bytes, got {size}")
    end = _HEADER_BYTES + size + _COSE_BYTES
    if len(data) < end or bool(flags & Flags.EXTENSIONS) != (len(data) > end):
        raise BadInput(f"{what}: expected {end} bytes and the extensions that its flags name, got {len(data)}")
    cose = data[_HEADER_BYTES + size : end]
    return NewCredential(
        rp_id_hash=data[:32],
        credential_id=data[_HEADER_BYTES : _HEADER_BYTES + size],
        spki=parse_cose(cose),
        backup_eligible=bool(flags & Flags.BACKUP_ELIGIBLE),
    )


def parse_cose(data: bytes) -> bytes:
    """Return the SPKI of an ES256 key in canonical COSE.

    Raises:
        BadInput: the key is of another kind or encoding.
    """
    x_at, y_at = len(_COSE_START), len(_COSE_START) + _COORDINATE_BYTES + len(_COSE_MIDDLE)
    is_whole = len(data) == _COSE_BYTES and data.startswith(_COSE_START)
    if not is_whole or data[x_at + _COORDINATE_BYTES : y_at] != _COSE_MIDDLE:
        raise BadInput("new passkey, public key: expected ES256 in COSE, got another algorithm or encoding")
    return p256_spki(data[x_at : x_at + _COORDINATE_BYTES], data[y_at:])


LOCALHOST = "localhost"
MAX_ORIGINS = 8
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# The last label begins with a letter: browsers read a host that ends in a number as an IP address.
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]{1,253})(?::([1-9][0-9]{0,4}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_DOMAIN_CHARACTERS = 253


@dataclass(frozen=True, slots=True)
class PasskeyScope:
    """The relying party, origins and kind of key that a valid assertion must name.

    `origins` are sorted, unique and as browsers write them: scheme, host, and the port if it is not the scheme's
    default. `backup_eligible` is true for a key that can be copied, such as to a cloud.
    """

    rp_id: str
    origins: tuple[str, ...]
    backup_eligible: bool

    def __post_init__(self) -> None:
        parse_rp_id(self.rp_id)
        if not 1 <= len(self.origins) <= MAX_ORIGINS:
            raise BadInput(f"passkey, origins: expected 1 to {MAX_ORIGINS}, got {len(self.origins)}")
        if list(self.origins) != sorted(set(self.origins)):
            raise BadInput(f"passkey, origins: expected them sorted, each once, got {show(list(self.origins))}")
        for origin in self.origins:
            parse_origin(origin, self.rp_id)

    @property
    def is_local(self) -> bool:
        """Return True if every user of the machine can listen at the origins of this passkey."""
        return self.rp_id == LOCALHOST or self.rp_id.endswith(f".{LOCALHOST}")  # browsers resolve both to loopback


def parse_rp_id(text: str) -> str:
    """Return the text if it is a domain in lower case or `localhost`; browsers accept no IP addresses."""
    if len(text) > _MAX_DOMAIN_CHARACTERS or _DOMAIN.fullmatch(text) is None:
        raise BadInput(f"passkey, rp id: expected a domain name in lower case, no IP address, got {show(text)}")
    return text


def parse_origin(text: str, rp_id: str) -> str:
    """Return the text if it is an origin at which a browser uses passkeys of this relying party.

    That is the party's domain or a subdomain over https, or `localhost` over http.
    """
    match = _ORIGIN.fullmatch(text)
    if match is None:
        raise BadInput(
            f"passkey, origin: expected https://HOST or https://HOST:PORT, as the browser writes it, got {show(text)}"
        )
    scheme, host, port = match[1], match[2], match[3]
    if host != rp_id and not host.endswith(f".{rp_id}"):
        raise BadInput(f"passkey, origin: expected a host that is {rp_id} or below it, got {show(text)}")
    if _DOMAIN.fullmatch(host) is None:
        raise BadInput(f"passkey, origin: expected a domain name in lower case, no IP address, got {show(text)}")
    if scheme == "http" and host != LOCALHOST:
        raise BadInput(f"passkey, origin: expected https, since it is not {LOCALHOST}, got {show(text)}")
    if port is not None and (int(port) > 65_535 or int(port) == _DEFAULT_PORTS[scheme]):
        raise BadInput(
            f"passkey, origin: expected a port that {scheme} does not imply, 65535 at most, got {show(text)}"
        )
    return text


MAX_AUTHENTICATOR_DATA_BYTES = 1_024
MAX_CLIENT_DATA_BYTES = 4_096
_MAX_SIGNATURE_BYTES = 72
"""Length of the DER encoding of two integers of at most 33 bytes."""

_MEMBERS = frozenset({"authenticatorData", "clientDataJSON", "signature"})
_FIXED_BYTES = 37


@dataclass(frozen=True, slots=True)
class Assertion:
    """The response of `navigator.credentials.get`; only its sizes are checked."""

    authenticator_data: bytes
    client_data_json: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _check_size("authenticatorData", self.authenticator_data, _FIXED_BYTES, MAX_AUTHENTICATOR_DATA_BYTES)
        _check_size("clientDataJSON", self.client_data_json, 1, MAX_CLIENT_DATA_BYTES)
        _check_size("signature", self.signature, 8, _MAX_SIGNATURE_BYTES)

    @property
    def counter(self) -> int:
        """Return the signature counter of the authenticator, or 0 if it has none; no check uses it."""
        return int.from_bytes(self.authenticator_data[33:_FIXED_BYTES], "big")

    @property
    def backup_eligible(self) -> bool:
        """Return True if the authenticator reports that the key can be copied, such as to a cloud."""
        return bool(self.authenticator_data[32] & Flags.BACKUP_ELIGIBLE)


def challenge_of(pae: bytes) -> bytes:
    """Return the challenge for the authenticator: the SHA-256 of the PAE."""
    return hashlib.sha256(pae).digest()


def is_assertion(sig: bytes) -> bool:
    """Return True if an ECDSA key's `sig` is an assertion; the other form, DER, begins with 0x30.

    Only valid for signatures of ECDSA keys.
    """
    return sig.startswith(b"{")


def encode_assertion(assertion: Assertion) -> bytes:
    """Encode the assertion as the `sig` bytes of an envelope."""
    return encode_canonical(
        {
            "authenticatorData": encode_base64url(assertion.authenticator_data),
            "clientDataJSON": encode_base64url(assertion.client_data_json),
            "signature": encode_base64url(assertion.signature),
        }
    )


def parse_assertion(sig: bytes) -> Assertion:
    """Parse the `sig` bytes of an envelope without verifying the assertion."""
    value = parse_object(parse_canonical(sig), "passkey signature", _MEMBERS)
    return Assertion(
        parse_base64url(value["authenticatorData"], "passkey signature, authenticatorData"),
        parse_base64url(value["clientDataJSON"], "passkey signature, clientDataJSON"),
        parse_base64url(value["signature"], "passkey signature, signature"),
    )


def verify_assertion(spki: bytes, pae: bytes, sig: bytes, scope: PasskeyScope) -> Assertion:
    """Verify an assertion over the PAE by the steps of WebAuthn level 3 section 7.2 that need no server state."""
    if not is_passkey_key(spki):
        raise Tampered("passkey signature, key: expected P-256, got a key of a different kind or curve")
    if not is_assertion(sig):
        raise Tampered("passkey signature: expected a passkey's assertion, got a plain signature")
    with as_tampered():
        assertion = parse_assertion(sig)
        client_data = _parse_client_data(assertion.client_data_json)
    _check_client_data(client_data, encode_base64url(challenge_of(pae)), scope)
    _check_authenticator_data(assertion.authenticator_data, scope)
    signed = assertion.authenticator_data + hashlib.sha256(assertion.client_data_json).digest()
    verify_signature(spki, signed, assertion.signature)
    return assertion


def is_passkey_key(spki: bytes) -> bool:
    """Return True if the key is P-256, the only kind that signs assertions here."""
    key = parse_spki(spki)
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)


def _parse_client_data(data: bytes) -> dict[str, Any]:
    """Parse the browser's JSON, which need not be canonical and may have more fields, each once."""
    value = parse_json(data, "passkey signature, clientDataJSON")
    if not isinstance(value, dict):
        raise BadInput(f"passkey signature, clientDataJSON: expected an object, got {type(value).__name__}")
    return value


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
