"""The signed statement that opens a session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from appliance.domain.core.credentials import SessionStatement, encode_credential
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import encode_envelope, sign_envelope
from appliance.formats.signatures.keys import Signer
from appliance.web.core.auth import CallerAuthenticator
from scripts.kit.log_builder import ORIGIN


def sign_session(authenticator: CallerAuthenticator, name: str, key: Signer, seconds: int = 600) -> bytes:
    """Sign a session's statement, on a challenge of this authenticator."""
    now = datetime.now(UTC)
    statement = SessionStatement(
        origin=ORIGIN,
        signer=name,
        nonce=authenticator.challenge(),
        issued_at=encode_time(now),
        expires_at=encode_time(now + timedelta(seconds=seconds)),
    )
    return encode_envelope(sign_envelope(encode_credential(statement), key))
