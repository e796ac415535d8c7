"""Who is asking: people by a session that their key opened, units by a token that their key signed."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.domain.core.credentials import SessionStatement, parse_credential, parse_token
from appliance.domain.core.signatures import accept_session
from appliance.errors import ApplianceError, BadInput, NotAuthenticated, TooMany
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.signatures.dsse import parse_envelope
from appliance.workflows.core.context import Context
from appliance.workflows.governance.callers import Caller, accept_caller
from appliance.workflows.governance.sessions import Refusals, open_session

CHALLENGE_S = 60.0
_MOST = 1_000


@dataclass(frozen=True)
class Session:
    principal: str
    expires_at: str
    ends: float
    size: int
    """Of the log when it was opened."""


class Doorkeeper:
    """Challenges and sessions live in memory only: a restarted service knows nobody."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.refused: Callable[[str | None, ApplianceError], None] = lambda unit, error: None
        """Told of each refusal that stands in no entry of its own."""
        self._lock = threading.Lock()
        self._challenges: dict[str, float] = {}
        self._sessions: dict[bytes, Session] = {}
        self._refused = 0
        self._refused_since = ""
        self._claimed: set[tuple[str, str]] = set()
        self._limited: Counter[tuple[str, str]] = Counter()

    def challenge(self) -> str:
        """A nonce that can be answered once, within a minute."""
        now = time.monotonic()
        with self._lock:
            self._challenges = {nonce: ends for nonce, ends in self._challenges.items() if ends > now}
            if len(self._challenges) >= _MOST:
                raise TooMany(f"challenges: expected fewer than {_MOST} open at a time")
            nonce = secrets.token_hex(16)
            self._challenges[nonce] = now + CHALLENGE_S
            return nonce

    def open_session(self, data: bytes, source: str) -> tuple[str, Session]:
        """The session's secret token, once its opening is an entry."""
        statement = parse_credential(SessionStatement, parse_envelope(data).payload)
        with self._lock:
            answered_by = self._challenges.pop(statement.nonce, 0.0)
        if answered_by <= time.monotonic():
            raise NotAuthenticated("session: expected the nonce of a challenge of the last minute, got another")
        size = self._context.ledger.state.size
        accept_session(self._context.ledger.state, data, encode_time(self._context.clock()))
        principal = open_session(self._context, data, source)
        # A clock that was moved back meanwhile makes it no longer than it was signed for.
        ends = parse_time(statement.expires_at)
        lasts = min(ends - self._context.clock(), ends - parse_time(statement.issued_at)).total_seconds()
        session = Session(principal, statement.expires_at, time.monotonic() + lasts, size)
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions = {key: s for key, s in self._sessions.items() if s.ends > time.monotonic()}
            self._sessions[_key(token)] = session
        return token, session

    def person(self, authorization: str | None) -> Session:
        """The standing session of a standing principal."""
        session = self._sessions.get(_key(_bearer(authorization)))
        if session is None or session.ends <= time.monotonic():
            raise NotAuthenticated(
                "session: expected a standing one, got none; a reading command with your key opens one"
            )
        state = self._context.ledger.state
        if any(session.size <= reset.index for reset in state.site.resets):
            raise NotAuthenticated("session: expected one opened since the clock was reset, got an earlier one")
        principal = state.principals.get(session.principal)
        if principal is None or principal.revoked is not None:
            raise NotAuthenticated(f"session: expected a standing principal, got {session.principal}, who was revoked")
        return session

    def unit(self, authorization: str | None) -> Caller:
        """The unit whose key signed the token."""
        state = self._context.ledger.state
        now = self._context.now(state)
        try:
            return accept_caller(state, parse_token(_bearer(authorization)), now)
        except BadInput as error:
            # An envelope with something else in it is no token either, and is counted as an attempt.
            raise NotAuthenticated(f"token: {error.message}") from None

    def count(self, unit: str | None, error: ApplianceError) -> None:
        """Attempts that nobody answers for, and a unit's that a limit refused, are counted here and appended as counts,
        once a minute: no flood of them fills the ledger."""
        self.refused(unit, error)
        with self._lock:
            if isinstance(error, NotAuthenticated):
                self._refused += 1
                self._refused_since = self._refused_since or encode_time(self._context.clock())
                if error.claimed is not None and len(self._claimed) < _MOST and self._knows(*error.claimed):
                    self._claimed.add(error.claimed)
            elif unit is not None:
                self._limited[unit, error.code] += 1

    def _knows(self, name: str, keyid: str) -> bool:
        state = self._context.ledger.state
        return name in state.principals or keyid in state.keys

    @contextmanager
    def counted(self) -> Iterator[Refusals]:
        """What was counted since the last time: it is counted on where it could not be recorded."""
        with self._lock:
            taken = Refusals(self._refused, self._refused_since, dict(self._limited), frozenset(self._claimed))
            self._refused, self._refused_since = 0, ""
            self._claimed.clear()
            self._limited.clear()
        try:
            yield taken
        except BaseException:
            with self._lock:
                self._refused += taken.strangers
                self._refused_since = taken.since or self._refused_since
                self._claimed |= taken.claimed
                self._limited.update(taken.units)
            raise


def _key(token: str) -> bytes:
    """Sessions are kept under a digest, so that looking one up leaks nothing of the token by its timing."""
    return hashlib.sha256(token.encode()).digest()


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("authorization: expected 'Bearer TOKEN', got none")
    return token.strip()
