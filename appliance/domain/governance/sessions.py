"""Reading sessions, and attempts without a valid signature."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import Digest, Identifier, Time
from appliance.domain.core.signatures import accept_session
from appliance.domain.core.verb import EventRule

MAX_NAMED = 16


class SessionOpened(Event):
    type = "session.opened"
    documents = ("session",)

    @property
    def actor(self) -> str | None:
        return None


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
    session, principal = accept_session(case.state, case.documents["session"], case.entry.time)
    case.require(case.entry.actor == principal.name == session.signer, "actor", session.signer, case.entry.actor)
    return []


def auth_refused(case: Case) -> Changes:
    body, state = case.of(AuthRefused), case.state
    for what, named, known in (("principals", body.principals, state.principals), ("keys", body.keys, state.keys)):
        expected = tuple(sorted({name for name in named if name in known}))
        case.require(named == expected, what, expected, named)
    return []


EVENTS = (
    EventRule(SessionOpened, session_opened),
    EventRule(AuthRefused, auth_refused),
)
