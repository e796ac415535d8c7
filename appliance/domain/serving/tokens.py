"""A unit's tokens are revoked."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Digest, Identifier, Time, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records import Principal, RevokedToken, token_key
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.errors import Denied


class RevokeTokens(Order):
    """Ends one token of a unit, by the digest of its PAE, or every one that was issued before a time."""

    verb = "revoke-tokens"
    unit: Identifier
    token: Digest | None
    issued_before: Time | None

    def subjects(self) -> Subjects:
        return self._self(f"unit:{self.unit}")


class TokensRevoked(Ordered):
    type = "tokens.revoked"


def may_revoke_tokens(state: State, order: RevokeTokens, signer: Principal, now: Time) -> Reasons:
    """The unit itself, its release owner, or an administrator."""
    reasons = [] if signer.name == order.unit else needs(signer, "administrator", f"release-owner:{order.unit}")
    unit = state.principals.get(order.unit)
    if unit is None or not unit.has("unit"):
        return [*reasons, f"unit: expected an enrolled one, got {order.unit}"]
    if (order.token is None) == (order.issued_before is None):
        reasons.append("tokens: expected one token or a time before which they were issued, got both or neither")
    revoked = None if order.token is None else state.tokens.get(token_key(order.unit, order.token))
    if revoked is not None:
        reasons.append(f"token {order.token}: expected one that counts, got one revoked by entry {revoked.index}")
    if order.issued_before is not None:
        latest = add_seconds(now, state.parameters.clock_skew_s)
        if not (unit.tokens_since or "") < order.issued_before <= latest:
            since = unit.tokens_since or "the beginning"
            reasons.append(f"issued before: expected a time after {since} and by {latest}, got {order.issued_before}")
    return reasons


def tokens_revoked(case: Case) -> Changes:
    order, state = case.order(RevokeTokens), case.state
    if order.token is not None:
        row = RevokedToken(digest=order.token, unit=order.unit, index=case.entry.index)
        return [(state.tokens, token_key(order.unit, order.token), row)]
    unit = state.principals.get(order.unit)
    if unit is None:
        raise Denied(f"entry {case.entry.index}: unit: expected an enrolled one, got {order.unit}")
    return [(state.principals, unit.name, unit.model_copy(update={"tokens_since": order.issued_before}))]


VERBS = (
    Verb(
        RevokeTokens,
        may=may_revoke_tokens,
        signers=("the unit", "release-owner:UNIT", "administrator"),
        meaning="These tokens open nothing more; what they are being answered is cut off.",
        event=TokensRevoked,
        apply=tokens_revoked,
        changes_answers=True,
    ),
)
