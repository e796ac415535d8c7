"""Reading sessions, and attempts that nobody signed for."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Puts
from appliance.domain.core.event import Event
from appliance.domain.core.names import Time
from appliance.domain.core.signatures import accept_session
from appliance.domain.core.verb import EventRule, unchanged


class SessionOpened(Event):
    type = "session.opened"
    documents = ("session",)

    @property
    def actor(self) -> str | None:
        return None


class AuthRefused(Event):
    """Unauthenticated attempts, counted, so that a flood is one entry a minute."""

    type = "auth.refused"
    outcomes = ("denied",)
    count: int = Field(ge=1)
    since: Time


def session_opened(case: Case) -> Puts:
    session, principal = accept_session(case.state, case.documents["session"], case.entry.time)
    case.require(case.entry.actor == principal.name == session.signer, "actor", session.signer, case.entry.actor)
    return []


EVENTS = (
    EventRule(SessionOpened, session_opened),
    EventRule(AuthRefused, unchanged),
)
