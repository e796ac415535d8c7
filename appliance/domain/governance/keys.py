"""People's keys: replaced by administrators, rotated by their owner, revoked."""

from __future__ import annotations

import base64

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.credentials import Possession, parse_credential
from appliance.domain.core.event import Endorsed, Ordered
from appliance.domain.core.names import Base64, Digest, Identifier, Time, Value, add_seconds
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Key, Principal
from appliance.domain.core.roles import Reasons, needs, stands
from appliance.domain.core.signatures import keys_rotated_from
from appliance.domain.core.state import State
from appliance.domain.core.verb import Attachment, Verb
from appliance.errors import ApplianceError, BadInput, Denied
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope
from appliance.formats.signatures.keys import keyid_of


class ProvedKey(Value):
    """A person's key beside others in one order, which has proved that somebody holds it."""

    principal: Identifier
    key: Base64 = Field(description="SubjectPublicKeyInfo, DER")
    keyid: Digest
    possession: Digest = Field(description="PAE digest of the statement by which the key proves possession")


class NewKey(Order):
    """Enrols a person's key, with a proof of possession."""

    principal: Identifier
    key: Base64 = Field(description="SubjectPublicKeyInfo, DER")
    keyid: Digest
    possession: Digest = Field(description="PAE digest of the statement by which the new key proves possession")

    def subjects(self) -> Subjects:
        return ((f"principal:{self.principal}", self.keyid),)


class ReplaceKey(NewKey):
    """Administrators give a person a new key, because the old one is lost: it ends at once."""

    verb = "replace-key"


class RotateKey(NewKey):
    """A person's own: the new key takes over, the old ones stand until a time."""

    verb = "rotate-key"
    old_until: Time


class RevokeKey(Order):
    """Ends a key; with `since`, what it signed in that entry or later does not count."""

    verb = "revoke-key"
    principal: Identifier
    keyid: Digest
    since: int | None = Field(ge=0)

    def subjects(self) -> Subjects:
        return ((f"principal:{self.principal}", self.keyid),)


class KeyEnrolled(Endorsed):
    """`order` is the person's own `rotate-key`, or endorses the `replace-key` in `endorsed`."""

    type = "key.enrolled"
    documents = ("order", "possession")


class KeyRevoked(Ordered):
    type = "key.revoked"


def check_possession(case: Case, order: NewKey | ProvedKey, data: bytes) -> None:
    """The new key signed, for this log and this name, the statement that the order binds."""
    envelope = parse_envelope(data)
    possession = parse_credential(Possession, envelope.payload)
    found = (possession.origin, possession.signer, possession.key, possession.keyid, envelope.pae_digest)
    expected = (case.state.site.origin, order.principal, order.key, order.keyid, order.possession)
    if found != expected:
        raise BadInput(f"proof of possession of {order.principal}: expected {expected}, got {found}")
    if (keyid := envelope.signatures[0].keyid) != order.keyid:
        what = f"proof of possession of {order.principal}"
        raise BadInput(f"{what}: expected a signature by {order.keyid}, got one by {keyid}")
    verify_envelope(envelope, base64.b64decode(order.key))


POSSESSION = Attachment("possession", check_possession)


def check_new_key(state: State, order: NewKey | ProvedKey) -> Reasons:
    reasons = []
    held = state.keys.get(order.keyid)
    if held is not None:
        reasons.append(f"key: expected one never enrolled here, got {order.keyid}, which belongs to {held.principal}")
    of_application = next((row for row in state.applications.values() if row.keyid == order.keyid), None)
    if of_application is not None:
        owner = f"the application {of_application.name} of {of_application.unit}"
        reasons.append(f"key: expected one never enrolled here, got {order.keyid}, which belongs to {owner}")
    try:
        keyid = keyid_of(base64.b64decode(order.key))
    except ApplianceError as error:
        keyid = f"no public key ({error.message})"
    if keyid != order.keyid:
        reasons.append(f"key: expected the key id {order.keyid}, got {keyid}")
    return reasons


def may_replace_key(state: State, order: ReplaceKey, signer: Principal, now: Time) -> Reasons:
    return needs(signer, "administrator") + check_new_key(state, order) + stands(state, order.principal)


def may_rotate_key(state: State, order: RotateKey, signer: Principal, now: Time) -> Reasons:
    reasons = check_new_key(state, order) + overlap(state, order.old_until, now)
    if order.principal != signer.name:
        reasons.append(f"principal: expected the signer's own name {signer.name}, got {order.principal}")
    return reasons


def may_revoke_key(state: State, order: RevokeKey, signer: Principal, now: Time) -> Reasons:
    reasons = [] if signer.name == order.principal else needs(signer, "administrator")
    key = state.keys.get(order.keyid)
    if key is None or key.principal != order.principal:
        return [*reasons, f"key: expected one of {order.principal}, got {order.keyid}"]
    start = key.distrusted
    # Once more, where that takes back more: a thief may have revoked it himself, with a key that he rotated to.
    if (
        start is not None
        and (order.since is None or order.since >= start)
        and not keys_rotated_from(state, key.keyid, start)
    ):
        reasons.append(f"key {order.keyid}: expected one that counts, got one revoked from entry {start} on")
    if order.since is not None and not key.enrolled < order.since <= state.size:
        reasons.append(f"since: expected an entry in {key.enrolled + 1} to {state.size}, got {order.since}")
    return reasons


def overlap(state: State, until: Time, now: Time) -> Reasons:
    limit = add_seconds(now, state.parameters.key_overlap_s)
    return [f"old keys: expected them to stand until {limit} at most, got {until}"] if until > limit else []


def new_key(case: Case, name: str, spki: str, keyid: str) -> Key:
    entry = case.entry
    return Key(keyid=keyid, spki=spki, principal=name, enrolled=entry.index, enrolled_at=entry.time)


def key_enrolled(case: Case) -> Changes:
    """A new key for a person: the old ones end at once, or stand for a while where the person rotates. A rotation ends
    no passkey."""
    changes: Changes = []
    order = case.order(NewKey)
    until = order.old_until if isinstance(order, RotateKey) else None
    principal = _principal(case, order.principal)
    for key in case.state.keys.values():
        if key.principal != principal.name or (until is not None and key.passkey is not None):
            continue
        if key.stands(case.entry.time):
            # One that an earlier rotation ends is not prolonged by the next.
            ends = {"revoked": case.entry.index} if until is None else {"until": min(until, key.until or until)}
            changes.append((case.state.keys, key.keyid, key.model_copy(update=ends)))
    rotated_from = case.accepted.keyid if isinstance(order, RotateKey) else None
    enrolled = new_key(case, order.principal, order.key, order.keyid).model_copy(update={"rotated_from": rotated_from})
    changes.append((case.state.keys, order.keyid, enrolled))
    return [*changes, (case.state.principals, principal.name, principal.model_copy(update={"keyid": order.keyid}))]


def _principal(case: Case, name: str) -> Principal:
    principal = case.state.principals.get(name)
    if principal is None:
        raise Denied(f"entry {case.entry.index}: principal: expected a standing one, got {name}")
    return principal


def key_revoked(case: Case) -> Changes:
    """What the key signed before stays valid, except what the order takes back."""
    order, index = case.order(RevokeKey), case.entry.index
    key = case.state.keys.get(order.keyid)
    if key is None:
        raise Denied(f"entry {index}: key: expected an enrolled one, got {order.keyid}")
    since = index if order.since is None else order.since
    distrusted = since if key.distrusted is None else min(since, key.distrusted)
    # Else who rotated first, and then revokes the old key, would lock himself out.
    also_ended = keys_rotated_from(case.state, key.keyid, distrusted, spared=case.accepted.keyid)
    case.require(
        bool(also_ended) or distrusted != key.distrusted, "key", "one that counts", f"{key.keyid}, which does not"
    )
    ends = {key.keyid: distrusted} | {later.keyid: later.enrolled for later in also_ended}
    return [(case.state.keys, one.keyid, _ended(one, index, ends[one.keyid])) for one in (key, *also_ended)]


def _ended(key: Key, index: int, distrusted: int) -> Key:
    """Revoked by this entry, unless by an earlier one; what it signed from the entry `distrusted` on does not count."""
    revoked = index if key.revoked is None else key.revoked
    return key.model_copy(update={"revoked": revoked, "distrusted": distrusted})


VERBS = (
    Verb(
        ReplaceKey,
        may=may_replace_key,
        signers=("administrator",),
        meaning="From now on the person signs with this key; older ones end at once. Compare the key id first.",
        event=KeyEnrolled,
        apply=key_enrolled,
        two_administrators=True,
        attachment=POSSESSION,
    ),
    Verb(
        RotateKey,
        may=may_rotate_key,
        signers=("the key's owner",),
        meaning="From now on you sign with this key; your older keys are valid until the date, but passkeys stay.",
        event=KeyEnrolled,
        apply=key_enrolled,
        attachment=POSSESSION,
    ),
    Verb(
        RevokeKey,
        may=may_revoke_key,
        signers=("the key's owner", "administrator"),
        meaning="The key signs nothing more. With `since`, what it signed in that entry or later does not count.",
        event=KeyRevoked,
        apply=key_revoked,
        changes_answers=True,
    ),
)
