"""Who signed this, and does it count now: the acceptance of orders and credentials under enrolled keys."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from appliance.domain.core.credentials import Credential, SessionStatement, UnitToken, parse_credential
from appliance.domain.core.names import Time, add_seconds
from appliance.domain.core.order import Order, parse_order
from appliance.domain.core.policy import Parameters
from appliance.domain.core.records.people import Key, Principal, token_key
from appliance.domain.core.state import State
from appliance.errors import Conflict, Denied, NotAuthenticated, Tampered
from appliance.formats.signatures.dsse import Envelope, parse_envelope, verify_envelope
from appliance.formats.signatures.relying_party import PasskeyScope

C = TypeVar("C", bound=Credential)


@dataclass(frozen=True)
class Accepted:
    """An order whose signature holds under a key that is valid at this index."""

    order: Order
    digest: str
    keyid: str


def authenticate(state: State, envelope: Envelope, signer: str, now: Time) -> Key:
    """The signer's key, if the envelope's one signature holds under it and it may sign something new.

    The message never tells an outsider whether the principal exists.
    """
    try:
        key = _key_of(state, envelope, signer)
        principal = state.principals.get(signer)
        why = key_ended(state, key, now)
        if principal is None or principal.revoked is not None or why is not None:
            why = why or f"expected a standing key, got {key.keyid}, which has ended"
            raise NotAuthenticated(f"signature by {signer}: {why}")
        _verify(envelope, key)
    except NotAuthenticated as error:
        error.claimed = (signer, envelope.signatures[0].keyid)
        raise
    return key


def key_ended(state: State, key: Key, now: Time) -> str | None:
    """Why the key signs nothing new, or None while it may. What it signed before is not asked about."""
    if not key.stands(now):
        return f"expected a standing key, got {key.keyid}, which has ended"
    reasons = [] if key.scope is None else against_scope(state.parameters, key.scope)
    return reasons[0] if reasons else None


def against_scope(parameters: Parameters, scope: PasskeyScope) -> list[str]:
    """What policy has against passkeys of this kind, at this place."""
    reasons = []
    if scope.backup_eligible and not parameters.passkeys_synced:
        reasons.append("passkey: expected a key that cannot be copied (policy: passkeys_synced), got one that can")
    if scope.is_local and not parameters.passkeys_on_localhost:
        expected = "expected another place than localhost (policy: passkeys_on_localhost)"
        reasons.append(f"passkey: {expected}, got {', '.join(scope.origins)}")
    return reasons


def _key_of(state: State, envelope: Envelope, signer: str) -> Key:
    keyid = envelope.signatures[0].keyid
    key = state.keys.get(keyid)
    if key is None or key.principal != signer:
        raise NotAuthenticated(f"signature by {signer}: expected a key enrolled for this principal, got {keyid}")
    return key


def _verify(envelope: Envelope, key: Key) -> None:
    try:
        verify_envelope(envelope, base64.b64decode(key.spki), key.scope)
    except Tampered as error:
        raise NotAuthenticated(f"signature by {key.principal}: {error.message}") from None


class OrderReader:
    """Reads signed orders of the verbs that it was given, for the log of the state that it is asked about."""

    def __init__(self, models: Mapping[str, type[Order]]) -> None:
        self._models = models

    @classmethod
    def of(cls, *models: type[Order]) -> OrderReader:
        """One that knows these verbs alone."""
        return cls({model.verb: model for model in models})

    def parse(self, payload: bytes) -> Order:
        """The order of a statement's bytes; BadInput for an unknown verb, a member that does not fit or other subjects.
        Its signature is not checked."""
        return parse_order(payload, self._models)

    def read(self, state: State, data: bytes, now: Time) -> Accepted:
        """An authentic order for this log, whatever its age, under a key that is valid."""
        envelope, order = self._open(state, data)
        # The entry that sets time back is signed by keys that were also valid at the time before it.
        key = authenticate(state, envelope, order.signer, max(now, state.last_time))
        return Accepted(order, envelope.pae_digest, key.keyid)

    def accept(self, state: State, data: bytes, now: Time) -> Accepted:
        """An authentic order that is fresh and has never been accepted.

        Conflict for a replay (by the digest of the PAE, since an ECDSA order has two valid signatures).
        """
        accepted = self.read(state, data, now)
        order = accepted.order
        what, limit_s, is_back = f"order {order.verb}", state.parameters.order_lifetime_s, now < state.last_time
        # The order that sets time back waits under a time that it says is wrong. Whether it is valid is checked at its
        # own entry.
        at = order.issued_at if order.sets_time and not is_back else now
        check_lifetime(what, order.issued_at, order.expires_at, at, state, limit_s)
        # What sets time back names the last entry, and its endorsement names it: neither was signed before its key was
        # enrolled or before an earlier reset, which may have set a time that was still ahead.
        if not order.sets_time and not is_back:
            check_since_reset(what, order.issued_at, state)
            check_enrolled(what, order.issued_at, state.keys.get(accepted.keyid), state)
        if accepted.digest in state.orders:
            seen = state.orders.get(accepted.digest)
            raise Conflict(f"order {accepted.digest}: expected a new one, got one accepted as entry {seen}")
        return accepted

    def read_logged(self, state: State, data: bytes, index: int) -> Accepted:
        """The order of an accepted entry, under a key whose signature at that index still counts."""
        envelope, order = self._open(state, data)
        key = _key_of(state, envelope, order.signer)
        if not key.counts(index):
            raise NotAuthenticated(f"entry {index}, signature by {order.signer}: expected a key that counts there")
        _verify(envelope, key)
        return Accepted(order, envelope.pae_digest, key.keyid)

    def read_recorded(self, state: State, data: bytes) -> Accepted:
        """The order of an entry as it was recorded, whether its signature counts still or not: for a proof of what came
        of it, which its signer cannot take back."""
        envelope, order = self._open(state, data)
        key = _key_of(state, envelope, order.signer)
        _verify(envelope, key)
        return Accepted(order, envelope.pae_digest, key.keyid)

    def _open(self, state: State, data: bytes) -> tuple[Envelope, Order]:
        envelope = parse_envelope(data)
        order = self.parse(envelope.payload)
        if order.origin != state.site.origin:
            expected = f"expected one for the log {state.site.origin}, got {order.origin}"
            raise NotAuthenticated(f"order {order.verb}: {expected}")
        return envelope, order


def keys_rotated_from(state: State, keyid: str, since: int, spared: str = "") -> list[Key]:
    """Keys that still count and that this one rotated to in the entry `since` or later, and so on from key to key:
    a thief of the key then holds them. Neither the spared one nor what that rotated to."""
    found, held = [], [(keyid, since)]
    for old, start in held:
        for key in state.keys.values():
            if key.rotated_from == old and key.enrolled >= start and key.keyid != spared:
                held.append((key.keyid, key.enrolled))
                if key.distrusted is None or key.distrusted > key.enrolled:
                    found.append(key)
    return found


def check_lifetime(what: str, issued: Time, expires: Time, now: Time, state: State, limit_s: int) -> None:
    """Issued before now, still standing, and not made to stand longer than policy allows."""
    if issued > add_seconds(now, state.parameters.clock_skew_s):
        raise Denied(f"{what}: expected one issued by {now}, got one issued at {issued}", code="not-yet-valid")
    if expires <= now:
        raise Denied(f"{what}: expected one that stands at {now}, got one that expired at {expires}", code="expired")
    if expires > add_seconds(issued, limit_s):
        raise Denied(f"{what}: expected a lifetime of at most {limit_s} s, got {issued} to {expires}", code="too-long")


def check_since_reset(what: str, issued: Time, state: State) -> None:
    """What was issued before the clock was set back does not count after it."""
    reset = state.site.resets[-1] if state.site.resets else None
    if reset is not None and issued < add_seconds(reset.time, -state.parameters.clock_skew_s):
        since = f"expected one issued since the clock was reset at {reset.time} (entry {reset.index})"
        raise Denied(f"{what}: {since}, got one issued at {issued}", code="before-reset")


def check_enrolled(what: str, issued: Time, key: Key | None, state: State) -> None:
    """A signature from before its key was enrolled is refused, because the key had no owner then."""
    if key is None or key.enrolled_at > add_seconds(issued, state.parameters.clock_skew_s):
        since = "none" if key is None else key.enrolled_at
        raise Denied(f"{what}: expected one issued since its key was enrolled at {since}, got one issued at {issued}")


def accept_session(state: State, data: bytes, now: Time) -> tuple[SessionStatement, Principal]:
    """A session statement by a standing principal; whether it answers a challenge is the caller's to check."""
    return _accept(state, SessionStatement, data, now, state.parameters.session_lifetime_s)


def accept_token(state: State, envelope: Envelope, now: Time) -> tuple[UnitToken, Principal]:
    """A unit's token that is valid now, and the unit."""
    token = parse_credential(UnitToken, envelope.payload)
    unit = _check_credential(state, token, envelope, now, token.expires_at, state.parameters.token_lifetime_s)
    if not unit.has("unit"):
        held = ", ".join(unit.roles)
        raise NotAuthenticated(f"token of {unit.name}: expected a principal with the role unit, got {held}")
    key = state.keys.get(envelope.signature.keyid)
    if key is None or key.passkey is not None:
        raise NotAuthenticated(f"token of {unit.name}: expected one signed by its key file, got one by a passkey")
    if revoked := token_revoked(state, unit.name, envelope.pae_digest, token.issued_at):
        raise NotAuthenticated(revoked, code="revoked")
    return token, unit


def token_revoked(state: State, unit: str, digest: str, issued_at: Time) -> str | None:
    """Why a token that was accepted no longer counts, or None while it does."""
    row, principal = state.tokens.get(token_key(unit, digest)), state.principals.get(unit)
    if row is not None:
        return f"token of {unit}: expected one that counts, got one revoked by entry {row.index}"
    try:
        check_since_reset(f"token of {unit}", issued_at, state)
    except Denied as error:
        return error.message
    since = None if principal is None else principal.tokens_since
    if since is not None and issued_at < since:
        return f"token of {unit}: expected one issued since {since}, got one issued at {issued_at}"
    return None


def _accept(
    state: State, model: type[SessionStatement], data: bytes, now: Time, limit_s: int
) -> tuple[SessionStatement, Principal]:
    envelope = parse_envelope(data)
    session = parse_credential(model, envelope.payload)
    return session, _check_credential(state, session, envelope, now, session.expires_at, limit_s)


def _check_credential(
    state: State, credential: Credential, envelope: Envelope, now: Time, expires: Time, limit_s: int
) -> Principal:
    what = f"{credential.kind} of {credential.signer}"
    if credential.origin != state.site.origin:
        raise NotAuthenticated(f"{what}: expected one for the log {state.site.origin}, got {credential.origin}")
    key = authenticate(state, envelope, credential.signer, now)
    try:
        check_enrolled(what, credential.issued_at, key, state)
        check_since_reset(what, credential.issued_at, state)
        check_lifetime(what, credential.issued_at, expires, now, state, limit_s)
    except Denied as error:
        refused = NotAuthenticated(error.message, code=error.code)
        refused.claimed = (credential.signer, key.keyid)
        raise refused from None
    principal = state.principals.get(credential.signer)
    if principal is None:
        raise NotAuthenticated(f"{what}: expected an enrolled principal")
    return principal
