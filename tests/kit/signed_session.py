"""What a person signs to open a session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from appliance.domain.core.credentials import SessionStatement, encode_credential
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Signer
from appliance.web.core.auth import Doorkeeper
from scripts.kit.log_builder import ORIGIN


def sign_session(door: Doorkeeper, name: str, key: Signer, seconds: int = 600) -> bytes:
    """The envelope, on a challenge of this door."""
    now = datetime.now(UTC)
    statement = SessionStatement(
        origin=ORIGIN,
        signer=name,
        nonce=door.challenge(),
        issued_at=encode_time(now),
        expires_at=encode_time(now + timedelta(seconds=seconds)),
    )
    return encode_envelope(sign_envelope(encode_credential(statement), key))
