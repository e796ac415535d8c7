"""Callers of the units' API, reading sessions, the minute's heartbeat with counted refusals, and administrators'
orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from appliance.access.cedar import CedarPolicies
from appliance.access.identity import read_identity_token
from appliance.api.log import NewPostQuantumKeys
from appliance.domain.core.action import NEWEST_RULES
from appliance.domain.core.credentials import ISSUED, SessionStatement, parse_token
from appliance.domain.core.entry import EntryDraft
from appliance.domain.core.policy import parse_policy
from appliance.domain.core.records.people import application_key
from appliance.domain.core.signatures import (
    KEY_ENDED,
    accept_session,
    accept_token,
    key_ended,
    token_revoked,
)
from appliance.domain.core.state import State
from appliance.domain.governance.identities import (
    SessionIdentity,
    find_required_provider,
    find_session_end,
    make_session_identity,
    refuse_claims,
    refuse_identity,
    refuse_missing_token,
)
from appliance.domain.governance.log_control import RaiseRules, RotateLogKey
from appliance.domain.governance.policies import AdoptPolicy, list_policy_signers, refuse_too_few_signers
from appliance.domain.governance.post_quantum import AddPostQuantumKeys
from appliance.domain.governance.service import Heartbeat, ServiceStopped
from appliance.domain.governance.sessions import (
    MAX_NAMES_PER_REFUSAL,
    AuthRefused,
    SessionClosed,
    SessionOpened,
    has_ended_binding,
)
from appliance.domain.serving.requests import RequestRefused
from appliance.domain.serving.tokens import APPLICATION_UNKNOWN, accept_issued, application_ended
from appliance.errors import BadInput, Conflict, Denied, NotAuthenticated, NotFound, Refusal
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64
from appliance.formats.log.note import name_key
from appliance.formats.signatures.dsse import encode_envelope, parse_envelope
from appliance.store.database.sessions import SessionRow
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.core.record import Effect, append, append_all, draft_of


@dataclass(frozen=True)
class UnitCaller:
    """The caller of a request to the units' API.

    `token`: the digest that identifies the token. `keyid`: of the key that signed the token, or that signed the request
    to issue it. `application`: the application that it was issued to, or None for the unit itself. An application may
    use only its `served_models`.
    """

    unit: str
    token: str
    issued_at: str
    keyid: str
    application: str | None = None
    served_models: tuple[str, ...] = ()

    def may_ask(self, served_model: str) -> bool:
        """Return True if the caller may use the served model."""
        return self.application is None or served_model in self.served_models

    def refuse(self, state: State) -> Refusal | None:
        """Return the reason why the caller's running requests must end, or None. The expiry of a token ends no running
        request.
        """
        if self.application is not None:
            row = state.applications.get(application_key(self.unit, self.application))
            if row is None:
                return APPLICATION_UNKNOWN(f"unit:{self.unit}", name=self.application)
            if (ended := application_ended(state, row)) is not None:
                return ended
            return token_revoked(state, self.unit, self.token, self.issued_at)
        key = state.keys.get(self.keyid)
        if key is None or key.revoked is not None:
            return KEY_ENDED(f"key:{self.keyid}")
        return token_revoked(state, self.unit, self.token, self.issued_at)


def accept_caller(state: State, text: str, now: str) -> UnitCaller:
    """Return the caller of a token's text.

    Raises:
        NotAuthenticated: The token is not valid.
        BadInput: The text is not a token.
    """
    if text.startswith(ISSUED):
        digest = digest_bytes(text.encode())
        row, application = accept_issued(state, digest, now)
        return UnitCaller(
            row.unit, digest, row.issued_at, application.keyid, application.name, application.served_models
        )
    envelope = parse_token(text)
    token, unit = accept_token(state, envelope, now)
    return UnitCaller(unit.name, envelope.pae_digest, token.issued_at, envelope.signature.keyid)


Kind = Literal["program", "link", "browser"]
"""Holders of a session's token.

Each kind has tokens of its own, so a browser's cookie is useless to a program and the reverse. A link's token
opens nothing itself: a browser exchanges it for a cookie.
"""

MOST_OPEN = 64
"""Most open sessions of one person at a time."""
NO_SESSION = "session: expected a valid one, got none; a reading command with your key opens one"


@dataclass(frozen=True)
class CheckedStatement:
    """A signed statement that may open a session until `expires_at`, with the identity that policy requires."""

    envelope: bytes
    statement: SessionStatement
    source: str
    identity: SessionIdentity | None
    expires_at: str


def check_statement(context: LedgerContext, data: bytes, source: str, identity_token: str | None) -> CheckedStatement:
    """Check a signed statement of a session, and the ID token beside it if policy requires one.

    Raises:
        NotAuthenticated: The statement or its signer is not valid.
        Denied: The ID token is missing or refused. The code is `identity-required` if it is missing.
        Unavailable: The clock is wrong, so that nothing can be recorded.
    """
    state = context.ledger.state
    context.ledger.clock.read(state)  # under a clock that is behind the log, each new statement would count as expired
    now, parsed = context.now(state), parse_envelope(data)
    statement, principal = accept_session(state, data, now)
    provider = find_required_provider(state, principal, source)
    if provider is None:
        return CheckedStatement(data, statement, source, None, statement.expires_at)
    what = f"session of {principal.name}"
    if identity_token is None:
        raise Denied(what, refusals=refuse_missing_token(principal.name, provider), code="identity-required")
    try:
        token = read_identity_token(provider, identity_token)
        if reasons := refuse_claims(state, provider, principal.name, token.claims, parsed.pae_digest, now):
            raise Denied(what, refusals=reasons, code="identity-refused")
        identity = make_session_identity(state, principal.name, token)
        if reasons := refuse_identity(state, provider, principal.name, identity, now):
            raise Denied(what, refusals=reasons, code="identity-refused")
    except Denied as error:
        error.claimed = (principal.name, parsed.signature.keyid)
        raise
    ends = min(statement.expires_at, find_session_end(provider, identity))
    return CheckedStatement(data, statement, source, identity, ends)


def open_session(context: LedgerContext, checked: CheckedStatement) -> str:
    """Open a session for a checked statement and record it. Return the secret token, which is not stored.

    The rules check signature, origin, lifetime and identity again.

    Raises:
        Denied: The person has too many open sessions.
        RateLimited: The person opened too many sessions and submitted too many orders in the last minute.
    """
    signer, documents = checked.statement.signer, {"session": checked.envelope}
    context.signer_rate.check(signer)
    _check_session_limit(context, signer)
    event = SessionOpened(identity=checked.identity)
    opened = append(context, event, actor=signer, source=checked.source, documents=documents)
    context.signer_rate.add(signer)
    keyid = parse_envelope(checked.envelope).signature.keyid
    return context.sessions.add("program", SessionRow(signer, keyid, checked.expires_at, opened.entry.index))


def _check_session_limit(context: LedgerContext, principal: str) -> None:
    """Raise Denied if the person has too many open sessions, here and at other processes."""
    state = context.ledger.state
    now = context.now(state)
    if (got := sum(_is_open(state, row, now) for row in context.sessions.of(principal))) >= MOST_OPEN:
        expected = f"expected fewer than {MOST_OPEN} open ones of {principal}"
        raise Denied(f"session: {expected}, got {got}", code="rate-limited-sessions")


def move_session_to_link(context: LedgerContext, token: str) -> tuple[str, str]:
    """Move a program's session to a link for a browser. Return the link's code and the session's principal.

    The program loses the session, so that one entry opens one session only.
    """
    code, row = _move(context, token, "program", "link")
    return code, row.principal


def admit_browser(context: LedgerContext, code: str) -> str:
    """Exchange a link's code for a browser's cookie, and return the cookie's secret, which is not stored.

    Raises:
        NotAuthenticated: The session has ended.
    """
    return _move(context, code, "link", "browser")[0]


def _move(context: LedgerContext, token: str, kind: Kind, to: Kind) -> tuple[str, SessionRow]:
    _find(context, token, kind)
    moved = context.sessions.move(kind, token, to)
    if moved is None:
        raise NotAuthenticated(NO_SESSION)
    return moved


def find_session(context: LedgerContext, token: str, kind: Kind = "program") -> tuple[str, str]:
    """Return the principal of a session and the time of its expiry.

    Raises:
        NotAuthenticated: The session has ended.
    """
    row = _find(context, token, kind)
    return row.principal, row.expires_at


def find_caller(context: LedgerContext, cookie: str) -> UnitCaller:
    """Return the unit that sends a request from a browser. Its signed session statement is used like a token.

    Raises:
        NotAuthenticated: The statement has expired, was revoked like a token, or differs from the session's row.
    """
    row, state = _find(context, cookie, "browser"), context.ledger.state
    envelope = parse_envelope(context.ledger.documents_of(row.entry).get("session", b""))
    statement, _ = accept_session(state, encode_envelope(envelope), context.now(state))
    if (statement.signer, envelope.signature.keyid, statement.expires_at) != (row.principal, row.keyid, row.expires_at):
        raise NotAuthenticated(NO_SESSION)
    caller = UnitCaller(row.principal, envelope.pae_digest, statement.issued_at, row.keyid)
    if refused := caller.refuse(state):
        raise NotAuthenticated(str(refused), code="revoked")
    return caller


def _find(context: LedgerContext, token: str, kind: Kind) -> SessionRow:
    row = context.sessions.find(kind, token)
    if row is None:
        raise NotAuthenticated(NO_SESSION)
    state = context.ledger.state
    if row.expires_at <= context.now(state):
        raise NotAuthenticated(NO_SESSION)
    if (why := _find_end_reason(state, row, context.now(state))) is not None:
        raise NotAuthenticated(f"session: {why}")
    return row


def end_session(context: LedgerContext, token: str, source: str, kind: Kind = "program") -> None:
    """End a session at the request of its holder.

    The session ends even if its entry cannot be appended; the error is raised afterwards.
    """
    row = context.sessions.remove(kind, token)
    if row is not None:
        _record_end(context, row, row.principal, source)


def open_sessions(context: LedgerContext, viewer: str) -> list[SessionRow]:
    """Return the open sessions: everybody's for an administrator, otherwise the viewer's own."""
    state = context.ledger.state
    now = context.now(state)
    return [row for row in context.sessions.all() if _is_open(state, row, now) and _may_end(context, viewer, row)]


def close_session(context: LedgerContext, viewer: str, entry: int, source: str) -> SessionRow:
    """End an open session by the entry that opened it: the viewer's own, or anybody's for an administrator.

    Raises:
        NotFound: The viewer may end no session that this entry opened.
    """
    if not any(row.entry == entry for row in open_sessions(context, viewer)):
        raise NotFound(f"session: expected an open one of {viewer}, got none that entry {entry} opened")
    row = context.sessions.remove_opened_by(entry)
    if row is None:
        raise NotFound(f"session: expected one that entry {entry} opened, got one that has ended meanwhile")
    _record_end(context, row, viewer, source)
    return row


def _may_end(context: LedgerContext, viewer: str, row: SessionRow) -> bool:
    person = context.ledger.state.principals.get(viewer)
    return row.principal == viewer or (person is not None and person.revoked is None and person.has("administrator"))


def _record_end(context: LedgerContext, row: SessionRow, by: str, source: str) -> None:
    """Record the end of a session, unless it has expired."""
    if row.expires_at <= context.now(context.ledger.state):
        return
    append(context, SessionClosed(opened=row.entry, principal=row.principal), actor=by, source=source)


def sweep_sessions(context: LedgerContext) -> None:
    """Remove sessions that have expired, or whose principal or key has been revoked."""
    state = context.ledger.state
    now = context.now(state)
    context.sessions.sweep(lambda row: _is_open(state, row, now))


def _is_open(state: State, row: SessionRow, now: str) -> bool:
    return row.expires_at > now and _find_end_reason(state, row, now) is None


def _find_end_reason(state: State, row: SessionRow, now: str) -> str | None:
    """Return the reason why a session is invalid before its expiry, or None."""
    principal, key = state.principals.get(row.principal), state.keys.get(row.keyid)
    if principal is None or principal.revoked is not None:
        return f"expected a valid principal, got {row.principal}, who was revoked"
    if key is None or key_ended(state, key, now) is not None:
        return f"expected one by a valid key, got one by {row.keyid}, which has ended"
    if has_ended_binding(state, row.principal, row.entry):
        return f"expected one by the present identity of {row.principal}, got one by an earlier identity"
    if any(row.entry <= reset.index for reset in state.site.resets):
        return "expected one opened since the clock was reset, got an earlier one"
    if any(row.entry <= restoration.index for restoration in state.site.restorations):
        return "expected one opened since the restoration, got an earlier one"
    return None


class RefusedRequest(NamedTuple):
    """The attributes that refused requests of one count share. `application` and `served_model` are empty if there is
    none.
    """

    unit: str
    code: str
    application: str = ""
    served_model: str = ""


@dataclass(frozen=True)
class Refusals:
    """The refusals since the last heartbeat that are in no entry yet.

    `unauthenticated`: the number of requests without a valid key, the first of them at `since`. `units`: refused
    requests of units by their attributes.
    """

    unauthenticated: int = 0
    since: str = ""
    units: Mapping[RefusedRequest, int] = field(default_factory=dict)
    claimed: frozenset[tuple[str, str]] = frozenset()
    """Pairs of name and key id that the signatures of these requests claimed."""


def beat(context: LedgerContext, refusals: Refusals) -> None:
    """Append one heartbeat and the refusals counted since the last one, in one commit."""
    append_all(context, [*_drafts(context, refusals), draft_of(Heartbeat())])


def record_stop(context: LedgerContext, reason: str, refusals: Refusals) -> None:
    """Append the service's end and the refusals counted since the last heartbeat, in one commit."""
    append_all(context, [*_drafts(context, refusals), draft_of(ServiceStopped(reason=reason, process=context.process))])


def _drafts(context: LedgerContext, refusals: Refusals) -> Iterator[EntryDraft]:
    if refusals.unauthenticated:
        state = context.ledger.state
        names = sorted({name for name, _ in refusals.claimed if name in state.principals})
        keys = sorted({keyid for _, keyid in refusals.claimed if keyid in state.keys})
        yield draft_of(
            AuthRefused(
                count=refusals.unauthenticated,
                since=refusals.since,
                principals=tuple(names[:MAX_NAMES_PER_REFUSAL]),
                keys=tuple(keys[:MAX_NAMES_PER_REFUSAL]),
            )
        )
    for (unit, code, application, served_model), count in sorted(refusals.units.items()):
        yield draft_of(
            RequestRefused(
                unit=unit, application=application or None, served_model=served_model or None, code=code, count=count
            )
        )


def next_log_key(context: LedgerContext, principal: str, *, post_quantum: bool) -> str:
    """Return the vkey of the key to which the log can rotate. Make the key if there is none.

    Only an order lets it sign.

    Raises:
        Denied: The principal is not an administrator.
    """
    state = context.ledger.state
    person = state.principals.get(principal)
    if person is None or not person.has("administrator"):
        raise Denied(f"log key: expected an administrator, got {principal}")
    used = [key.vkey for key in state.site.log_keys]
    with context.order_lock:
        return context.keys.next_log_key(used, post_quantum=post_quantum)


def make_post_quantum_keys(context: LedgerContext, principal: str) -> NewPostQuantumKeys:
    """Return the keys of ML-DSA-65 that an order can add. Make those that are missing.

    Raises:
        Denied: The principal is not an administrator.
    """
    log_key = next_log_key(context, principal, post_quantum=True)
    with context.order_lock:
        adapter_key = context.keys.post_quantum_adapter_key()
    return NewPostQuantumKeys(log_key=log_key, adapter_key=encode_base64(adapter_key.spki))


def _check_made(context: LedgerContext, order: RotateLogKey | AddPostQuantumKeys, _: str) -> None:
    if order.log_key not in context.keys.list_log_keys():
        raise Conflict(f"log key: expected one that this appliance has made, got {name_key(order.log_key)}")
    if isinstance(order, AddPostQuantumKeys):
        made = encode_base64(context.keys.post_quantum_adapter_key().spki)
        if order.adapter_key != made:
            raise Conflict("adapter key: expected the post-quantum key that this appliance has made, got another one")


def _check_policy(context: LedgerContext, order: AdoptPolicy, data: bytes) -> None:
    """Check a policy set before its adoption: it is Cedar, can decide every order, and can be replaced by
    administrators.

    Only administrators whose keys it lets sign count. The outcome depends on the set and on these administrators, not
    on the time: `list_lockout_reasons` assumes the worst case.

    Raises:
        BadInput: The set is malformed or not the one that the order binds.
        Denied: The administrators could not replace it.
    """
    if (got := digest_bytes(data)) != order.policy:
        raise BadInput(f"order adopt-policy, document policy: expected {order.policy}, got {got}")
    state = context.ledger.state
    policy, now, single = parse_policy(data), context.now(state), state.site.single_administrator
    signers = list_policy_signers(state, policy.parameters, now)
    reasons = tuple(refuse_too_few_signers(state, signers))

    def try_set() -> None:
        with CedarPolicies.for_adoption(policy) as site:
            blockers = reasons or site.list_lockout_reasons(signers, single, now)
        if blockers:
            raise Denied("policy set: expected one that administrators can replace", refusals=blockers)

    people = tuple((person.name, person.roles) for person in signers)
    context.policy_trials.check((order.policy, people, single), try_set)


def _check_rules_known(_context: LedgerContext, order: RaiseRules, _: str) -> None:
    """Raise Conflict for a rules version that this build does not support: it could decide no later entry."""
    if order.rules > NEWEST_RULES:
        raise Conflict(f"rules: expected a version that this build knows, {NEWEST_RULES} at most, got {order.rules}")


EFFECTS = (
    Effect(RotateLogKey, ready=_check_made),
    Effect(AddPostQuantumKeys, ready=_check_made),
    Effect(AdoptPolicy, attached=_check_policy),
    Effect(RaiseRules, ready=_check_rules_known),
)
