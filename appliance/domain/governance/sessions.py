"""Reading sessions, their ends, and attempts without a valid signature."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.action import EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event
from appliance.domain.core.names import Digest, Identifier, Time, add_seconds
from appliance.domain.core.records.people import OpenSession, OpenSessions
from appliance.domain.core.signatures import accept_session
from appliance.domain.core.state import State
from appliance.domain.governance.identities import (
    SessionIdentity,
    find_required_provider,
    find_session_end,
    refuse_identity,
)
from appliance.errors import Denied

MAX_NAMES_PER_REFUSAL = 16
"""Largest number of principals, and of keys, in one `auth.refused` entry."""
CLOSABLE_S = 600
"""Seconds for which a session can be closed after its expiry.

A session can expire between the service's check and the time of the entry that closes it.
"""


class SessionOpened(Event):
    """The event of a new reading session. `identity` describes its ID token; it is None if policy requires none."""

    type = "session.opened"
    actor_kind = "signer of the session"
    documents = ("session",)
    identity: SessionIdentity | None


class SessionClosed(Event):
    """The event of a session that its person or an administrator closed before it expired.

    `opened` is the index of the entry that opened the session. Sessions that end by expiry or by a revocation have no
    such event.
    """

    type = "session.closed"
    actor_kind = "who ended it"
    opened: int = Field(ge=1)
    principal: Identifier

    def about(self) -> tuple[str, ...]:
        return (f"principal:{self.principal}",)


class AuthRefused(Event):
    """The event of unauthenticated attempts, and of refused orders that get no entry of their own.

    The service counts them in `count`, so that any number of them makes one entry a minute.

    `principals` are the claimed signers that are in the log, and `keys` the claimed keys that are in the log, at most
    16 of each. Other claims are left out, because unauthenticated callers must not choose the content of the log.
    """

    type = "auth.refused"
    records = "refusals"
    outcomes = ("denied",)
    count: int = Field(ge=1)
    since: Time
    principals: tuple[Identifier, ...] = Field(max_length=MAX_NAMES_PER_REFUSAL)
    keys: tuple[Digest, ...] = Field(max_length=MAX_NAMES_PER_REFUSAL)

    def about(self) -> tuple[str, ...]:
        return tuple(f"principal:{name}" for name in self.principals)


def apply_session_opening(case: Case) -> Changes:
    """Record a new session after checking its signature and, if policy requires one, its identity.

    Raises: Denied if the session or its identity is invalid, or has an identity that policy does not require.
    """
    state, now, identity = case.state, case.entry.time, case.of(SessionOpened).identity
    session, principal = accept_session(state, case.documents["session"], now)
    case.require(case.entry.actor == principal.name == session.signer, "actor", session.signer, case.entry.actor)
    provider = find_required_provider(state, principal, case.entry.source)
    case.require((provider is None) == (identity is None), "identity", "one exactly if policy requires it", identity)
    ends = session.expires_at
    if provider is not None and identity is not None:
        if reasons := refuse_identity(state, provider, principal.name, identity, now):
            raise Denied(f"{case.place}: identity", refusals=reasons)
        ends = min(ends, find_session_end(provider, identity))
    binding = None if identity is None else identity.binding
    row = OpenSession(entry=case.entry.index, expires_at=ends, binding=binding)
    open_sessions = _list_open_sessions(state, principal.name, add_seconds(now, -CLOSABLE_S))
    return [(state.sessions, principal.name, OpenSessions(open=(*open_sessions, row)))]


def _list_open_sessions(state: State, principal: str, since: Time) -> tuple[OpenSession, ...]:
    """Return the principal's sessions that were not closed and that expire after `since`."""
    row = state.sessions.get(principal)
    return () if row is None else tuple(session for session in row.open if session.expires_at > since)


def has_ended_binding(state: State, principal: str, entry: int) -> bool:
    """Return True if the session's identity binding was removed or replaced after the session was opened.

    `entry` is the index of the entry that opened the session.
    """
    row, identity = state.sessions.get(principal), state.identities.get(principal)
    opened = () if row is None else row.open
    binding = next((session.binding for session in opened if session.entry == entry), None)
    return binding is not None and (identity is None or identity.index != binding)


def apply_session_end(case: Case) -> Changes:
    """Remove a session that its person or an administrator closes.

    Raises: Denied if the session is not open, or another person closes it.
    """
    body, actor = case.of(SessionClosed), case.state.principals.get(case.entry.actor)
    case.require(body.principal in case.state.principals, "principal", "one that is enrolled", body.principal)
    open_sessions = _list_open_sessions(case.state, body.principal, add_seconds(case.entry.time, -CLOSABLE_S))
    remaining = tuple(session for session in open_sessions if session.entry != body.opened)
    expected = f"the entry of an open session of {body.principal}"
    case.require(len(remaining) < len(open_sessions), "opened", expected, body.opened)
    is_administrator = actor is not None and actor.revoked is None and actor.has("administrator")
    expected = f"{body.principal} or an administrator"
    case.require(case.entry.actor == body.principal or is_administrator, "actor", expected, case.entry.actor)
    return [(case.state.sessions, body.principal, OpenSessions(open=remaining) if remaining else None)]


def apply_authentication_refusal(case: Case) -> Changes:
    """Check that all named principals and keys are in the log, sorted and without duplicates. Return no changes."""
    body, state = case.of(AuthRefused), case.state
    for what, named, known in (("principals", body.principals, state.principals), ("keys", body.keys, state.keys)):
        expected = tuple(sorted({name for name in named if name in known}))
        case.require(named == expected, what, expected, named)
    return []


EVENTS = (
    EventRule(SessionOpened, apply_session_opening),
    EventRule(SessionClosed, apply_session_end),
    EventRule(AuthRefused, apply_authentication_refusal),
)
