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
    end_of_identity,
    find_required_provider,
    refuse_identity,
)
from appliance.errors import Denied

MAX_NAMED = 16
"""Largest number of principals, and of keys, that one entry of refused attempts names."""
KEPT_S = 600
"""Seconds after its expiry in which a session can still be closed.

They allow for the time between the service's check and the entry's own time.
"""


class SessionOpened(Event):
    """The event of a new reading session. `identity` is the ID token that it rests on, where policy requires one."""

    type = "session.opened"
    actor_kind = "signer of the session"
    documents = ("session",)
    identity: SessionIdentity | None


class SessionClosed(Event):
    """The event of a session that its person or an administrator closed before it expired, in a session of their own.

    `opened` is the entry that opened it. Revoked and expired sessions have no such event.
    """

    type = "session.closed"
    actor_kind = "who ended it"
    opened: int = Field(ge=1)
    principal: Identifier

    def about(self) -> tuple[str, ...]:
        return (f"principal:{self.principal}",)


class AuthRefused(Event):
    """The event of unauthenticated attempts, and of orders that make no entry of their own.

    They are counted, so that any number of them is one entry a minute.

    `principals` are the claimed signers that are in the log, and `keys` the claimed keys that are in the log, at most
    16 of each: unauthenticated callers cannot choose the content of the log.
    """

    type = "auth.refused"
    records = "refusals"
    outcomes = ("denied",)
    count: int = Field(ge=1)
    since: Time
    principals: tuple[Identifier, ...] = Field(max_length=MAX_NAMED)
    keys: tuple[Digest, ...] = Field(max_length=MAX_NAMED)

    def about(self) -> tuple[str, ...]:
        return tuple(f"principal:{name}" for name in self.principals)


def apply_session_opening(case: Case) -> Changes:
    """Apply the opening of a session, which has an identity exactly if policy requires one."""
    state, now, identity = case.state, case.entry.time, case.of(SessionOpened).identity
    session, principal = accept_session(state, case.documents["session"], now)
    case.require(case.entry.actor == principal.name == session.signer, "actor", session.signer, case.entry.actor)
    provider = find_required_provider(state, principal, case.entry.source)
    case.require((provider is None) == (identity is None), "identity", "one exactly if policy requires it", identity)
    ends = session.expires_at
    if provider is not None and identity is not None:
        if reasons := refuse_identity(state, provider, principal.name, identity, now):
            raise Denied(f"{case.place}: identity", refusals=reasons)
        ends = min(ends, end_of_identity(provider, identity))
    binding = None if identity is None else identity.binding
    row = OpenSession(entry=case.entry.index, expires_at=ends, binding=binding)
    open_sessions = _list_open(state, principal.name, add_seconds(now, -KEPT_S))
    return [(state.sessions, principal.name, OpenSessions(open=(*open_sessions, row)))]


def _list_open(state: State, principal: str, since: Time) -> tuple[OpenSession, ...]:
    """Return the person's sessions that were not closed and expire after that time."""
    row = state.sessions.get(principal)
    return () if row is None else tuple(session for session in row.open if session.expires_at > since)


def rests_on_ended_binding(state: State, principal: str, entry: int) -> bool:
    """Return True if the session that this entry opened rests on a binding that was removed or replaced since."""
    row, identity = state.sessions.get(principal), state.identities.get(principal)
    opened = () if row is None else row.open
    binding = next((session.binding for session in opened if session.entry == entry), None)
    return binding is not None and (identity is None or identity.index != binding)


def apply_session_end(case: Case) -> Changes:
    """Apply the closing of a session."""
    body, actor = case.of(SessionClosed), case.state.principals.get(case.entry.actor)
    case.require(body.principal in case.state.principals, "principal", "one that is enrolled", body.principal)
    open_sessions = _list_open(case.state, body.principal, add_seconds(case.entry.time, -KEPT_S))
    remaining = tuple(session for session in open_sessions if session.entry != body.opened)
    expected = f"the entry of an open session of {body.principal}"
    case.require(len(remaining) < len(open_sessions), "opened", expected, body.opened)
    is_administrator = actor is not None and actor.revoked is None and actor.has("administrator")
    expected = f"{body.principal} or an administrator"
    case.require(case.entry.actor == body.principal or is_administrator, "actor", expected, case.entry.actor)
    return [(case.state.sessions, body.principal, OpenSessions(open=remaining) if remaining else None)]


def apply_authentication_refusal(case: Case) -> Changes:
    """Check that all named principals and keys are in the log; nothing changes."""
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
