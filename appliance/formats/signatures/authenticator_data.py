"""What an authenticator says of itself: its flags, and the new passkey of `navigator.credentials.create`.

Of a new passkey only what enrolment needs is read, strictly: the credential's id, its public key, and whether it can
be copied. An attestation is not read: nothing here rests on who made the authenticator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from appliance.errors import BadInput
from appliance.formats.signatures.keys import p256_spki

MAX_CREDENTIAL_ID_BYTES = 1_023
_MAX_BYTES = 4_096
_HEADER_BYTES = 55
"""rpIdHash (32), flags (1), counter (4), AAGUID (16), the length of the credential's id (2)."""
# COSE (RFC 9053) of an ES256 key in CTAP2's canonical CBOR: {1: 2, 3: -7, -1: 1, -2: x, -3: y}. One spelling only.
_COSE_START, _COSE_MIDDLE = bytes.fromhex("a5010203262001215820"), bytes.fromhex("225820")
_COORDINATE_BYTES = 32
_COSE_BYTES = len(_COSE_START) + len(_COSE_MIDDLE) + 2 * _COORDINATE_BYTES


class Flags(IntFlag):
    """The byte after the hash of the relying party's id (section 6.1)."""

    USER_PRESENT = 0x01
    USER_VERIFIED = 0x04
    BACKUP_ELIGIBLE = 0x08
    BACKED_UP = 0x10
    ATTESTED = 0x40
    EXTENSIONS = 0x80


@dataclass(frozen=True, slots=True)
class NewCredential:
    rp_id_hash: bytes
    credential_id: bytes
    spki: bytes
    backup_eligible: bool


def parse_authenticator_data(data: bytes) -> NewCredential:
    """What `response.getAuthenticatorData()` gave; its extensions are left unread."""
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
    """The SPKI of a COSE key of kind ES256 in its one encoding; BadInput for every other."""
    x_at, y_at = len(_COSE_START), len(_COSE_START) + _COORDINATE_BYTES + len(_COSE_MIDDLE)
    is_whole = len(data) == _COSE_BYTES and data.startswith(_COSE_START)
    if not is_whole or data[x_at + _COORDINATE_BYTES : y_at] != _COSE_MIDDLE:
        raise BadInput("new passkey, public key: expected ES256 in COSE, got another algorithm or encoding")
    return p256_spki(data[x_at : x_at + _COORDINATE_BYTES], data[y_at:])
