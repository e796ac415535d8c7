"""A unit's applications: each renews its tokens by a key of its own, which can do nothing else.

The key is no principal's: it is in a table of its own, where neither orders nor sessions look for one. It signs
one thing, the service's challenge for a token. What it may ask is the unit's, for the tasks that the unit named.
"""

from __future__ import annotations

import base64

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.credentials import TokenRequest, parse_credential
from appliance.domain.core.event import Event, Ordered
from appliance.domain.core.names import Digest, Identifier, Time, add_seconds
from appliance.domain.core.order import Subjects
from appliance.domain.core.records.people import Application, IssuedToken, Principal, application_key
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.signatures import check_lifetime, check_since_reset, token_revoked
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.governance.keys import POSSESSION, NewKey, check_new_key
from appliance.errors import Denied, NotAuthenticated, Tampered
from appliance.formats.signatures.dsse import Envelope, parse_envelope, verify_envelope

MOST_TOKENS = 16
"""Of one application at a time: it renews one before the last ends, and a restart asks for another."""
KEPT_S = 600
"""For so long after its end a token is remembered: a request that it opened before may be recorded after."""


class EnrollApplication(NewKey):
    """`principal` is the unit, which signs it itself; `tasks`: what the application may ask for, and nothing else."""

    verb = "enroll-application"
    application: Identifier
    tasks: tuple[Identifier, ...] = Field(min_length=1, max_length=32)

    def subjects(self) -> Subjects:
        return ((f"unit:{self.principal}", self.keyid),)


class ApplicationEnrolled(Ordered):
    type = "application.enrolled"
    documents = ("order", "possession")


class TokenIssued(Event):
    """`token`: SHA-256 of the token's text, which nobody keeps. `token-request` is what the application signed."""

    type = "token.issued"
    documents = ("token-request",)
    unit: Identifier
    application: Identifier
    token: Digest

    def about(self) -> tuple[str, ...]:
        return (f"unit:{self.unit}",)

    @property
    def actor(self) -> str | None:
        return self.unit


def may_enroll_application(state: State, order: EnrollApplication, signer: Principal, now: Time) -> Reasons:
    reasons = needs(signer, "unit") + check_new_key(state, order)
    if signer.name != order.principal:
        reasons.append(f"unit: expected the signer's own name {signer.name}, got {order.principal}")
    if application_key(order.principal, order.application) in state.applications:
        reasons.append(f"application: expected a name never used by {order.principal}, got {order.application}")
    if len(set(order.tasks)) != len(order.tasks):
        reasons.append(f"tasks: expected each once, got {', '.join(order.tasks)}")
    return reasons


def application_enrolled(case: Case) -> Changes:
    order, entry = case.order(EnrollApplication), case.entry
    row = Application(
        name=order.application,
        unit=order.principal,
        tasks=order.tasks,
        keyid=order.keyid,
        spki=order.key,
        enrolled=entry.index,
        enrolled_at=entry.time,
        enrolled_by=case.accepted.keyid,
    )
    return [(case.state.applications, application_key(row.unit, row.name), row)]


def application_ended(state: State, row: Application) -> str | None:
    """Why the application gets no more tokens, or None while it is enrolled."""
    what = f"application {row.name} of {row.unit}"
    unit, by = state.principals.get(row.unit), state.keys.get(row.enrolled_by)
    if row.revoked is not None:
        return f"{what}: expected one that stands, got one ended by entry {row.revoked}"
    if unit is None or not unit.has("unit"):
        return f"{what}: expected a standing unit, got one that was revoked"
    if by is None or not by.counts(row.enrolled):
        return f"{what}: expected one enrolled by a key that counts, got one by {row.enrolled_by}, which does not"
    return None


def find_application(state: State, unit: str, name: str) -> Application:
    """NotAuthenticated if none is enrolled. The message never tells whether the unit exists."""
    row = state.applications.get(application_key(unit, name))
    if row is None:
        raise NotAuthenticated(f"application {name} of {unit}: expected one that was enrolled, got none")
    if ended := application_ended(state, row):
        raise NotAuthenticated(ended, code="revoked")
    return row


def accept_token_request(state: State, data: bytes, now: Time) -> tuple[TokenRequest, Envelope]:
    """A fresh statement for this log under the application's own key; whether it answers a challenge is the caller's to
    check. NotAuthenticated, or BadInput for what is no such statement at all."""
    envelope = parse_envelope(data)
    request = parse_credential(TokenRequest, envelope.payload)
    what = f"token request of {request.signer}"
    if request.origin != state.site.origin:
        raise NotAuthenticated(f"{what}: expected one for the log {state.site.origin}, got {request.origin}")
    row = find_application(state, request.signer, request.application)
    if (got := envelope.signatures[0].keyid) != row.keyid:
        raise NotAuthenticated(f"{what}: expected the key of {row.name}, got {got}")
    try:
        verify_envelope(envelope, base64.b64decode(row.spki))
        if row.enrolled_at > add_seconds(request.issued_at, state.parameters.clock_skew_s):
            raise Denied(f"{what}: expected one issued since {row.enrolled_at}, got one issued at {request.issued_at}")
        check_since_reset(what, request.issued_at, state)
        check_lifetime(what, request.issued_at, request.expires_at, now, state, state.parameters.token_lifetime_s)
    except (Tampered, Denied) as error:
        raise NotAuthenticated(error.message, code=error.code if isinstance(error, Denied) else None) from None
    return request, envelope


def token_issued(case: Case) -> Changes:
    """The application asked for it, once; it has no more than some at a time. What has ended long ago is forgotten."""
    body, state, now = case.of(TokenIssued), case.state, case.entry.time
    request, envelope = accept_token_request(state, case.documents["token-request"], now)
    expected = (request.signer, request.application)
    case.require((body.unit, body.application) == expected, "application", expected, (body.unit, body.application))
    case.require(body.token not in state.issued_tokens, "token", "a new one", body.token)
    own = [row for row in state.issued_tokens.values() if (row.unit, row.application) == expected]
    case.require(envelope.pae_digest not in {row.request for row in own}, "token request", "a new one", "one again")
    check_room(own, now)
    gone: Changes = [
        (state.issued_tokens, key, None)
        for key, row in state.issued_tokens.items()
        if add_seconds(row.expires_at, KEPT_S) <= now
    ]
    row = IssuedToken(
        unit=body.unit,
        application=body.application,
        request=envelope.pae_digest,
        issued_at=request.issued_at,
        expires_at=request.expires_at,
        index=case.entry.index,
    )
    return [*gone, (state.issued_tokens, body.token, row)]


def check_room(own: list[IssuedToken], now: Time) -> None:
    """Denied where an application has as many tokens as it may."""
    if (got := sum(row.expires_at > now for row in own)) >= MOST_TOKENS:
        expected = f"expected fewer than {MOST_TOKENS} that stand"
        raise Denied(f"tokens of an application: {expected}, got {got}", code="too-many-tokens")


def accept_issued(state: State, digest: str, now: Time) -> tuple[IssuedToken, Application]:
    """A token that the service gave to an application, which both stand now."""
    row = state.issued_tokens.get(digest)
    if row is None:
        raise NotAuthenticated("token: expected one that this appliance issued, got another")
    if row.expires_at <= now:
        raise NotAuthenticated(
            f"token of {row.unit}: expected one that stands at {now}, got one that expired at {row.expires_at}",
            code="expired",
        )
    application = find_application(state, row.unit, row.application)
    if revoked := token_revoked(state, row.unit, digest, row.issued_at):
        raise NotAuthenticated(revoked, code="revoked")
    return row, application


def check_asker(case: Case, unit: str, application: str | None, token: str, issued_at: Time, task: str) -> None:
    """A request names the application whose token it came with and the time of that token, and asks for one of its
    tasks. A later time would get past a revocation of all tokens that were issued before some time."""
    row = case.state.issued_tokens.get(token)
    expected = None if row is None else row.application
    case.require(application == expected, "application", expected, application)
    if row is None:
        return
    case.require(unit == row.unit, "unit", row.unit, unit)
    case.require(issued_at == row.issued_at, "token_issued_at", row.issued_at, issued_at)
    found = find_application(case.state, row.unit, row.application)
    case.require(task in found.tasks, "task", f"one of {', '.join(found.tasks)}", task)


VERBS = (
    Verb(
        EnrollApplication,
        may=may_enroll_application,
        signers=("the unit",),
        meaning="The holder of this key gets tokens of your unit for these tasks until you end it. Compare the key id.",
        event=ApplicationEnrolled,
        apply=application_enrolled,
        attachment=POSSESSION,
    ),
)
EVENTS = (EventRule(TokenIssued, token_issued),)
