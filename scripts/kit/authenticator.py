"""An authenticator and the browser before it, in software: they sign as the real ones do, and each part can be set
wrong."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from appliance.formats.core.fields import encode_base64url
from appliance.formats.signatures.keys import EcdsaSigner
from appliance.formats.signatures.webauthn import Assertion, PasskeyScope, challenge_of, encode_assertion

RP_ID = "appliance.example"
PLACE = f"https://{RP_ID}"
PRESENT_AND_VERIFIED = 0x05


@dataclass(frozen=True)
class Authenticator:
    """A `Signer` of one passkey. `client` are members of clientDataJSON to set or, where None, to leave out; `after`
    follows the authenticator data's 37 bytes."""

    key: EcdsaSigner
    rp_id: str = RP_ID
    origin: str = PLACE
    flags: int = PRESENT_AND_VERIFIED
    counter: int = 0
    after: bytes = b""
    client: dict[str, Any] = field(default_factory=dict)

    @property
    def spki(self) -> bytes:
        return self.key.spki

    @property
    def keyid(self) -> str:
        return self.key.keyid

    @property
    def credential_id(self) -> bytes:
        """Return the id of 32 bytes, as many authenticators have it."""
        return hashlib.sha256(self.spki).digest()

    @property
    def scope(self) -> PasskeyScope:
        """Return the scope that the enrolment binds."""
        return PasskeyScope(self.rp_id, (self.origin,), self.is_backup_eligible)

    @property
    def is_backup_eligible(self) -> bool:
        return bool(self.flags & 0x08)

    @property
    def authenticator_data(self) -> bytes:
        head = hashlib.sha256(self.rp_id.encode()).digest() + bytes([self.flags])
        return head + self.counter.to_bytes(4, "big") + self.after

    @property
    def creation_data(self) -> bytes:
        """The authenticator data of `navigator.credentials.create`: with the new credential and its key in COSE."""
        point = self.spki[-64:]
        cose = bytes.fromhex("a5010203262001215820") + point[:32] + bytes.fromhex("225820") + point[32:]
        head = hashlib.sha256(self.rp_id.encode()).digest() + bytes([self.flags | 0x40]) + bytes(4) + bytes(16)
        return head + len(self.credential_id).to_bytes(2, "big") + self.credential_id + cose + self.after

    def sign(self, data: bytes) -> bytes:
        """Return the `sig` of an envelope with this PAE."""
        client_data = {
            "type": "webauthn.get",
            "challenge": encode_base64url(challenge_of(data)),
            "origin": self.origin,
            "crossOrigin": False,
        } | self.client
        return self.assert_over(json.dumps({k: v for k, v in client_data.items() if v is not None}).encode())

    def assert_over(self, client_data_json: bytes) -> bytes:
        signed = self.authenticator_data + hashlib.sha256(client_data_json).digest()
        return encode_assertion(Assertion(self.authenticator_data, client_data_json, self.key.sign(signed)))

    def wrong(self, **changes: Any) -> Authenticator:
        """Return the same passkey with changes, such as in another browser."""
        return replace(self, **changes)


def new_passkey(**parts: Any) -> Authenticator:
    return Authenticator(EcdsaSigner(generate_private_key(SECP256R1())), **parts)
