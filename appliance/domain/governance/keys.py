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

MAX_ROTATIONS = 8
"""Largest number of key rotations of one person within `ROTATION_PERIOD_S`."""
ROTATION_PERIOD_S = 86_400
"""Length in seconds of the period in which a person's rotations are counted."""

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
    """A key in an order about several people, with the digest of the key's proof of possession."""

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


def complete_key(order_input: OrderInput, lookup: Lookup) -> Completed:
    """Return the fields that describe a new key, from the proof of possession that is sent with the order."""
    envelope = parse_envelope(order_input.documents.get("possession", b""))
    proof = parse_credential(Possession, envelope.payload)
    return derive_key_fields(proof, envelope.pae_digest)


def derive_key_fields(proof: Possession, digest: str) -> dict[str, ProvenValue[Any]]:
    """Return the fields of an order that a proof of possession determines. `digest` identifies the proof."""
    fields = {"principal": proof.signer, "key": proof.key, "keyid": proof.keyid, "possession": digest}
    return {name: ProvenValue(value) for name, value in fields.items()}


class ReplaceKey(NewKey):
    """An order of two administrators to replace a person's keys by a new one. The old keys end at once."""

    action = "replace-key"


class RotateKey(NewKey):
    """A person's order to rotate to a new key. The old keys stay valid until a time."""

    action = "rotate-key"
    old_until: Time = entered("a day, or 7d")


class RevokeKey(Order):
    """An order to revoke a key.

    What the key signed in the entry `since` or later is invalid. If `since` is None, its earlier signatures stay valid.
    """

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

    The document `order` is the person's own `rotate-key` order, or the countersignature of a `replace-key` order. The
    latter is in the document `countersigned`.
    """

    type = "key.enrolled"
    documents = ("order", "possession")


class KeyRevoked(Ordered):
    """The event of the revocation of a key."""

    type = "key.revoked"


def check_possession(case: Case, order: NewKey | ProvedKey, data: bytes) -> None:
    """Check that `data` is the proof of possession that the order names, and that the new key signed it.

    The proof must be for this log, this principal and this key.

    Raises: BadInput if the proof and the order differ; Tampered if the signature is invalid.
    """
    envelope = parse_envelope(data)
    possession = parse_credential(Possession, envelope.payload)
    proved = (possession.origin, possession.signer, possession.key, possession.keyid, envelope.pae_digest)
    expected = (case.state.site.origin, order.principal, order.key, order.keyid, order.possession)
    label = f"proof of possession of {order.principal}"
    if proved != expected:
        raise BadInput(f"{label}: expected {expected}, got {proved}")
    if (keyid := envelope.signature.keyid) != order.keyid:
        raise BadInput(f"{label}: expected a signature by {order.keyid}, got one by {keyid}")
    verify_envelope(envelope, base64.b64decode(order.key))


POSSESSION = Attachment("possession", check_possession)
"""The attachment of an order that enrols a key: the key's proof of possession."""


def refuse_new_key(state: State, order: NewKey | ProvedKey | Possession) -> Reasons:
    """Return the refusal reasons of a key that the log contains already, is malformed, or differs from its key id.

    The reasons leave out the key's owner, because a unit must not read about other units.
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
    """Return the refusal reasons of the replacement of a person's keys."""
    return refuse_new_key(state, order) + require_enrolled(state, order.principal)


def authorise_rotate_key(state: State, order: RotateKey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of a rotation."""
    return [
        *_refuse_recovery_key(signer),
        *refuse_new_key(state, order),
        *refuse_overlap(state, order.old_until, now),
        *refuse_rotation(state, order.principal, now),
    ]


def authorise_revoke_key(state: State, order: RevokeKey, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons of the revocation of a key."""
    key = state.keys.get(order.keyid)
    if key is None or key.principal != order.principal:
        return [KEY_UNKNOWN(keyid=Rejected(order.keyid))]
    reasons = _refuse_recovery_key(signer)
    start = key.distrusted
    # A second revocation is allowed if it makes more signatures or keys invalid: a person who stole the key may have
    # rotated to another key and then revoked this one.
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
    """Return the refusal reason if the signer is a recovery key, which cannot sign orders about keys.

    Otherwise a person who stole it could revoke it, or replace it by another key, before its owners notice the theft.
    """
    return [RECOVERY_KEY_STAYS(f"principal:{signer.name}")] if signer.has("recovery") else []


def refuse_rotation(state: State, name: str, now: Time) -> Reasons:
    """Return the refusal reason of one more rotation if the person has rotated too often in the last day."""
    since = add_seconds(now, -ROTATION_PERIOD_S)
    keys = [key for key in state.keys.values() if key.principal == name and key.rotated_from is not None]
    if sum(since < key.enrolled_at <= now for key in keys) < MAX_ROTATIONS:
        return []
    return [TOO_MANY_ROTATIONS(f"principal:{name}", limit=MAX_ROTATIONS)]


def refuse_overlap(state: State, until: Time, now: Time) -> Reasons:
    """Return the refusal reason of an end of the old keys that is later than policy allows."""
    limit = add_seconds(now, state.parameters.key_overlap_s)
    return [OVERLAP_TOO_LONG(latest=limit, until=until)] if until > limit else []


def make_key_row(case: Case, name: str, spki: str, keyid: str) -> Key:
    """Return the state's row of a key that the current entry enrols for the principal `name`.

    `spki` is the public key as SubjectPublicKeyInfo (DER, base64).
    """
    entry = case.entry
    return Key(keyid=keyid, spki=spki, principal=name, enrolled=entry.index, enrolled_at=entry.time)


def apply_key_enrolment(case: Case) -> Changes:
    """Enrol a new key and end the principal's old keys.

    A replacement ends all of them at once. A rotation ends them at its `old_until`, except passkeys, which stay valid.
    """
    changes: Changes = []
    order = case.order(NewKey)
    until = order.old_until if isinstance(order, RotateKey) else None
    principal = _get_principal(case, order.principal)
    for key in case.state.keys.values():
        if key.principal != principal.name or (until is not None and key.passkey is not None):
            continue
        if key.is_valid(case.entry.time):
            # A rotation does not extend the validity of a key that an earlier rotation ends.
            ends = {"revoked": case.entry.index} if until is None else {"until": min(until, key.until or until)}
            changes.append((case.state.keys, key.keyid, key.model_copy(update=ends)))
    rotated_from = case.accepted.keyid if isinstance(order, RotateKey) else None
    enrolled = make_key_row(case, order.principal, order.key, order.keyid).model_copy(
        update={"rotated_from": rotated_from}
    )
    changes.append((case.state.keys, order.keyid, enrolled))
    return [*changes, (case.state.principals, principal.name, principal.model_copy(update={"keyid": order.keyid}))]


def _get_principal(case: Case, name: str) -> Principal:
    principal = case.state.principals.get(name)
    if principal is None:
        raise Denied(f"entry {case.entry.index}: principal: expected a valid one, got {name}")
    return principal


def apply_key_revocation(case: Case) -> Changes:
    """Revoke a key, and the keys that were rotated from it after its first invalid entry.

    The key's earlier signatures stay valid, except those in the order's `since` entry or later.
    """
    order, index = case.order(RevokeKey), case.entry.index
    key = case.state.keys.get(order.keyid)
    if key is None:
        raise Denied(f"entry {index}: key: expected an enrolled one, got {order.keyid}")
    since = index if order.since is None else order.since
    distrusted = since if key.distrusted is None else min(since, key.distrusted)
    # The key that signs the order stays valid, so that an owner can rotate and then revoke the old key.
    also_ended = list_keys_rotated_from(case.state, key.keyid, distrusted, spared=case.accepted.keyid)
    has_effect = bool(also_ended) or distrusted != key.distrusted
    case.require(has_effect, "key", "one that the order changes", f"{key.keyid}, which is revoked already")
    ends = {key.keyid: distrusted} | {later.keyid: later.enrolled for later in also_ended}
    return [(case.state.keys, other.keyid, _revoke(other, index, ends[other.keyid])) for other in (key, *also_ended)]


def _revoke(key: Key, index: int, distrusted: int) -> Key:
    """Return the key as revoked, with invalid signatures from the entry `distrusted` on.

    A key that was revoked before keeps the entry of that revocation; otherwise it becomes `index`.
    """
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
