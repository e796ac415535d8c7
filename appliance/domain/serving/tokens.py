"""Tokens of units: revocation, and the applications that get tokens of their own."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import Field

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.credentials import TokenRequest, parse_credential
from appliance.domain.core.entry import Event, Ordered
from appliance.domain.core.example import NEW_KEY, NOW
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.names import Digest, Identifier, Time, add_seconds
from appliance.domain.core.order import Order, Subjects, entered
from appliance.domain.core.records.people import (
    Application,
    IssuedTokenRecord,
    Principal,
    RevokedToken,
    application_key,
    token_key,
)
from appliance.domain.core.roles import Reasons, require_unit
from appliance.domain.core.signatures import (
    BEFORE_ENROLMENT,
    EXPIRED,
    TOKEN_REVOKED,
    check_lifetime,
    check_since_reset,
    token_revoked,
)
from appliance.domain.core.state import State
from appliance.domain.governance.keys import POSSESSION, NewKey, complete_key, refuse_new_key
from appliance.errors import Denied, NotAuthenticated, Refusal, RefusalCode, Rejected, Tampered
from appliance.formats.signatures.dsse import Envelope, parse_envelope, verify_envelope

TOKENS_AMBIGUOUS = RefusalCode(
    "tokens-ambiguous",
    "order",
    "The order names {count} of these: a token, a time before which tokens were issued, and an application.",
    "Name one of them.",
)
APPLICATION_UNIT_REVOKED = RefusalCode(
    "application-unit-revoked", "state", "{id}, the unit of the application, was revoked.", "Enrol another unit."
)
APPLICATION_KEY_INVALID = RefusalCode(
    "application-key-invalid",
    "state",
    "The application was enrolled with a key of {id} that was revoked from an earlier entry on.",
    "The unit has to enrol another application.",
)
TOKENS_TIME = RefusalCode(
    "tokens-time-out-of-range",
    "order",
    "Tokens can be revoked that were issued before a time after {since} and by {latest}. The order says {named}.",
    "Name a time in this range.",
)
APPLICATION_UNKNOWN = RefusalCode(
    "application-unknown",
    "order",
    "The unit has no application with the name {name}.",
    "Name an application that the unit enrolled.",
)
APPLICATION_ENDED = RefusalCode(
    "application-ended", "state", "The application was ended by entry {entry}.", "The unit has to enrol another one."
)
APPLICATION_NAME_TAKEN = RefusalCode(
    "application-name-taken",
    "order",
    "The unit has had an application with the name {name}.",
    "Choose another name.",
)
SERVED_MODELS_REPEATED = RefusalCode(
    "served-models-repeated", "order", "The order names a served model twice.", "Name each served model once."
)


class RevokeTokens(Order):
    """A signed order to revoke tokens of a unit.

    It names one of three: a token by its digest, a time before which tokens were issued, or an application with all
    its tokens.
    """

    action = "revoke-tokens"
    unit: Identifier
    token: Digest | None
    issued_before: Time | None = entered("a time in the past", kind="past")
    application: Identifier | None

    def subjects(self) -> Subjects:
        return self._self(f"unit:{self.unit}")


class TokensRevoked(Ordered):
    """The entry that tokens were revoked."""

    type = "tokens.revoked"


def authorise_revoke_tokens(state: State, order: RevokeTokens, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against revoking tokens.

    The unit itself, its release owners and administrators may revoke them.
    """
    unit = state.principals.get(order.unit)
    if unit is None or not unit.has("unit"):
        return require_unit(state, order.unit)
    reasons: Reasons = []
    selectors = [member for member in (order.token, order.issued_before, order.application) if member is not None]
    if len(selectors) != 1:
        reasons.append(TOKENS_AMBIGUOUS(count=len(selectors)))
    if order.application is not None:
        reasons += _check_application(state, order.unit, order.application)
    revoked = None if order.token is None else state.tokens.get(token_key(order.unit, order.token))
    if revoked is not None:
        reasons.append(TOKEN_REVOKED(f"unit:{order.unit}", entry=revoked.index))
    if order.issued_before is not None:
        latest = add_seconds(now, state.parameters.clock_skew_s)
        if not (unit.tokens_since or "") < order.issued_before <= latest:
            since = unit.tokens_since or "the beginning"
            reasons.append(TOKENS_TIME(since=since, latest=latest, named=order.issued_before))
    return reasons


def _check_application(state: State, unit: str, name: str) -> Reasons:
    row = state.applications.get(application_key(unit, name))
    if row is None:
        return [APPLICATION_UNKNOWN(f"unit:{unit}", name=Rejected(name))]
    if row.revoked is not None:
        return [APPLICATION_ENDED(f"unit:{unit}", entry=row.revoked)]
    return []


def apply_token_revocation(case: Case) -> Changes:
    """Record that tokens were revoked."""
    order, state = case.order(RevokeTokens), case.state
    if order.application is not None:
        key = application_key(order.unit, order.application)
        application = state.applications.get(key)
        if application is None:
            raise Denied(f"entry {case.entry.index}: application: expected an enrolled one, got {order.application}")
        return [(state.applications, key, application.model_copy(update={"revoked": case.entry.index}))]
    if order.token is not None:
        revoked_token = RevokedToken(digest=order.token, unit=order.unit, index=case.entry.index)
        return [(state.tokens, token_key(order.unit, order.token), revoked_token)]
    unit = state.principals.get(order.unit)
    if unit is None:
        raise Denied(f"entry {case.entry.index}: unit: expected an enrolled one, got {order.unit}")
    return [(state.principals, unit.name, unit.model_copy(update={"tokens_since": order.issued_before}))]


def _meaning(order: RevokeTokens) -> str:
    if order.application is not None:
        return "The application and all its tokens stop working, and answers that they are receiving are cut off."
    return "These tokens stop working, and answers that they are receiving are cut off."


ACTIONS = (
    Action(
        RevokeTokens,
        title="Revoke tokens",
        authorise=authorise_revoke_tokens,
        signers=("the unit", "release-owner:UNIT", "administrator"),
        meaning=_meaning,
        summary="Tokens of a unit, or an application with all of its tokens, stop working.",
        event=TokensRevoked,
        apply=apply_token_revocation,
        recheck_slots=True,
        facts=ActionFacts(PrincipalEntity, "unit"),
        example_values={"signer": "anna", "issued_before": NOW},
    ),
)


MOST_TOKENS = 16
"""Largest number of valid tokens of one application.

It leaves room for renewals before the end of a token, and for restarts.
"""
KEPT_S = 600
"""Seconds for which an expired token stays in the state, since a request may be recorded after the token's end."""


class EnrolApplication(NewKey):
    """A signed order of a unit to enrol an application.

    `principal` is the unit. `served_models`: the only served models it may request.
    """

    action = "enrol-application"
    application: Identifier
    served_models: tuple[Identifier, ...] = Field(min_length=1, max_length=32)

    def subjects(self) -> Subjects:
        return ((f"unit:{self.principal}", self.keyid),)


class ApplicationEnrolled(Ordered):
    """The entry that an application was enrolled."""

    type = "application.enrolled"
    documents = ("order", "possession")


class TokenIssued(Event):
    """The entry that an application got a token.

    `token`: SHA-256 of the token's text, which the service does not store. The document `token-request` is what the
    application signed.
    """

    type = "token.issued"
    actor_kind = "the unit"
    documents = ("token-request",)
    unit: Identifier
    application: Identifier
    token: Digest

    def about(self) -> tuple[str, ...]:
        return (f"unit:{self.unit}",)


def authorise_enrol_application(state: State, order: EnrolApplication, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against enrolling an application."""
    reasons = refuse_new_key(state, order)
    if application_key(order.principal, order.application) in state.applications:
        reasons.append(APPLICATION_NAME_TAKEN(f"unit:{order.principal}", name=order.application))
    if len(set(order.served_models)) != len(order.served_models):
        reasons.append(SERVED_MODELS_REPEATED())
    return reasons


def apply_application_enrolment(case: Case) -> Changes:
    """Record that an application was enrolled."""
    order, entry = case.order(EnrolApplication), case.entry
    row = Application(
        name=order.application,
        unit=order.principal,
        served_models=order.served_models,
        keyid=order.keyid,
        spki=order.key,
        enrolled=entry.index,
        enrolled_at=entry.time,
        enrolled_by=case.accepted.keyid,
    )
    return [(case.state.applications, application_key(row.unit, row.name), row)]


def application_ended(state: State, row: Application) -> Refusal | None:
    """Return why the application gets no more tokens, None while it is enrolled."""
    subject = f"unit:{row.unit}"
    unit, by = state.principals.get(row.unit), state.keys.get(row.enrolled_by)
    if row.revoked is not None:
        return APPLICATION_ENDED(subject, entry=row.revoked)
    if unit is None or not unit.has("unit"):
        return APPLICATION_UNIT_REVOKED(subject)
    if by is None or not by.counts(row.enrolled):
        return APPLICATION_KEY_INVALID(subject)
    return None


def find_application(state: State, unit: str, name: str) -> Application:
    """Return the enrolled application of a unit. The error does not reveal whether the unit exists.

    Raises:
        NotAuthenticated: there is none, or it has ended.
    """
    row = state.applications.get(application_key(unit, name))
    if row is None:
        raise NotAuthenticated(f"application {name} of {unit}: expected one that was enrolled, got none")
    if ended := application_ended(state, row):
        raise NotAuthenticated(str(ended), code="revoked")
    return row


def accept_token_request(state: State, data: bytes, now: Time) -> tuple[TokenRequest, Envelope]:
    """Return a fresh token request for this log that the application's own key signed, and its envelope.

    The caller checks whether it responds to a challenge.

    Raises:
        NotAuthenticated: the request is for another log, not fresh, or not signed by an enrolled application.
        BadInput: the bytes are not a token request.
    """
    envelope = parse_envelope(data)
    request = parse_credential(TokenRequest, envelope.payload)
    what = f"token request of {request.signer}"
    if request.origin != state.site.origin:
        raise NotAuthenticated(f"{what}: expected one for the log {state.site.origin}, got {request.origin}")
    row = find_application(state, request.signer, request.application)
    if (got := envelope.signature.keyid) != row.keyid:
        raise NotAuthenticated(f"{what}: expected the key of {row.name}, got {got}")
    try:
        verify_envelope(envelope, base64.b64decode(row.spki))
        if row.enrolled_at > add_seconds(request.issued_at, state.parameters.clock_skew_s):
            refused = BEFORE_ENROLMENT(issued=request.issued_at, enrolled=row.enrolled_at)
            raise Denied(what, refusals=(refused,))
        check_since_reset(what, request.issued_at, state)
        check_lifetime(what, request.issued_at, request.expires_at, now, state, state.parameters.token_lifetime_s)
    except (Tampered, Denied) as error:
        raise NotAuthenticated(error.message, code=error.code if isinstance(error, Denied) else None) from None
    return request, envelope


def apply_token_issue(case: Case) -> Changes:
    """Record a token that an application requested, and delete tokens that ended long ago from the state.

    Each token request is accepted once, and an application has at most `MOST_TOKENS` valid tokens.
    """
    body, state, now = case.of(TokenIssued), case.state, case.entry.time
    request, envelope = accept_token_request(state, case.documents["token-request"], now)
    expected = (request.signer, request.application)
    case.require((body.unit, body.application) == expected, "application", expected, (body.unit, body.application))
    case.require(body.token not in state.issued_tokens, "token", "a new one", body.token)
    tokens = [
        issued_token
        for issued_token in state.issued_tokens.values()
        if (issued_token.unit, issued_token.application) == expected
    ]
    case.require(
        envelope.pae_digest not in {issued_token.request for issued_token in tokens},
        "token request",
        "a new one",
        "one again",
    )
    check_room(tokens, now)
    expired: Changes = [
        (state.issued_tokens, key, None)
        for key, issued_token in state.issued_tokens.items()
        if add_seconds(issued_token.expires_at, KEPT_S) <= now
    ]
    issued_token = IssuedTokenRecord(
        unit=body.unit,
        application=body.application,
        request=envelope.pae_digest,
        issued_at=request.issued_at,
        expires_at=request.expires_at,
        index=case.entry.index,
    )
    return [*expired, (state.issued_tokens, body.token, issued_token)]


def check_room(own: list[IssuedTokenRecord], now: Time) -> None:
    """Check that an application has fewer valid tokens than it may have.

    Raises:
        Denied: it has as many as it may have (code `rate-limited-tokens`).
    """
    if (got := sum(row.expires_at > now for row in own)) >= MOST_TOKENS:
        expected = f"expected fewer than {MOST_TOKENS} that stand"
        raise Denied(f"tokens of an application: {expected}, got {got}", code="rate-limited-tokens")


def accept_issued(state: State, digest: str, now: Time) -> tuple[IssuedTokenRecord, Application]:
    """Return a valid token that the service issued, and its enrolled application.

    Raises:
        NotAuthenticated: the token is unknown, expired or revoked, or its application has ended.
    """
    row = state.issued_tokens.get(digest)
    if row is None:
        raise NotAuthenticated("token: expected one that this appliance issued, got another")
    if row.expires_at <= now:
        refused = EXPIRED(expires=row.expires_at, now=now)
        raise NotAuthenticated(f"token of {row.unit}: {refused}", code="expired")
    application = find_application(state, row.unit, row.application)
    if revoked := token_revoked(state, row.unit, digest, row.issued_at):
        raise NotAuthenticated(str(revoked), code="revoked")
    return row, application


def check_asker(case: Case, unit: str, application: str | None, token: str, issued_at: Time, served_model: str) -> None:
    """Check that a request names the application and time of its token, and one of the application's served models.

    A request with a later time would evade the revocation of all tokens that were issued before some time.
    """
    row = case.state.issued_tokens.get(token)
    expected = None if row is None else row.application
    case.require(application == expected, "application", expected, application)
    if row is None:
        return
    case.require(unit == row.unit, "unit", row.unit, unit)
    case.require(issued_at == row.issued_at, "token_issued_at", row.issued_at, issued_at)
    enrolled = find_application(case.state, row.unit, row.application)
    case.require(
        served_model in enrolled.served_models,
        "served_model",
        f"one of {', '.join(enrolled.served_models)}",
        served_model,
    )


_EXAMPLE: dict[str, Any] = {
    "signer": "legal",
    "principal": "legal",
    "application": "indexer",
    "served_models": ("labels",),
    **NEW_KEY,
}


APPLICATION_ACTIONS = (
    Action(
        EnrolApplication,
        title="Enrol an application",
        has_form=False,
        complete=complete_key,
        authorise=authorise_enrol_application,
        signers=("the unit",),
        meaning="The holder of this key gets tokens of your unit for these served models until you end it. "
        "Compare the key id.",
        event=ApplicationEnrolled,
        apply=apply_application_enrolment,
        attachment=POSSESSION,
        facts=ActionFacts(PrincipalEntity, "principal", ("application", "served_models")),
        example_values=_EXAMPLE,
    ),
)
EVENTS = (EventRule(TokenIssued, apply_token_issue),)
