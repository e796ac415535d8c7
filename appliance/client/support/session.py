"""Reading sessions: opened by signing the service's challenge; the token is stored with mode 0600 until it expires.

Each order is signed by itself; the session only lets a person read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.client.support.connection import Connection
from appliance.client.support.files import read_private, replace_private
from appliance.errors import ApplianceError, Denied, NotAuthenticated, Unavailable
from appliance.formats.core.fields import show
from appliance.formats.core.timestamp import encode_time
from appliance.formats.signatures.dsse import Envelope
from appliance.formats.signatures.keys import Signer

if TYPE_CHECKING:
    from appliance.api.people import OpenedSession

MARGIN_S = 20
"""Seconds before its expiry in which a token is not used any more."""

_MAX_CACHE_BYTES = 16_384


@dataclass(frozen=True)
class SessionEnd:
    """The end of a session.

    `ends_at` is set if the service could not be reached: the session then expires at that time.
    """

    was_open: bool
    ends_at: str | None = None


class SavedSession:
    """The session of one person at one service.

    `unlock` returns the person's key and asks for the passphrase if necessary. `agent` signs the statement instead if
    an agent holds the key, and returns None otherwise. `identify` shows an address to the person and returns the ID
    token that they got there; it is called if policy requires one.
    """

    def __init__(
        self,
        connection: Connection,
        name: str,
        unlock: Callable[[], Signer],
        agent: Callable[[bytes], Envelope | None] = lambda _: None,
        identify: Callable[[str], str] | None = None,
    ) -> None:
        self.connection = connection
        self.name = name
        self._unlock = unlock
        self._agent = agent
        self._identify = identify
        self._opened: OpenedSession | None = None

    @property
    def granted(self) -> OpenedSession | None:
        """Return the session that this command has used, or None."""
        return self._opened

    def token(self, *, renew: bool) -> str:
        """Return the token of a valid session."""
        return self.opened(renew=renew).token

    def opened(self, *, renew: bool = False) -> OpenedSession:
        """Return a valid session: from memory, from the cache, or opened now with the unlocked key."""
        limit = _now(MARGIN_S)
        if not renew:
            self._opened = self._opened or _load(self._cache)
            if self._opened is not None and self._opened.expires_at > limit:
                return self._opened
        self._opened = _open(self.connection, self.name, self._sign, self._identify)
        replace_private(self._cache, self._opened.model_dump_json().encode("utf-8"), "session")
        return self._opened

    def open_another(self) -> OpenedSession:
        """Open another session, which is neither saved nor used by this command."""
        return _open(self.connection, self.name, self._sign, self._identify)

    def _sign(self, payload: bytes) -> Envelope:
        from appliance.formats.signatures.dsse import sign_envelope

        return self._agent(payload) or sign_envelope(payload, self._unlock())

    def end(self, verify: Callable[[], object]) -> SessionEnd:
        """Remove the saved token and, if the service answers, end the session there. No service is started for this.

        `verify` raises an error, before the token is sent, if the service is not that of this log.
        """
        saved = _load(self._cache)
        self._opened = None
        try:
            self._cache.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"session, {self._cache}: expected to remove it, got {error.strerror}") from None
        if saved is None or saved.expires_at <= _now(0):
            return SessionEnd(was_open=False)
        try:
            self.connection.require_answer()
            verify()
            self.connection.end_session(saved.token)
        except NotAuthenticated:
            return SessionEnd(was_open=False)
        except Unavailable:
            return SessionEnd(was_open=True, ends_at=saved.expires_at)
        return SessionEnd(was_open=True)

    @property
    def _cache(self) -> Path:
        digest = hashlib.sha256(str(self.connection.where).encode("utf-8")).hexdigest()[:16]
        return state_folder() / "sessions" / f"{digest}-{self.name}.json"


def state_folder() -> Path:
    """Return the folder of this person's own state.

    It is apart from the service's data folder, which another account may own.
    """
    named = os.environ.get("XDG_STATE_HOME", "")
    base = Path(named) if named.startswith("/") else Path.home() / ".local" / "state"
    return base / "appliance"


_PAGE = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.:-]{0,258}/sign-in/identity")
"""The console's page for ID tokens. The service may be forged, so no other address is shown to be opened."""


def _open(
    connection: Connection,
    name: str,
    sign: Callable[[bytes], Envelope],
    identify: Callable[[str], str] | None,
) -> OpenedSession:
    from appliance.api.people import Challenge, EmptyBody, OpenedSession, SessionRequest
    from appliance.domain.core.credentials import SessionStatement as Statement
    from appliance.domain.core.credentials import encode_credential
    from appliance.domain.core.names import add_seconds
    from appliance.formats.signatures.dsse import envelope_value

    about = connection.about
    challenge = connection.post("/v1/sessions/challenge", Challenge, EmptyBody(), reading=False)
    issued = _now(0)
    statement = Statement(
        origin=about.origin,
        signer=name,
        nonce=challenge.nonce,
        issued_at=issued,
        expires_at=add_seconds(issued, about.parameters.session_lifetime_s),
    )
    envelope = sign(encode_credential(statement))
    try:
        request = SessionRequest(envelope=envelope_value(envelope))
        return connection.post("/v1/sessions", OpenedSession, request, reading=False)
    except Denied as error:
        if error.code != "identity-required" or identify is None:
            raise
        page = challenge.identity_page or ""
        if _PAGE.fullmatch(page) is None:
            raise Denied(
                f"session of {name}: expected the address of a console to get an ID token at, got {show(page)}; have "
                "an administrator set up the console, or let an administrator act on the service's own machine",
                code="identity-required",
            ) from None
        token = identify(f"{page}?nonce={envelope.pae_digest}")
        request = SessionRequest(envelope=envelope_value(envelope), identity_token=token)
        return connection.post("/v1/sessions", OpenedSession, request, reading=False)


def _load(path: Path) -> OpenedSession | None:
    """Return a cached session, or None if the file is malformed or other accounts can read it."""
    from appliance.api.people import OpenedSession

    try:
        return OpenedSession.model_validate_json(read_private(path, "session", _MAX_CACHE_BYTES))
    except (ApplianceError, ValueError):
        return None


def _now(lead_s: int) -> str:
    return encode_time(datetime.fromtimestamp(datetime.now(UTC).timestamp() + lead_s, UTC))
