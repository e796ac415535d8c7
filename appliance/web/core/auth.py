"""Who is asking: people by a session that their key opened, units by a token that their key signed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.domain.core.credentials import SessionStatement, TokenRequest, parse_credential
from appliance.domain.core.signatures import accept_session
from appliance.domain.serving.applications import accept_token_request
from appliance.errors import ApplianceError, BadInput, NotAuthenticated
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.core.challenges import Challenges
from appliance.workflows.core.context import Context
from appliance.workflows.governance.callers import Caller, accept_caller
from appliance.workflows.governance.sessions import (
    NO_SESSION,
    Kind,
    Refusals,
    admit_browser,
    end_session,
    find_caller,
    find_session,
    hand_over,
    open_session,
    sweep_sessions,
)

LINK_S = 60
_MOST = 1_000


@dataclass(frozen=True)
class Session:
    principal: str
    expires_at: str


class Doorkeeper:
    """Challenges end with this process. Sessions stand in the database, so that a service that was started again, or
    another of the same database, knows them too."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.refused: Callable[[str | None, ApplianceError], None] = lambda unit, error: None
        """Told of each refusal that stands in no entry of its own."""
        self._lock = threading.Lock()
        self._challenges = Challenges(what="session")
        self._links: dict[bytes, tuple[str, float]] = {}
        """Whose session each opens, and until when."""
        self._ends: dict[str, float] = {}
        self._refused = 0
        self._refused_since = ""
        self._claimed: set[tuple[str, str]] = set()
        self._limited: Counter[tuple[str, str]] = Counter()

    def challenge(self) -> str:
        """A nonce that can be answered once, within a minute. Nothing is kept of it, so that no number of open ones
        stands in another person's way."""
        return self._challenges.make()

    def open_session(self, data: bytes, source: str) -> tuple[str, Session]:
        """The session's secret token, once its opening is an entry."""
        envelope = parse_envelope(data)
        statement = parse_credential(SessionStatement, envelope.payload)
        self._challenges.check(statement.nonce)
        accept_session(self._context.ledger.state, data, encode_time(self._context.clock()))
        # What is kept of an answer is kept for a signer of the log alone.
        self._challenges.take(statement.nonce)
        principal, token = open_session(self._context, data, source)
        # A clock that was moved back meanwhile makes it no longer than it was signed for.
        ends = parse_time(statement.expires_at)
        lasts = min(ends - self._context.clock(), ends - parse_time(statement.issued_at)).total_seconds()
        self._remember(token, lasts)
        return token, Session(principal, statement.expires_at)

    def person(self, authorization: str | None) -> Session:
        """The standing session of a standing principal, by a key that stands."""
        return self._standing(_bearer(authorization), "program")

    def browser(self, cookie: str) -> Session:
        """The same of a browser, by the cookie that it was given when it came in."""
        return self._standing(cookie, "browser")

    def _standing(self, token: str, kind: Kind) -> Session:
        principal, expires_at = find_session(self._context, token, kind)
        if self._has_run_out(token, expires_at):
            raise NotAuthenticated(NO_SESSION)
        return Session(principal, expires_at)

    def link(self, authorization: str | None) -> str:
        """A code that lets one browser take over this session, once, within a minute. The session's own token opens
        nothing from here on."""
        self.person(authorization)
        (code, principal), now = hand_over(self._context, _bearer(authorization)), time.monotonic()
        with self._lock:
            self._links = {key: link for key, link in self._links.items() if link[1] > now}
            self._links[_digest(code)] = principal, now + LINK_S
        return code

    def whose_link(self, code: str) -> str:
        """Who would come in by it; NotAuthenticated for one that is unknown, used or expired."""
        with self._lock:
            return _unused(self._links.get(_digest(code)))

    def admit(self, code: str) -> tuple[str, Session]:
        """The cookie and the session of a browser that came by a link, which is used up."""
        with self._lock:
            _unused(self._links.pop(_digest(code), None))
        cookie = admit_browser(self._context, code)
        return cookie, self.browser(cookie)

    def sign_out(self, cookie: str, source: str) -> None:
        """At once, for every page and stream of this browser."""
        self.browser(cookie)
        end_session(self._context, cookie, source, "browser")

    def end_session(self, authorization: str | None, source: str) -> None:
        """At once; the token's holder has to sign again."""
        self.person(authorization)
        end_session(self._context, _bearer(authorization), source)

    def sweep(self) -> None:
        """Forgets sessions that have ended."""
        sweep_sessions(self._context)
        with self._lock:
            self._ends = {token: ends for token, ends in self._ends.items() if ends > time.monotonic()}

    def _has_run_out(self, token: str, expires_at: str) -> bool:
        """By the clock and by the time that has passed here: a clock that is moved back makes none longer."""
        state = self._context.ledger.state
        left = (parse_time(expires_at) - parse_time(self._context.now(state))).total_seconds()
        with self._lock:
            ends = self._ends.get(token)
        if ends is None:
            ends = self._remember(token, left)
        return left <= 0 or ends <= time.monotonic()

    def _remember(self, token: str, lasts: float) -> float:
        with self._lock:
            ends = self._ends[token] = time.monotonic() + lasts
        return ends

    def unit(self, authorization: str | None) -> Caller:
        """The unit whose key signed the token, or its application that was given it."""
        state = self._context.ledger.state
        now = self._context.now(state)
        try:
            return accept_caller(state, _bearer(authorization), now)
        except BadInput as error:
            # An envelope with something else in it is no token either, and is counted as an attempt.
            raise NotAuthenticated(f"token: {error.message}") from None

    def browser_unit(self, cookie: str) -> Caller:
        """The unit whose key opened this browser's session, as the one who asks for an answer."""
        self.browser(cookie)
        return find_caller(self._context, cookie)

    def token_request(self, data: bytes) -> TokenRequest:
        """What an application signed, if it may have a token now; whether it answers a challenge is not asked."""
        state = self._context.ledger.state
        try:
            return accept_token_request(state, data, self._context.now(state))[0]
        except BadInput as error:
            raise NotAuthenticated(f"token request: {error.message}") from None

    def count(self, unit: str | None, error: ApplianceError) -> None:
        """Attempts without a valid key, orders that came again or too late, and requests that a limit refused, are
        counted here and appended as counts, once a minute, so that no flood of them fills the ledger."""
        self.refused(unit, error)
        with self._lock:
            if isinstance(error, NotAuthenticated) or error.claimed is not None:
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


def _digest(code: str) -> bytes:
    """Also where one is looked up: that takes as long for any wrong code."""
    return hashlib.sha256(code.encode()).digest()


def _unused(link: tuple[str, float] | None) -> str:
    if link is None or link[1] <= time.monotonic():
        said = f"expected a link of the last {LINK_S} s that was not used, got another; type: appliance console"
        raise NotAuthenticated(f"sign-in: {said}", code="used-link")
    return link[0]


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("authorization: expected 'Bearer TOKEN', got none")
    return token.strip()
