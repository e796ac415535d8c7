"""Who asks for an answer: a unit, by a token that counted when it came, and may cease to while it is answered."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.domain.core.signatures import accept_token, token_revoked
from appliance.domain.core.state import State
from appliance.formats.signatures.dsse import Envelope


@dataclass(frozen=True)
class Caller:
    """`token`: the digest of its PAE, which identifies it; `keyid`: of the key that signed it."""

    unit: str
    token: str
    issued_at: str
    keyid: str

    def against(self, state: State) -> str | None:
        """Why what it began may not go on; a token that merely expires ends nothing."""
        key = state.keys.get(self.keyid)
        if key is None or key.revoked is not None:
            return f"token of {self.unit}: expected a standing key, got {self.keyid}, which has ended"
        return token_revoked(state, self.unit, self.token, self.issued_at)


def accept_caller(state: State, envelope: Envelope, now: str) -> Caller:
    """NotAuthenticated, or BadInput for what is no token at all."""
    token, unit = accept_token(state, envelope, now)
    return Caller(unit.name, envelope.pae_digest, token.issued_at, envelope.signatures[0].keyid)
