"""A unit's tokens are revoked."""

from __future__ import annotations

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Digest, Identifier, Time, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal, RevokedToken, application_key, token_key
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import Verb
from appliance.errors import Denied


class RevokeTokens(Order):
    """Ends one token of a unit, by its digest; or every one that was issued before a time; or an application, with all
    its tokens."""

    verb = "revoke-tokens"
    unit: Identifier
    token: Digest | None
    issued_before: Time | None
    application: Identifier | None

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
    given = [member for member in (order.token, order.issued_before, order.application) if member is not None]
    if len(given) != 1:
        reasons.append(
            "tokens: expected one token, a time before which they were issued, or an application, "
            f"got {len(given)} of these"
        )
    if order.application is not None:
        reasons += _stands(state, order.unit, order.application)
    revoked = None if order.token is None else state.tokens.get(token_key(order.unit, order.token))
    if revoked is not None:
        reasons.append(f"token {order.token}: expected one that counts, got one revoked by entry {revoked.index}")
    if order.issued_before is not None:
        latest = add_seconds(now, state.parameters.clock_skew_s)
        if not (unit.tokens_since or "") < order.issued_before <= latest:
            since = unit.tokens_since or "the beginning"
            reasons.append(f"issued before: expected a time after {since} and by {latest}, got {order.issued_before}")
    return reasons


def _stands(state: State, unit: str, name: str) -> Reasons:
    row = state.applications.get(application_key(unit, name))
    if row is None:
        return [f"application: expected one that {unit} enrolled, got {name}"]
    if row.revoked is not None:
        return [f"application {name}: expected one that stands, got one ended by entry {row.revoked}"]
    return []


def tokens_revoked(case: Case) -> Changes:
    order, state = case.order(RevokeTokens), case.state
    if order.application is not None:
        key = application_key(order.unit, order.application)
        application = state.applications.get(key)
        if application is None:
            raise Denied(f"entry {case.entry.index}: application: expected an enrolled one, got {order.application}")
        return [(state.applications, key, application.model_copy(update={"revoked": case.entry.index}))]
    if order.token is not None:
        row = RevokedToken(digest=order.token, unit=order.unit, index=case.entry.index)
        return [(state.tokens, token_key(order.unit, order.token), row)]
    unit = state.principals.get(order.unit)
    if unit is None:
        raise Denied(f"entry {case.entry.index}: unit: expected an enrolled one, got {order.unit}")
    return [(state.principals, unit.name, unit.model_copy(update={"tokens_since": order.issued_before}))]


def _meaning(order: RevokeTokens) -> str:
    if order.application is not None:
        return "The application and all its tokens stop working, and answers that they are receiving are cut off."
    return "These tokens stop working, and answers that they are receiving are cut off."


VERBS = (
    Verb(
        RevokeTokens,
        may=may_revoke_tokens,
        signers=("the unit", "release-owner:UNIT", "administrator"),
        meaning=_meaning,
        summary="Tokens of a unit, or an application with all of its tokens, stop working.",
        event=TokensRevoked,
        apply=tokens_revoked,
        changes_answers=True,
    ),
)
