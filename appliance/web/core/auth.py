"""Authentication of callers.

People have a session that a signature of their key opened. Units have a token that their key signed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.domain.core.credentials import SessionStatement, TokenRequest, parse_credential
from appliance.domain.serving.tokens import accept_token_request
from appliance.errors import ApplianceError, BadInput, NotAuthenticated
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.signatures.dsse import parse_envelope
from appliance.web.core.logs import log_refused_identity
from appliance.workflows import governance
from appliance.workflows.core.context import LedgerContext, Signal

CHALLENGE_S = 60
"""Seconds in which a challenge can be answered."""
IDENTITY_S = 600
"""Seconds in which the challenge of a session can be answered if an ID token is needed: a sign-in at the provider."""
_STAMP, _RANDOM, _MAC = 4, 4, 8


class Challenges:
    """Nonces for signed requests, each valid once and for as many seconds as the check allows.

    A nonce is 16 bytes in hexadecimal: a time, random bytes, and a MAC over both under a key of this process. Used
    nonces are remembered until they expire. A restart invalidates all nonces.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        what: str = "token request",
        longest_s: int = CHALLENGE_S,
    ) -> None:
        """Create a key. `what`: the name of the request in errors. `longest_s`: the longest lifetime of any check."""
        self._clock, self._what, self._longest_s = clock, what, longest_s
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._answered: dict[str, int] = {}

    def make(self) -> str:
        """Return a new nonce."""
        head = int(self._clock()).to_bytes(_STAMP) + secrets.token_bytes(_RANDOM)
        return (head + self._code(head)).hex()

    def check(self, nonce: str, lifetime_s: int = CHALLENGE_S) -> int:
        """Return the time at which the nonce expires for every check, by this object's clock in whole seconds.

        Raises: NotAuthenticated for a nonce that is unknown, expired or used.
        """
        data, now = bytes.fromhex(nonce), int(self._clock())
        head, code = data[:-_MAC], data[-_MAC:]
        made = int.from_bytes(head[:_STAMP])
        if not hmac.compare_digest(code, self._code(head)) or made + lifetime_s < now or nonce in self._answered:
            expected = f"a nonce of the last {lifetime_s} s that was not used, got one unknown, used or too old"
            raise NotAuthenticated(f"{self._what}: expected {expected}", code="challenge")
        return made + self._longest_s

    def take(self, nonce: str, lifetime_s: int = CHALLENGE_S) -> None:
        """Mark the nonce as used.

        Raises: NotAuthenticated for a nonce that is unknown, expired or used.
        """
        with self._lock:
            now = int(self._clock())
            self._answered = {answered: end for answered, end in self._answered.items() if end >= now}
            self._answered[nonce] = self.check(nonce, lifetime_s)

    def _code(self, head: bytes) -> bytes:
        return hmac.digest(self._key, head, "sha256")[:_MAC]


LINK_S = 60
"""Seconds in which a sign-in link can be used."""
_MAX_CLAIMED = 1_000
"""Maximum number of claimed names and keys in one record of refusals."""


@dataclass(frozen=True)
class Session:
    """An open session of a principal."""

    principal: str
    expires_at: str


class CallerAuthenticator:
    """The authentication of people and units, and the counts of refused requests.

    Challenges and sign-in links are in memory and end with this process. Sessions are in the database, so they remain
    valid after a restart and for other service processes of the same database.
    """

    def __init__(self, context: LedgerContext) -> None:
        self._context = context
        self.refused = Signal[[str | None, ApplianceError]]()
        """Called for each refusal that is counted and has no entry of its own."""
        self._lock = threading.Lock()
        self._challenges = Challenges(what="session", longest_s=IDENTITY_S)
        self._links: dict[bytes, tuple[str, float]] = {}
        """Principal and end (by the monotonic clock) of each open sign-in link, by the digest of its code."""
        self._ends: dict[str, float] = {}
        self._refused = 0
        self._refused_since = ""
        self._claimed: set[tuple[str, str]] = set()
        self._limited: Counter[governance.RefusedRequest] = Counter()

    def challenge(self) -> str:
        """Return a nonce for a session, which can be answered once within a minute.

        The service stores nothing for an unanswered challenge, so that many open challenges do not block other people.
        """
        return self._challenges.make()

    def open_session(self, data: bytes, source: str, identity_token: str | None = None) -> tuple[str, Session]:
        """Open a session and return its secret token.

        The session's opening is an entry of the ledger before this returns. A statement without the ID token that
        policy requires is refused with the code `identity-required`, and can be sent again with one.
        """
        statement = parse_credential(SessionStatement, parse_envelope(data).payload)
        self._challenges.check(statement.nonce, CHALLENGE_S if identity_token is None else IDENTITY_S)
        checked = governance.check_statement(self._context, data, source, identity_token)
        # After the signature is checked: only principals of the log can add to the stored nonces.
        self._challenges.take(statement.nonce, CHALLENGE_S if checked.identity is None else IDENTITY_S)
        token = governance.open_session(self._context, checked)
        # If the clock was moved back meanwhile, the session still lasts no longer than was signed.
        ends = parse_time(checked.expires_at)
        duration_s = min(ends - self._context.clock(), ends - parse_time(statement.issued_at)).total_seconds()
        self._remember(token, duration_s)
        return token, Session(statement.signer, checked.expires_at)

    def person(self, authorization: str | None) -> Session:
        """Return the valid session of a program, by its `Authorization` header.

        Raises: NotAuthenticated if the session, its principal or its key is not valid.
        """
        return self._find_valid(_read_bearer(authorization), "program")

    def browser(self, cookie: str) -> Session:
        """Return the valid session of a browser, by the cookie that it received at its sign-in.

        Raises: NotAuthenticated if the session, its principal or its key is not valid.
        """
        return self._find_valid(cookie, "browser")

    def _find_valid(self, token: str, kind: governance.Kind) -> Session:
        principal, expires_at = governance.find_session(self._context, token, kind)
        if self._has_run_out(token, expires_at):
            raise NotAuthenticated(governance.NO_SESSION)
        return Session(principal, expires_at)

    def link(self, authorization: str | None) -> str:
        """Return the code of a link by which one browser can take over this session, once and within a minute.

        The session's own token is invalid afterwards.
        """
        self.person(authorization)
        code, principal = governance.move_session_to_link(self._context, _read_bearer(authorization))
        now = time.monotonic()
        with self._lock:
            self._links = {key: link for key, link in self._links.items() if link[1] > now}
            self._links[_digest(code)] = principal, now + LINK_S
        return code

    def whose_link(self, code: str) -> str:
        """Return the principal whose session the link opens.

        Raises: NotAuthenticated for a link that is unknown, used or expired.
        """
        with self._lock:
            return _check_link(self._links.get(_digest(code)))

    def admit(self, code: str) -> tuple[str, Session]:
        """Use up a link. Return the cookie and the session of the browser that used it.

        Raises: NotAuthenticated for a link that is unknown, used or expired.
        """
        with self._lock:
            _check_link(self._links.pop(_digest(code), None))
        cookie = governance.admit_browser(self._context, code)
        return cookie, self.browser(cookie)

    def sign_out(self, cookie: str, source: str) -> None:
        """End the browser's session, with all its pages and streams."""
        self.browser(cookie)
        governance.end_session(self._context, cookie, source, "browser")

    def end_session(self, authorization: str | None, source: str) -> None:
        """End a program's session. Its holder has to sign again."""
        self.person(authorization)
        governance.end_session(self._context, _read_bearer(authorization), source)

    def sweep(self) -> None:
        """Remove sessions that have ended."""
        governance.sweep_sessions(self._context)
        with self._lock:
            self._ends = {token: ends for token, ends in self._ends.items() if ends > time.monotonic()}

    def _has_run_out(self, token: str, expires_at: str) -> bool:
        """Return True if the session has ended by the service's clock or by the time that passed in this process.

        The second condition holds because a clock that is moved back must not extend a session.
        """
        state = self._context.ledger.state
        left_s = (parse_time(expires_at) - parse_time(self._context.now(state))).total_seconds()
        with self._lock:
            ends = self._ends.get(token)
        if ends is None:
            ends = self._remember(token, left_s)
        return left_s <= 0 or ends <= time.monotonic()

    def _remember(self, token: str, duration_s: float) -> float:
        with self._lock:
            ends = self._ends[token] = time.monotonic() + duration_s
        return ends

    def unit(self, authorization: str | None) -> governance.UnitCaller:
        """Return the caller of a token: the unit whose key signed it, or the unit's application that received it.

        Raises: NotAuthenticated for anything that is not a valid token.
        """
        state = self._context.ledger.state
        now = self._context.now(state)
        try:
            return governance.accept_caller(state, _read_bearer(authorization), now)
        except BadInput as error:
            # An envelope of another type counts as a failed attempt, too.
            raise NotAuthenticated(f"token: {error.message}") from None

    def browser_unit(self, cookie: str) -> governance.UnitCaller:
        """Return the unit whose key opened this browser's session, as the caller of a request."""
        self.browser(cookie)
        return governance.find_caller(self._context, cookie)

    def token_request(self, data: bytes) -> TokenRequest:
        """Return the token request that an application signed, if it may have a token now.

        The request's challenge is not checked here.

        Raises: NotAuthenticated for a request that is malformed.
        """
        state = self._context.ledger.state
        try:
            return accept_token_request(state, data, self._context.now(state))[0]
        except BadInput as error:
            raise NotAuthenticated(f"token request: {error.message}") from None

    def count(
        self, unit: str | None, error: ApplianceError, application: str | None = None, served_model: str | None = None
    ) -> None:
        """Count a refusal: a request without a valid key, an order that is repeated or too old, or a request of a unit.

        The counts are appended to the ledger once a minute, so that many refusals do not fill it. A refused ID token is
        also a line of the service's log.
        """
        self.refused(unit, error)
        log_refused_identity(error)
        with self._lock:
            if isinstance(error, NotAuthenticated) or error.claimed is not None:
                self._refused += 1
                self._refused_since = self._refused_since or encode_time(self._context.clock())
                if (
                    error.claimed is not None
                    and len(self._claimed) < _MAX_CLAIMED
                    and self._is_enrolled(*error.claimed)
                ):
                    self._claimed.add(error.claimed)
            elif unit is not None:
                self._limited[governance.RefusedRequest(unit, error.code, application or "", served_model or "")] += 1

    def _is_enrolled(self, name: str, keyid: str) -> bool:
        state = self._context.ledger.state
        return name in state.principals or keyid in state.keys

    @contextmanager
    def counted(self) -> Iterator[governance.Refusals]:
        """Yield the refusals since the last call, and reset the counts.

        If the block raises, the counts are added back.
        """
        with self._lock:
            taken = governance.Refusals(
                self._refused, self._refused_since, dict(self._limited), frozenset(self._claimed)
            )
            self._refused, self._refused_since = 0, ""
            self._claimed.clear()
            self._limited.clear()
        try:
            yield taken
        except BaseException:
            with self._lock:
                self._refused += taken.unauthenticated
                self._refused_since = taken.since or self._refused_since
                self._claimed |= taken.claimed
                self._limited.update(taken.units)
            raise


def _digest(code: str) -> bytes:
    """Return the digest under which a code is stored. A search by digest takes the same time for every wrong code."""
    return hashlib.sha256(code.encode()).digest()


def _check_link(link: tuple[str, float] | None) -> str:
    if link is None or link[1] <= time.monotonic():
        expected = f"expected a link of the last {LINK_S} s that was not used, got another; type: appliance console"
        raise NotAuthenticated(f"sign-in: {expected}", code="used-link")
    return link[0]


def _read_bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("authorization: expected 'Bearer TOKEN', got none")
    return token.strip()
