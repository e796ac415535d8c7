"""Identities of people at the site's identity provider, and the ID tokens with which they open sessions.

A session needs a signed statement in each case, and an ID token in addition if policy requires one. The token's nonce
is the digest of the session's signed statement, so a token opens one session of one browser or program.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from appliance.domain.core.action import Action
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Countersigned, Ordered
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.identity import IdentityProvider, KeyName, ProviderAddress, Subject
from appliance.domain.core.names import Canonical, Digest, Identifier, Time, add_seconds
from appliance.domain.core.order import Order, Subjects, entered
from appliance.domain.core.records.people import Identity, Principal
from appliance.domain.core.roles import Reasons, is_unit, require_enrolled
from appliance.domain.core.state import State
from appliance.errors import RefusalCode, Rejected
from appliance.formats.core.timestamp import encode_time

IDENTITY_REQUIRED = RefusalCode(
    "identity-required",
    "policy",
    "Policy (identity_provider) lets {id} open a session only with an ID token of {issuer}.",
    "Sign in again and follow the page to the identity provider.",
)
IDENTITY_TOKEN_INVALID = RefusalCode(
    "identity-token-invalid",
    "policy",
    "The ID token is not valid: {problem}.",
    "Sign in again. If it happens again, have an administrator compare the policy parameter identity_provider with the "
    "provider.",
)
IDENTITY_CLAIM_DIFFERS = RefusalCode(
    "identity-claim-differs",
    "policy",
    "The ID token's claim {claim} is {got}. Expected: {expected}.",
    "Sign in again in the browser or command that you began with. If it happens again, have an administrator compare "
    "the policy parameter identity_provider with the provider.",
)
IDENTITY_NOT_FRESH = RefusalCode(
    "identity-not-fresh",
    "policy",
    "The ID token was issued at {issued}, and a session by it ends at {ends}. It is {now}.",
    "Sign in again at the identity provider. If it happens again, have the administrators of the identity provider and "
    "of the service compare their clocks.",
)
IDENTITY_IN_FUTURE = RefusalCode(
    "identity-in-future",
    "state",
    "The ID token is valid from {issued}. The service's clock shows {now}.",
    "Have the administrators of the identity provider and of the service compare their clocks.",
)
IDENTITY_NOT_BOUND = RefusalCode(
    "identity-not-bound",
    "state",
    "{id} is bound to no subject of {issuer}. The ID token is of the subject {subject}.",
    "Have two administrators bind you: appliance identity bind.",
)
IDENTITY_BINDING_DIFFERS = RefusalCode(
    "identity-binding-differs",
    "state",
    "The session rests on the binding of entry {entry}. It is not the valid binding of {id} to {issuer}.",
    "Sign in again.",
)
IDENTITY_OF_ANOTHER = RefusalCode(
    "identity-of-another",
    "state",
    "The ID token is of the subject {subject}. {id} is bound to another one.",
    "Sign in at the identity provider with your own account, or have two administrators bind you to this one.",
)
ISSUER_ALMOST_SAME = RefusalCode(
    "issuer-almost-same",
    "rule",
    "The policy set pins the issuer {expected}. The order names {got}. Issuers are compared exactly, so nobody could "
    "sign in with this binding.",
    "Bind the person to {expected}.",
    order_field="issuer",
)
SUBJECT_TAKEN = RefusalCode(
    "subject-taken",
    "state",
    "The subject is bound to {id}. A subject identifies one person.",
    "Name another subject, or remove the other person's identity first.",
    order_field="subject",
)
IDENTITY_OF_UNIT = RefusalCode(
    "identity-of-unit",
    "rule",
    "{id} is a unit. Its sessions need no identity, and several people may share them.",
    "Name a person.",
    order_field="principal",
)
NO_IDENTITY = RefusalCode(
    "no-identity", "state", "{id} is bound to no subject.", "Name a person who is bound.", order_field="principal"
)


class BindIdentity(Order):
    """An order to bind a person to a subject of an identity provider. It replaces an earlier binding of the person."""

    action = "bind-identity"
    principal: Identifier
    issuer: ProviderAddress = entered("the provider's address, as its ID tokens name it")
    subject: Subject = entered("the person's identifier at the provider, the claim sub of their ID tokens")

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class UnbindIdentity(Order):
    """An order to remove a person's identity."""

    action = "unbind-identity"
    principal: Identifier

    def subjects(self) -> Subjects:
        return self._self(f"principal:{self.principal}")


class IdentityBound(Countersigned):
    """The event of a person's binding to a subject."""

    type = "identity.bound"


class IdentityUnbound(Ordered):
    """The event of the removal of a person's identity."""

    type = "identity.unbound"


def authorise_bind_identity(state: State, order: BindIdentity, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a binding."""
    if is_unit(state, order.principal):
        return [IDENTITY_OF_UNIT(f"principal:{order.principal}")]
    reasons = require_enrolled(state, order.principal)
    provider = state.parameters.identity_provider
    if provider is not None and _is_almost_same(provider.issuer, order.issuer):
        reasons.append(ISSUER_ALMOST_SAME(expected=provider.issuer, got=Rejected(order.issuer)))
    for row in state.identities.values():
        holder = state.principals.get(row.principal)
        is_taken = (row.issuer, row.subject) == (order.issuer, order.subject) and row.principal != order.principal
        if is_taken and holder is not None and holder.revoked is None:
            reasons.append(SUBJECT_TAKEN(f"principal:{row.principal}"))
    return reasons


def _is_almost_same(expected: str, named: str) -> bool:
    """Return True if two different addresses are equal except for slashes at the end and upper case."""
    return named != expected and named.rstrip("/").lower() == expected.rstrip("/").lower()


def authorise_unbind_identity(state: State, order: UnbindIdentity, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the removal of an identity."""
    reasons = require_enrolled(state, order.principal)
    if not reasons and order.principal not in state.identities:
        reasons.append(NO_IDENTITY(f"principal:{order.principal}"))
    return reasons


def apply_identity_binding(case: Case) -> Changes:
    """Apply a binding. Sessions that rest on an earlier binding end."""
    order = case.order(BindIdentity)
    row = Identity(principal=order.principal, issuer=order.issuer, subject=order.subject, index=case.entry.index)
    return [(case.state.identities, order.principal, row)]


def apply_identity_removal(case: Case) -> Changes:
    """Apply the removal of an identity. Sessions that rest on it end."""
    return [(case.state.identities, case.order(UnbindIdentity).principal, None)]


class SessionIdentity(Canonical):
    """The ID token by which a session was opened: its digest, key and times, and the entry that bound its subject.

    The other claims are left out, so that the log gets no personal data.
    """

    issuer: ProviderAddress
    binding: int = Field(ge=1)
    key: KeyName
    token: Digest
    issued_at: Time
    expires_at: Time


Seconds = Annotated[int, Field(ge=0, le=253_402_300_799)]
"""Seconds since 1970 in UTC, up to the year 9999."""


class Claims(BaseModel):
    """The claims of an ID token that are checked. All others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    iss: str
    sub: str
    aud: str | tuple[str, ...]
    azp: str | None = None
    exp: Seconds
    iat: Seconds
    nbf: Seconds | None = None
    nonce: str | None = None


@dataclass(frozen=True)
class VerifiedToken:
    """An ID token whose signature was verified with the provider's key `kid`. `digest` is the digest of its text."""

    kid: str
    claims: Claims
    digest: Digest


def _encode_seconds(seconds: int) -> Time:
    return encode_time(datetime.fromtimestamp(seconds, UTC))


def find_required_provider(state: State, principal: Principal, source: str) -> IdentityProvider | None:
    """Return the provider whose ID token the principal needs for a session from this source, or None.

    Units never need one. Administrators and recovery keys need none at the Unix socket on the service's own machine:
    administrators can then change the policy while the provider is unavailable, and a recovery key is not bound to a
    person.
    """
    is_local = source == "unix" or source.startswith("unix:")
    is_exempt = principal.has("administrator") or principal.has("recovery")
    if principal.has("unit") or (is_local and is_exempt):
        return None
    return state.parameters.identity_provider


def list_unbound_people(state: State, provider: IdentityProvider) -> list[str]:
    """Return the sorted names of the valid people who are not bound to a subject of the provider.

    Units and recovery keys are left out, because they need no identity.
    """
    bound = {row.principal for row in state.identities.values() if row.issuer == provider.issuer}
    exempt_roles = ("unit", "recovery")
    people = [
        person
        for person in state.principals.values()
        if person.revoked is None and not set(person.roles) & set(exempt_roles)
    ]
    return sorted(person.name for person in people if person.name not in bound)


def refuse_missing_token(principal: str, provider: IdentityProvider) -> Reasons:
    """Return the refusal reason of a session without an ID token."""
    return [IDENTITY_REQUIRED(f"principal:{principal}", issuer=provider.issuer)]


def refuse_claims(
    state: State, provider: IdentityProvider, principal: str, claims: Claims, nonce: str, now: Time
) -> Reasons:
    """Return the refusal reasons of an ID token's issuer, audience, nonce, start time (`nbf`) and subject.

    `refuse_identity` checks the claims that the log records, such as the expiry.
    """
    audience = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
    reasons = [
        IDENTITY_CLAIM_DIFFERS(claim=claim, got=Rejected(str(got)[:200]), expected=expected)
        for claim, got, expected in (
            ("iss", claims.iss, provider.issuer),
            ("aud", ", ".join(audience), provider.client_id),
            ("azp", claims.azp or provider.client_id, provider.client_id),
            ("nonce", claims.nonce, nonce),
        )
        if got != expected
    ]
    if claims.nbf is not None and _encode_seconds(claims.nbf) > add_seconds(now, state.parameters.clock_skew_s):
        reasons.append(IDENTITY_IN_FUTURE(issued=_encode_seconds(claims.nbf), now=now))
    row = state.identities.get(principal)
    if row is None or row.issuer != provider.issuer:
        subject = Rejected(claims.sub[:255])
        reasons.append(IDENTITY_NOT_BOUND(f"principal:{principal}", issuer=provider.issuer, subject=subject))
    elif row.subject != claims.sub:
        reasons.append(IDENTITY_OF_ANOTHER(f"principal:{principal}", subject=Rejected(claims.sub[:255])))
    return reasons


def make_session_identity(state: State, principal: str, token: VerifiedToken) -> SessionIdentity:
    """Return the record of an ID token for the log. `refuse_claims` must have accepted the token."""
    claims, row = token.claims, state.identities.get(principal)
    assert row is not None
    return SessionIdentity(
        issuer=claims.iss,
        binding=row.index,
        key=token.kid,
        token=token.digest,
        issued_at=_encode_seconds(claims.iat),
        expires_at=_encode_seconds(claims.exp),
    )


def refuse_identity(
    state: State, provider: IdentityProvider, principal: str, identity: SessionIdentity, now: Time
) -> Reasons:
    """Return the refusal reasons of a session's identity: another issuer, key or binding, or times that do not fit."""
    row = state.identities.get(principal)
    if row is None or (row.issuer, row.index) != (provider.issuer, identity.binding):
        return [IDENTITY_BINDING_DIFFERS(f"principal:{principal}", entry=identity.binding, issuer=provider.issuer)]
    reasons = []
    if identity.issuer != provider.issuer:
        reasons.append(IDENTITY_CLAIM_DIFFERS(claim="iss", got=Rejected(identity.issuer), expected=provider.issuer))
    if provider.find_key(identity.key) is None:
        reasons.append(IDENTITY_TOKEN_INVALID(problem="policy has no key of its identifier (kid)"))
    if identity.issued_at > add_seconds(now, state.parameters.clock_skew_s):
        reasons.append(IDENTITY_IN_FUTURE(issued=identity.issued_at, now=now))
    if (ends := find_session_end(provider, identity)) <= now:
        reasons.append(IDENTITY_NOT_FRESH(issued=identity.issued_at, ends=ends, now=now))
    return reasons


def find_session_end(provider: IdentityProvider, identity: SessionIdentity) -> Time:
    """Return the end of a session by this ID token: the token's expiry, or the end of policy's lifetime if earlier."""
    return min(identity.expires_at, add_seconds(identity.issued_at, provider.lifetime_s))


ACTIONS = (
    Action(
        BindIdentity,
        title="Bind a person to their identity",
        authorise=authorise_bind_identity,
        signers=("administrator",),
        meaning="From now on the person opens sessions with ID tokens of this subject only, where policy requires an "
        "identity. Compare the subject with the provider's directory first. Open sessions of an earlier subject end.",
        event=IdentityBound,
        apply=apply_identity_binding,
        two_administrators=True,
        facts=ActionFacts(PrincipalEntity, "principal", ("issuer", "subject")),
        example_values={"signer": "anna", "issuer": "https://login.bank.example", "subject": "248289761001"},
    ),
    Action(
        UnbindIdentity,
        title="Remove a person's identity",
        authorise=authorise_unbind_identity,
        signers=("administrator",),
        meaning="The person is bound to no subject any more. Their sessions that rest on the subject end at once. "
        "Where policy requires an identity, they open no session until they are bound again.",
        event=IdentityUnbound,
        apply=apply_identity_removal,
        facts=ActionFacts(PrincipalEntity, "principal"),
        example_values={"signer": "anna"},
    ),
)
