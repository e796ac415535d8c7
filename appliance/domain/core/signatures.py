"""Acceptance of orders and credentials: the signature must verify under an enrolled key that is valid."""

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
from appliance.errors import Conflict, Denied, NotAuthenticated, Refusal, RefusalCode, Tampered
from appliance.formats.signatures.dsse import Envelope, parse_envelope, verify_envelope
from appliance.formats.signatures.webauthn import PasskeyScope

C = TypeVar("C", bound=Credential)

_NOT_ENROLLED = (
    "expected a key enrolled for this principal, got {keyid}; "
    "compare the key ids of: appliance key show FILE, and: appliance key list"
)
KEY_ENDED = RefusalCode(
    "key-ended", "state", "The key {id} is no longer valid.", "Sign with a valid key: appliance key list."
)
EXPIRED = RefusalCode("expired", "state", "It expired at {expires}. It is {now}.", "Sign a new one.")
NOT_YET_VALID = RefusalCode(
    "not-yet-valid",
    "state",
    "It was issued at {issued}. The service's clock shows {now}.",
    "Correct the clock of your machine, or have an administrator correct the service's.",
)
LIFETIME_TOO_LONG = RefusalCode(
    "lifetime-too-long",
    "policy",
    "It is valid from {issued} to {expires}. Policy allows {limit_s} seconds.",
    "Sign one that ends earlier.",
)
BEFORE_CLOCK_RESET = RefusalCode(
    "before-clock-reset",
    "state",
    "It was issued at {issued}, before the clock was set back to {time} by entry {entry}.",
    "Sign a new one.",
)
BEFORE_RESTORATION = RefusalCode(
    "before-restoration",
    "state",
    "It was issued at {issued}, before the log was restored at {time} by entry {entry}.",
    "Sign a new one.",
)
BEFORE_ENROLMENT = RefusalCode(
    "before-enrolment",
    "state",
    "It was issued at {issued}. Its key was enrolled at {enrolled}.",
    "Sign a new one.",
)
TOKEN_REVOKED = RefusalCode(
    "token-revoked", "state", "The token of {id} was revoked by entry {entry}.", "Use or name another token."
)
TOKENS_REVOKED_BEFORE = RefusalCode(
    "tokens-revoked-before",
    "state",
    "The tokens of {id} that were issued before {since} were revoked. This one was issued at {issued}.",
    "Get a new token.",
)
PASSKEY_SYNCED = RefusalCode(
    "passkey-can-be-copied",
    "policy",
    "This passkey can be copied, such as to a cloud. Policy (passkeys_synced) does not allow this.",
    "Use a passkey that stays in its authenticator.",
)
PASSKEY_LOCAL = RefusalCode(
    "passkey-on-localhost",
    "policy",
    "This passkey is for localhost. Policy (passkeys_on_localhost) does not allow this.",
    "Use a passkey for the address of the console.",
)


@dataclass(frozen=True)
class AcceptedOrder:
    """An order whose signature verifies under a key that is valid at this index."""

    order: Order
    digest: str
    keyid: str


def authenticate(state: State, envelope: Envelope, signer: str, now: Time) -> Key:
    """Return the signer's key if it may sign something new and the envelope's one signature verifies under it.

    The error message does not disclose whether the principal exists.

    Raises: NotAuthenticated otherwise.
    """
    keyid = envelope.signature.keyid
    key = _find_valid_key(state, keyid, signer, now)
    try:
        _verify(envelope, key)
    except NotAuthenticated as error:
        error.claimed = (signer, keyid)
        raise
    return key


def check_signer(state: State, accepted: AcceptedOrder, now: Time) -> None:
    """Raise NotAuthenticated if the key of an order that was read before may not sign now.

    A key id names one key for ever, so its signature is not verified again.
    """
    _find_valid_key(state, accepted.keyid, accepted.order.signer, max(now, state.last_time))


def _find_valid_key(state: State, keyid: str, signer: str, now: Time) -> Key:
    try:
        key = _key_of(state, keyid, signer)
        principal = state.principals.get(signer)
        why = key_ended(state, key, now)
        if principal is None or principal.revoked is not None or why is not None:
            raise NotAuthenticated(f"signature by {signer}: {why or KEY_ENDED(f'key:{key.keyid}')}")
    except NotAuthenticated as error:
        error.claimed = (signer, keyid)
        raise
    return key


def key_ended(state: State, key: Key, now: Time) -> Refusal | None:
    """Return the reason why the key may sign nothing new, or None while it may. Earlier signatures are not affected."""
    if not key.is_valid(now):
        return KEY_ENDED(f"key:{key.keyid}")
    reasons = [] if key.scope is None else refuse_passkey_scope(state.parameters, key.scope)
    return reasons[0] if reasons else None


def refuse_passkey_scope(parameters: Parameters, scope: PasskeyScope) -> list[Refusal]:
    """Return the reasons for which policy refuses passkeys of this kind at these origins."""
    reasons = []
    if scope.backup_eligible and not parameters.passkeys_synced:
        reasons.append(PASSKEY_SYNCED())
    if scope.is_local and not parameters.passkeys_on_localhost:
        reasons.append(PASSKEY_LOCAL())
    return reasons


def open_envelope(state: State, data: bytes) -> tuple[Envelope, Key]:
    """Return an envelope and the enrolled key that signed it, which may have ended. The payload is not parsed.

    Raises: BadInput if the bytes are not an envelope; NotAuthenticated if the key is not enrolled or the signature
    does not verify under it.
    """
    envelope = parse_envelope(data)
    key = state.keys.get(envelope.signature.keyid)
    if key is None:
        raise NotAuthenticated(f"signature: {_NOT_ENROLLED.format(keyid=envelope.signature.keyid)}")
    try:
        _verify(envelope, key)
    except NotAuthenticated as error:
        error.claimed = (key.principal, key.keyid)
        raise
    return envelope, key


def _key_of(state: State, keyid: str, signer: str) -> Key:
    key = state.keys.get(keyid)
    if key is None or key.principal != signer:
        raise NotAuthenticated(f"signature by {signer}: {_NOT_ENROLLED.format(keyid=keyid)}")
    return key


def _verify(envelope: Envelope, key: Key) -> None:
    try:
        verify_envelope(envelope, base64.b64decode(key.spki), key.scope)
    except Tampered as error:
        raise NotAuthenticated(f"signature by {key.principal}: {error.message}") from None


class OrderReader:
    """A reader of signed orders of given actions. The state of each call says for which log the orders must be.

    It verifies the signature before it parses the payload, so that only holders of an enrolled key cause this work.
    """

    def __init__(self, models: Mapping[str, type[Order]]) -> None:
        self._models = models

    @classmethod
    def of(cls, *models: type[Order]) -> OrderReader:
        """Create a reader of these orders only."""
        return cls({model.action: model for model in models})

    def parse(self, payload: bytes) -> Order:
        """Parse an order without checking its signature.

        Raises: BadInput for an unknown action, a malformed field or other subjects.
        """
        return parse_order(payload, self._models)

    def read(self, state: State, data: bytes, now: Time) -> AcceptedOrder:
        """Read an authentic order for this log, of any age, under a key that is valid.

        Raises: BadInput if it is malformed; NotAuthenticated if it is for another log or its key may not sign.
        """
        return self.read_opened(state, *open_envelope(state, data), now)

    def read_opened(self, state: State, envelope: Envelope, key: Key, now: Time) -> AcceptedOrder:
        """Read an order as `read` does, from an envelope whose signature was verified under this key."""
        accepted = self._parse_opened(state, envelope, key)
        # An order that sets the time back needs keys that were also valid at the time before it.
        check_signer(state, accepted, now)
        return accepted

    def accept(self, state: State, data: bytes, now: Time) -> AcceptedOrder:
        """Read an authentic order that is fresh and was never accepted before.

        Raises: Denied if it is not valid at this time; Conflict for a replay (by the digest of the PAE, since an ECDSA
        order has two valid signatures).
        """
        accepted = self.read(state, data, now)
        order = accepted.order
        what, limit_s, is_back = f"order {order.action}", state.parameters.order_lifetime_s, now < state.last_time
        # An order that sets the time back is pending while the log's time is wrong. Its validity is checked at its own
        # entry.
        at = order.issued_at if order.sets_time and not is_back else now
        check_lifetime(what, order.issued_at, order.expires_at, at, state, limit_s)
        # An order that sets the time back names the last entry, and its countersignature names the order. So both were
        # signed after the enrolment of their keys and after an earlier reset, which may have set a time in the future.
        if not order.sets_time and not is_back:
            check_since_reset(what, order.issued_at, state)
            check_enrolled(what, order.issued_at, state.keys.get(accepted.keyid), state)
        if accepted.digest in state.orders:
            seen = state.orders.get(accepted.digest)
            raise Conflict(f"order {accepted.digest}: expected a new one, got one accepted as entry {seen}", entry=seen)
        return accepted

    def read_logged(self, state: State, data: bytes, index: int) -> AcceptedOrder:
        """Read the order of an accepted entry, under a key whose signature at that index is still valid.

        Raises: NotAuthenticated if the key was distrusted from that entry or an earlier one.
        """
        envelope, key = open_envelope(state, data)
        if not key.counts(index):
            raise NotAuthenticated(f"entry {index}, signature by {key.principal}: expected a key that counts there")
        return self._parse_opened(state, envelope, key)

    def read_recorded(self, state: State, data: bytes) -> AcceptedOrder:
        """Read the order of an entry as it was recorded, even if its signature was distrusted since.

        It serves the proof of an order's result, which the signer cannot withdraw.
        """
        return self._parse_opened(state, *open_envelope(state, data))

    def _parse_opened(self, state: State, envelope: Envelope, key: Key) -> AcceptedOrder:
        order = self.parse(envelope.payload)
        if order.origin != state.site.origin:
            expected = f"expected one for the log {state.site.origin}, got {order.origin}"
            raise NotAuthenticated(f"order {order.action}: {expected}")
        _key_of(state, key.keyid, order.signer)
        return AcceptedOrder(order, envelope.pae_digest, key.keyid)


def list_keys_rotated_from(state: State, keyid: str, since: int, spared: str = "") -> list[Key]:
    """Return the trusted keys that this key rotated to in the entry `since` or later, directly or through other keys.

    Somebody who stole the key can use them. The key `spared` and its successors are omitted. Each key is read once.
    """
    rotated: dict[str, list[Key]] = {}
    for key in state.keys.values():
        if key.rotated_from is not None and key.keyid != spared:
            rotated.setdefault(key.rotated_from, []).append(key)
    successors, queue = [], [(keyid, since)]
    for old, start in queue:
        for key in rotated.get(old, ()):
            if key.enrolled >= start:
                queue.append((key.keyid, key.enrolled))
                if key.distrusted is None or key.distrusted > key.enrolled:
                    successors.append(key)
    return successors


def check_lifetime(what: str, issued: Time, expires: Time, now: Time, state: State, limit_s: int) -> None:
    """Raise Denied unless the statement is valid at this time.

    It must be issued by now (within the clock skew), not be expired, and have at most the lifetime that policy allows.
    """
    if issued > add_seconds(now, state.parameters.clock_skew_s):
        raise Denied(what, refusals=(NOT_YET_VALID(issued=issued, now=now),), code="not-yet-valid")
    if expires <= now:
        raise Denied(what, refusals=(EXPIRED(expires=expires, now=now),), code="expired")
    if expires > add_seconds(issued, limit_s):
        refused = LIFETIME_TOO_LONG(issued=issued, expires=expires, limit_s=limit_s)
        raise Denied(what, refusals=(refused,), code="too-long")


def check_since_reset(what: str, issued: Time, state: State) -> None:
    """Raise Denied if the statement was issued before the clock was last set back or the log was last restored.

    A statement that was accepted and revoked in the entries that a restoration gave up would be valid again.
    """
    skew_s = state.parameters.clock_skew_s
    for row in state.site.resets[-1:]:
        if issued < add_seconds(row.time, -skew_s):
            refused = BEFORE_CLOCK_RESET(issued=issued, time=row.time, entry=row.index)
            raise Denied(what, refusals=(refused,), code="before-reset")
    for step in state.site.restorations[-1:]:
        if issued < step.time:
            refused = BEFORE_RESTORATION(issued=issued, time=step.time, entry=step.index)
            raise Denied(what, refusals=(refused,), code="before-restoration")


def check_enrolled(what: str, issued: Time, key: Key | None, state: State) -> None:
    """Raise Denied if the statement was issued before its key was enrolled, since the key had no owner then."""
    if key is None or key.enrolled_at > add_seconds(issued, state.parameters.clock_skew_s):
        since = "none" if key is None else key.enrolled_at
        raise Denied(what, refusals=(BEFORE_ENROLMENT(issued=issued, enrolled=since),))


def accept_session(state: State, data: bytes, now: Time) -> tuple[SessionStatement, Principal]:
    """Accept a session statement of a valid principal. The caller checks that it responds to a challenge.

    Raises: NotAuthenticated if the statement or its signer is not valid.
    """
    return _accept(state, SessionStatement, data, now, state.parameters.session_lifetime_s)


def accept_token(state: State, envelope: Envelope, now: Time) -> tuple[UnitToken, Principal]:
    """Accept a unit's token that is valid now, and return it with the unit.

    Raises: NotAuthenticated if the token, its key or its unit is not valid.
    """
    token = parse_credential(UnitToken, envelope.payload)
    unit = _check_credential(state, token, envelope, now, token.expires_at, state.parameters.token_lifetime_s)
    if not unit.has("unit"):
        roles = ", ".join(unit.roles)
        raise NotAuthenticated(f"token of {unit.name}: expected a principal with the role unit, got {roles}")
    key = state.keys.get(envelope.signature.keyid)
    if key is None or key.passkey is not None:
        raise NotAuthenticated(f"token of {unit.name}: expected one signed by its key file, got one by a passkey")
    if revoked := token_revoked(state, unit.name, envelope.pae_digest, token.issued_at):
        raise NotAuthenticated(str(revoked), code="revoked")
    return token, unit


def token_revoked(state: State, unit: str, digest: str, issued_at: Time) -> Refusal | None:
    """Return the reason why an accepted token is no longer valid, or None while it is."""
    row, principal = state.tokens.get(token_key(unit, digest)), state.principals.get(unit)
    if row is not None:
        return TOKEN_REVOKED(f"unit:{unit}", entry=row.index)
    try:
        check_since_reset(f"token of {unit}", issued_at, state)
    except Denied as error:
        return error.refusals[0]
    since = None if principal is None else principal.tokens_since
    if since is not None and issued_at < since:
        return TOKENS_REVOKED_BEFORE(f"unit:{unit}", since=since, issued=issued_at)
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
