"""Who asks for an answer: a unit or an application of it, by a token that counted when it came, and may cease to while
it is answered."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.domain.core.credentials import ISSUED, parse_token
from appliance.domain.core.records.people import application_key
from appliance.domain.core.signatures import accept_token, token_revoked
from appliance.domain.core.state import State
from appliance.domain.serving.applications import accept_issued, application_ended
from appliance.formats.core.digest import digest_bytes


@dataclass(frozen=True)
class Caller:
    """`token`: the digest that identifies it; `keyid`: of the key that signed it, or signed for it. `application`: to
    which it was issued, where that is not the unit itself; it asks for `tasks` alone."""

    unit: str
    token: str
    issued_at: str
    keyid: str
    application: str | None = None
    tasks: tuple[str, ...] = ()

    def may_ask(self, task: str) -> bool:
        return self.application is None or task in self.tasks

    def against(self, state: State) -> str | None:
        """Why what it began may not go on; a token that merely expires ends nothing."""
        if self.application is not None:
            row = state.applications.get(application_key(self.unit, self.application))
            ended = f"application {self.application}: expected one, got none"
            if row is None or (ended := application_ended(state, row) or ""):
                return ended
            return token_revoked(state, self.unit, self.token, self.issued_at)
        key = state.keys.get(self.keyid)
        if key is None or key.revoked is not None:
            return f"token of {self.unit}: expected a standing key, got {self.keyid}, which has ended"
        return token_revoked(state, self.unit, self.token, self.issued_at)


def accept_caller(state: State, text: str, now: str) -> Caller:
    """By the text of a token. NotAuthenticated, or BadInput for what is no token at all."""
    if text.startswith(ISSUED):
        digest = digest_bytes(text.encode())
        row, application = accept_issued(state, digest, now)
        return Caller(row.unit, digest, row.issued_at, application.keyid, application.name, application.tasks)
    envelope = parse_token(text)
    token, unit = accept_token(state, envelope, now)
    return Caller(unit.name, envelope.pae_digest, token.issued_at, envelope.signatures[0].keyid)
