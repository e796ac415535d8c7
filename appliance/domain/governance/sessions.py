"""Reading sessions, their ends, and attempts without a valid signature."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import Digest, Identifier, Time, add_seconds
from appliance.domain.core.records.people import OpenSession, OpenSessions
from appliance.domain.core.signatures import accept_session
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule

MAX_NAMED = 16
KEPT_S = 600
"""A session may still be ended so long after it ran out: the service's clock reads, and then the entry's time."""


class SessionOpened(Event):
    type = "session.opened"
    documents = ("session",)

    @property
    def actor(self) -> str | None:
        return None


class SessionClosed(Event):
    """A session ended before its time, because its person or an administrator said so in a session of their own.

    `opened`: the entry that opened it. What a revocation ends, and what runs out, has no entry of this type.
    """

    type = "session.closed"
    opened: int = Field(ge=1)
    principal: Identifier

    @property
    def actor(self) -> str | None:
        return None

    def about(self) -> tuple[str, ...]:
        return (f"principal:{self.principal}",)


class AuthRefused(Event):
    """Unauthenticated attempts, counted, so that a flood is one entry a minute.

    `principals`: whom they said they were, where the log knows them; `keys`: its keys under which they were signed. At
    most 16 each: no stranger chooses what the log keeps.
    """

    type = "auth.refused"
    outcomes = ("denied",)
    count: int = Field(ge=1)
    since: Time
    principals: tuple[Identifier, ...] = Field(max_length=MAX_NAMED)
    keys: tuple[Digest, ...] = Field(max_length=MAX_NAMED)

    def about(self) -> tuple[str, ...]:
        return tuple(f"principal:{name}" for name in self.principals)


def session_opened(case: Case) -> Changes:
    state, now = case.state, case.entry.time
    session, principal = accept_session(state, case.documents["session"], now)
    case.require(case.entry.actor == principal.name == session.signer, "actor", session.signer, case.entry.actor)
    row = OpenSession(entry=case.entry.index, expires_at=session.expires_at)
    standing = _unended(state, principal.name, add_seconds(now, -KEPT_S))
    return [(state.sessions, principal.name, OpenSessions(open=(*standing, row)))]


def _unended(state: State, principal: str, since: Time) -> tuple[OpenSession, ...]:
    """The person's sessions that nobody has ended and that run out after that time."""
    row = state.sessions.get(principal)
    return () if row is None else tuple(one for one in row.open if one.expires_at > since)


def session_closed(case: Case) -> Changes:
    body, actor = case.of(SessionClosed), case.state.principals.get(case.entry.actor)
    case.require(body.principal in case.state.principals, "principal", "one that is enrolled", body.principal)
    standing = _unended(case.state, body.principal, add_seconds(case.entry.time, -KEPT_S))
    left = tuple(one for one in standing if one.entry != body.opened)
    expected = f"the entry of an open session of {body.principal}"
    case.require(len(left) < len(standing), "opened", expected, body.opened)
    may = actor is not None and actor.revoked is None and actor.has("administrator")
    expected = f"{body.principal} or an administrator"
    case.require(case.entry.actor == body.principal or may, "actor", expected, case.entry.actor)
    return [(case.state.sessions, body.principal, OpenSessions(open=left) if left else None)]


def auth_refused(case: Case) -> Changes:
    body, state = case.of(AuthRefused), case.state
    for what, named, known in (("principals", body.principals, state.principals), ("keys", body.keys, state.keys)):
        expected = tuple(sorted({name for name in named if name in known}))
        case.require(named == expected, what, expected, named)
    return []


EVENTS = (
    EventRule(SessionOpened, session_opened),
    EventRule(SessionClosed, session_closed),
    EventRule(AuthRefused, auth_refused),
)
