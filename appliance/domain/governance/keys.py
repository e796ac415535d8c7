"""People's keys: replacement by administrators, rotation by their owner, revocation."""

from __future__ import annotations

import base64
from typing import Any

from pydantic import Field

from appliance.domain.core.action import Action, Attachment
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.credentials import Possession, parse_credential
from appliance.domain.core.entry import Countersigned, Ordered
from appliance.domain.core.example import NEW_KEY, example_digest
from appliance.domain.core.facts import ActionFacts, PrincipalEntity
from appliance.domain.core.lookup import Completed, Lookup, OrderInput, ProvenValue
from appliance.domain.core.names import Base64, Digest, Identifier, Time, Value, add_seconds
from appliance.domain.core.order import Order, Subjects, derived, entered
from appliance.domain.core.records.people import Key, Principal
from appliance.domain.core.roles import Reasons, require_enrolled
from appliance.domain.core.signatures import list_keys_rotated_from
from appliance.domain.core.state import State
from appliance.errors import ApplianceError, BadInput, Denied, RefusalCode, Rejected
from appliance.formats.signatures.dsse import parse_envelope, verify_envelope
from appliance.formats.signatures.keys import keyid_of

MOST_ROTATIONS = 8
"""Largest number of a person's rotations in `ROTATION_PERIOD_S`."""
ROTATION_PERIOD_S = 86_400
"""Seconds in which a person's rotations are counted."""

KEY_TAKEN = RefusalCode(
    "key-taken",
    "order",
    "The key {id} was enrolled before and belongs to its principal for ever.",
    "Make a new key: each key belongs to one principal.",
)
KEY_MALFORMED = RefusalCode(
    "key-malformed", "order", "The order contains no public key: {detail}.", "Make a new key and order again."
)
KEY_ID_DIFFERS = RefusalCode(
    "key-id-differs",
    "order",
    "The order names the key id {named}. The key in it has the id {keyid}.",
    "Prepare the order again.",
)
KEY_UNKNOWN = RefusalCode(
    "key-unknown",
    "order",
    "The principal has no key {keyid}.",
    "Name one of the principal's keys: appliance key list.",
)
KEY_REVOKED = RefusalCode(
    "key-revoked",
    "state",
    "The key {id} is revoked from entry {entry} on.",
    "Name an earlier entry if the key was not valid before.",
)
SINCE_OUT_OF_RANGE = RefusalCode(
    "revocation-start-out-of-range",
    "order",
    "The key can be revoked from an entry between {first} and {last} on. The order names {since}.",
    "Name an entry after the one that enrolled the key.",
)
TOO_MANY_ROTATIONS = RefusalCode(
    "too-many-rotations",
    "rule",
    "{id} has rotated to {limit} keys in the last day.",
    "Rotate again later. If the key is stolen, have two administrators replace it.",
)
RECOVERY_KEY_STAYS = RefusalCode(
    "recovery-key-stays",
    "rule",
    "{id} is a recovery key. It signs recoveries, and no order about keys.",
    "Have two administrators replace the key, or one administrator revoke it.",
)
OVERLAP_TOO_LONG = RefusalCode(
    "key-overlap-too-long",
    "policy",
    "Policy lets the old keys be valid until {latest}. The order says {until}.",
    "Give an end of {latest} at the latest.",
)


class ProvedKey(Value):
    """A person's key in an order about several, with the proof that somebody holds it."""

    principal: Identifier
    key: Base64 = Field(description="SubjectPublicKeyInfo, DER")
    keyid: Digest
    possession: Digest = Field(description="PAE digest of the statement by which the key proves possession")


class NewKey(Order):
    """An order to enrol a person's key, with a proof of possession."""

    principal: Identifier = derived()
    key: Base64 = derived(description="SubjectPublicKeyInfo, DER")
    keyid: Digest = derived()
    possession: Digest = entered(
        "choose the proof's file, or paste its whole text",
        label="proof",
        kind="document",
        description="PAE digest of the statement by which the new key proves possession",
    )

    def subjects(self) -> Subjects:
        return ((f"principal:{self.principal}", self.keyid),)


def complete_key(given: OrderInput, lookup: Lookup) -> Completed:
    """Return the fields that describe a new key, from the proof of possession that is sent beside the order."""
    envelope = parse_envelope(given.documents.get("possession", b""))
    proof = parse_credential(Possession, envelope.payload)
    return describe_proof(proof, envelope.pae_digest)


def describe_proof(proof: Possession, digest: str) -> dict[str, ProvenValue[Any]]:
    """Return the fields of an order that a proof of possession determines. `digest` identifies the proof."""
    found = {"principal": proof.signer, "key": proof.key, "keyid": proof.keyid, "possession": digest}
    return {name: ProvenValue(value) for name, value in found.items()}


class ReplaceKey(NewKey):
    """An administrators' order to replace a person's lost key. The old keys end at once."""

    action = "replace-key"


class RotateKey(NewKey):
    """A person's order to rotate to a new key. The old keys stay valid until a time."""

    action = "rotate-key"
    old_until: Time = entered("a day, or 7d")


class RevokeKey(Order):
    """An order to revoke a key. With `since`, what it signed in that entry or later is invalid."""

    action = "revoke-key"
    principal: Identifier
    keyid: Digest
    since: int | None = entered(
        "if somebody else may have signed with it: the number of the first entry that they may have signed",
        label="invalid from entry",
        ge=0,
    )

    def subjects(self) -> Subjects:
        return ((f"principal:{self.principal}", self.keyid),)


class KeyEnrolled(Countersigned):
    """The event of a new key.

    `order` is the person's own `rotate-key`, or countersigns the `replace-key` in `countersigned`.
    """

    type = "key.enrolled"
    documents = ("order", "possession")


class KeyRevoked(Ordered):
    """The event of the revocation of a key."""

    type = "key.revoked"


def check_possession(case: Case, order: NewKey | ProvedKey, data: bytes) -> None:
    """Check that the new key signed, for this log and this name, the proof that the order binds.

    Raises: BadInput if the proof and the order differ; Tampered if the signature does not hold.
    """
    envelope = parse_envelope(data)
    possession = parse_credential(Possession, envelope.payload)
    found = (possession.origin, possession.signer, possession.key, possession.keyid, envelope.pae_digest)
    expected = (case.state.site.origin, order.principal, order.key, order.keyid, order.possession)
    if found != expected:
        raise BadInput(f"proof of possession of {order.principal}: expected {expected}, got {found}")
    if (keyid := envelope.signature.keyid) != order.keyid:
        what = f"proof of possession of {order.principal}"
        raise BadInput(f"{what}: expected a signature by {order.keyid}, got one by {keyid}")
    verify_envelope(envelope, base64.b64decode(order.key))


POSSESSION = Attachment("possession", check_possession)
"""The attachment of an order that enrols a key: the key's proof of possession."""


def check_new_key(state: State, order: NewKey | ProvedKey | Possession) -> Reasons:
    """Return the refusal reasons of a key that is in the log already, is malformed or has another key id.

    The reasons do not name the key's owner, since a unit may not read about other units.
    """
    reasons = []
    if order.keyid in state.keys or any(row.keyid == order.keyid for row in state.applications.values()):
        reasons.append(KEY_TAKEN(f"key:{order.keyid}"))
    try:
        keyid = keyid_of(base64.b64decode(order.key))
    except ApplianceError as error:
        return [*reasons, KEY_MALFORMED(detail=Rejected(error.message))]
    if keyid != order.keyid:
        reasons.append(KEY_ID_DIFFERS(named=Rejected(order.keyid), keyid=Rejected(keyid)))
    return reasons


def authorise_replace_key(state: State, order: ReplaceKey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a replacement."""
    return check_new_key(state, order) + require_enrolled(state, order.principal)


def authorise_rotate_key(state: State, order: RotateKey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a rotation."""
    return [
        *_refuse_recovery_key(signer),
        *check_new_key(state, order),
        *check_overlap(state, order.old_until, now),
        *check_rotations(state, order.principal, now),
    ]


def authorise_revoke_key(state: State, order: RevokeKey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the revocation of a key."""
    key = state.keys.get(order.keyid)
    if key is None or key.principal != order.principal:
        return [KEY_UNKNOWN(keyid=Rejected(order.keyid))]
    reasons = _refuse_recovery_key(signer)
    start = key.distrusted
    # A second revocation is allowed if it distrusts more: the person who stole the key may have rotated it and then
    # revoked it.
    if (
        start is not None
        and (order.since is None or order.since >= start)
        and not list_keys_rotated_from(state, key.keyid, start)
    ):
        reasons.append(KEY_REVOKED(f"key:{order.keyid}", entry=start))
    if order.since is not None and not key.enrolled < order.since <= state.size:
        reasons.append(SINCE_OUT_OF_RANGE(first=key.enrolled + 1, last=state.size, since=order.since))
    return reasons


def _refuse_recovery_key(signer: Principal) -> Reasons:
    """Return the refusal reason of a recovery key that signs about itself.

    Otherwise a person who stole it could revoke it, or replace it by another key, before its owners find out.
    """
    return [RECOVERY_KEY_STAYS(f"principal:{signer.name}")] if signer.has("recovery") else []


def check_rotations(state: State, name: str, now: Time) -> Reasons:
    """Return the refusal reason of one more rotation if the person has rotated too often in the last day."""
    since = add_seconds(now, -ROTATION_PERIOD_S)
    keys = [key for key in state.keys.values() if key.principal == name and key.rotated_from is not None]
    if sum(since < key.enrolled_at <= now for key in keys) < MOST_ROTATIONS:
        return []
    return [TOO_MANY_ROTATIONS(f"principal:{name}", limit=MOST_ROTATIONS)]


def check_overlap(state: State, until: Time, now: Time) -> Reasons:
    """Return the refusal reason of an end of the old keys that is later than policy allows."""
    limit = add_seconds(now, state.parameters.key_overlap_s)
    return [OVERLAP_TOO_LONG(latest=limit, until=until)] if until > limit else []


def new_key(case: Case, name: str, spki: str, keyid: str) -> Key:
    """Return the row of a key that the case's entry enrols."""
    entry = case.entry
    return Key(keyid=keyid, spki=spki, principal=name, enrolled=entry.index, enrolled_at=entry.time)


def apply_key_enrolment(case: Case) -> Changes:
    """Apply a new key. The old keys end at once, or at the time that a rotation names. A rotation ends no passkeys."""
    changes: Changes = []
    order = case.order(NewKey)
    until = order.old_until if isinstance(order, RotateKey) else None
    principal = _principal(case, order.principal)
    for key in case.state.keys.values():
        if key.principal != principal.name or (until is not None and key.passkey is not None):
            continue
        if key.is_valid(case.entry.time):
            # A rotation does not prolong a key that an earlier one ends.
            ends = {"revoked": case.entry.index} if until is None else {"until": min(until, key.until or until)}
            changes.append((case.state.keys, key.keyid, key.model_copy(update=ends)))
    rotated_from = case.accepted.keyid if isinstance(order, RotateKey) else None
    enrolled = new_key(case, order.principal, order.key, order.keyid).model_copy(update={"rotated_from": rotated_from})
    changes.append((case.state.keys, order.keyid, enrolled))
    return [*changes, (case.state.principals, principal.name, principal.model_copy(update={"keyid": order.keyid}))]


def _principal(case: Case, name: str) -> Principal:
    principal = case.state.principals.get(name)
    if principal is None:
        raise Denied(f"entry {case.entry.index}: principal: expected a valid one, got {name}")
    return principal


def apply_key_revocation(case: Case) -> Changes:
    """Apply the revocation of a key. Its earlier signatures stay valid, except those that the order distrusts."""
    order, index = case.order(RevokeKey), case.entry.index
    key = case.state.keys.get(order.keyid)
    if key is None:
        raise Denied(f"entry {index}: key: expected an enrolled one, got {order.keyid}")
    since = index if order.since is None else order.since
    distrusted = since if key.distrusted is None else min(since, key.distrusted)
    # The signing key is spared: otherwise an owner who rotated, and then revokes the old key, would be locked out.
    also_ended = list_keys_rotated_from(case.state, key.keyid, distrusted, spared=case.accepted.keyid)
    case.require(
        bool(also_ended) or distrusted != key.distrusted, "key", "one that counts", f"{key.keyid}, which does not"
    )
    ends = {key.keyid: distrusted} | {later.keyid: later.enrolled for later in also_ended}
    return [(case.state.keys, other.keyid, _revoke(other, index, ends[other.keyid])) for other in (key, *also_ended)]


def _revoke(key: Key, index: int, distrusted: int) -> Key:
    """Return the key as revoked by this entry, unless an earlier one did, and distrusted from a given entry on."""
    revoked = index if key.revoked is None else key.revoked
    return key.model_copy(update={"revoked": revoked, "distrusted": distrusted})


ACTIONS = (
    Action(
        ReplaceKey,
        title="Replace a key",
        complete=complete_key,
        authorise=authorise_replace_key,
        signers=("administrator",),
        meaning="From now on the person signs with this key; older ones end at once. Compare its short code first.",
        event=KeyEnrolled,
        apply=apply_key_enrolment,
        two_administrators=True,
        attachment=POSSESSION,
        facts=ActionFacts(PrincipalEntity, "principal"),
        example_values={"signer": "anna", **NEW_KEY},
    ),
    Action(
        RotateKey,
        title="Rotate your key",
        complete=complete_key,
        authorise=authorise_rotate_key,
        signers=("the key's owner",),
        meaning="From now on you sign with this key; your older keys are valid until the date, but passkeys stay.",
        event=KeyEnrolled,
        apply=apply_key_enrolment,
        attachment=POSSESSION,
        facts=ActionFacts(PrincipalEntity, "principal"),
        example_values={"signer": "rita", **NEW_KEY},
    ),
    Action(
        RevokeKey,
        title="Revoke a key",
        authorise=authorise_revoke_key,
        signers=("the key's owner", "administrator"),
        meaning="The key signs nothing more. With a first entry, what it signed in that entry or later is invalid.",
        event=KeyRevoked,
        apply=apply_key_revocation,
        recheck_slots=True,
        facts=ActionFacts(PrincipalEntity, "principal"),
        example_values={"signer": "anna", "keyid": example_digest("key of rita")},
    ),
)
