"""The rules of keeping: people's keys, the log's key, texts and the holds on them, and what witnesses have seen."""

from __future__ import annotations

from datetime import UTC, datetime

from appliance.domain.case import Case, Puts
from appliance.domain.events import CheckpointCosigned
from appliance.domain.governance import check_attachments, endorsed, new_key
from appliance.domain.names import Time, add_seconds
from appliance.domain.orders import (
    Erase,
    LiftHold,
    NewKey,
    PlaceHold,
    ReplaceKey,
    RevokeKey,
    RevokeTokens,
    RotateKey,
    RotateLogKey,
)
from appliance.domain.records import Hold, Key, LogKey, Principal, RevokedToken, Witness, token_key
from appliance.domain.signatures import heirs
from appliance.domain.state import State
from appliance.errors import Denied
from appliance.formats.checkpoint import parse_checkpoint
from appliance.formats.cosignature import parse_witness_vkey, verify_cosignature
from appliance.formats.note import parse_note, verify_note
from appliance.formats.timestamp import encode_time, parse_time


def key_enrolled(case: Case) -> Puts:
    """A new key for a person: the old ones end at once, or stand for a while where the person rotates."""
    order: NewKey
    if isinstance(case.accepted.order, RotateKey):
        order = rotation = case.allowed(RotateKey)
        case.require("endorsed" not in case.documents, "endorsed", "no document", "one")
        puts: Puts = []
        until: Time | None = rotation.old_until
    else:
        first, puts = endorsed(case)
        order, until = case.allowed(ReplaceKey, first), None
    check_attachments(case, order)
    principal = _principal(case, order.principal)
    for key in case.state.keys.values():
        if key.principal == principal.name and key.stands(case.entry.time):
            # One that an earlier rotation ends is not prolonged by the next.
            ends = {"revoked": case.entry.index} if until is None else {"until": min(until, key.until or until)}
            puts.append((case.state.keys, key.keyid, key.model_copy(update=ends)))
    rotated_from = case.accepted.keyid if isinstance(order, RotateKey) else None
    enrolled = new_key(case, order.principal, order.key, order.keyid).model_copy(update={"rotated_from": rotated_from})
    puts.append((case.state.keys, order.keyid, enrolled))
    return [*puts, (case.state.principals, principal.name, principal.model_copy(update={"keyid": order.keyid}))]


def _principal(case: Case, name: str) -> Principal:
    principal = case.state.principals.get(name)
    if principal is None:
        raise Denied(f"entry {case.entry.index}: principal: expected a standing one, got {name}")
    return principal


def key_revoked(case: Case) -> Puts:
    """What the key signed before stands, but for what the order takes back."""
    order, index = case.allowed(RevokeKey), case.entry.index
    key = case.state.keys.get(order.keyid)
    if key is None:
        raise Denied(f"entry {index}: key: expected an enrolled one, got {order.keyid}")
    since = index if order.since is None else order.since
    distrusted = since if key.distrusted is None else min(since, key.distrusted)
    # Else who rotated first, and then revokes the old key, would lock himself out.
    fallen = heirs(case.state, key.keyid, distrusted, spared=case.accepted.keyid)
    case.require(bool(fallen) or distrusted != key.distrusted, "key", "one that counts", f"{key.keyid}, which does not")
    ends = {key.keyid: distrusted} | {heir.keyid: heir.enrolled for heir in fallen}
    return [(case.state.keys, one.keyid, _ended(one, index, ends[one.keyid])) for one in (key, *fallen)]


def _ended(key: Key, index: int, distrusted: int) -> Key:
    """Revoked by this entry, unless by an earlier one; what it signed from the entry `distrusted` on does not count."""
    revoked = index if key.revoked is None else key.revoked
    return key.model_copy(update={"revoked": revoked, "distrusted": distrusted})


def log_key_rotated(case: Case) -> Puts:
    first, puts = endorsed(case)
    order, site = case.allowed(RotateLogKey, first), case.state.site
    old = tuple(
        key if key.until is not None else key.model_copy(update={"until": order.old_until}) for key in site.log_keys
    )
    keys = (*old, LogKey(vkey=order.log_key, since=case.entry.index))
    return [*puts, (case.state.sites, "site", site.model_copy(update={"log_keys": keys}))]


def text_erased(case: Case) -> Puts:
    first, puts = endorsed(case)
    order = case.allowed(Erase, first)
    text = case.state.texts.get(order.commitment)
    if text is None:
        raise Denied(f"entry {case.entry.index}: text: expected one that an entry binds, got {order.commitment}")
    return [*puts, (case.state.texts, order.commitment, text._replace(erased=case.entry.index))]


def hold_placed(case: Case) -> Puts:
    order = case.allowed(PlaceHold)
    hold = Hold(subject=order.subject, order=case.accepted.digest, signer=order.signer, index=case.entry.index)
    return [(case.state.holds, order.subject, hold)]


def hold_lifted(case: Case) -> Puts:
    first, puts = endorsed(case)
    return [*puts, (case.state.holds, case.allowed(LiftHold, first).subject, None)]


def checkpoint_cosigned(case: Case) -> Puts:
    """A witness of the policy in force has signed a checkpoint of this log, which the log's own key signed too.

    That the log begins with what the checkpoint says is not the fold's to check, which knows no tree: whoever holds the
    tree holds the proof against it.
    """
    body, site = case.of(CheckpointCosigned), case.state.site
    vkeys = {parse_witness_vkey(vkey).name: vkey for vkey in site.parameters.witnesses}
    case.require(body.witness in vkeys, "witness", f"one of {sorted(vkeys)}", body.witness)
    note = parse_note(case.documents["note"])
    time_s = verify_cosignature(note, vkeys[body.witness])
    for_log = {line.key_id for line in note.signatures if line.name == site.origin}
    signed = [key.vkey for key in site.log_keys if bytes.fromhex(key.vkey.split("+")[1]) in for_log]
    case.require(bool(signed), "note", f"a signature by a key of {site.origin}", "none")
    for vkey in signed:
        verify_note(note, vkey)
    checkpoint = parse_checkpoint(note.text)
    case.require(checkpoint.origin == site.origin, "note, origin", site.origin, checkpoint.origin)
    case.require(checkpoint.size == body.size, "size", checkpoint.size, body.size)
    case.require(body.size <= case.entry.index, "size", f"at most {case.entry.index}", body.size)
    time = cosigned_at(case.state, time_s, case.entry.time)
    case.require(body.time == time, "time", time, body.time)
    before = case.state.witnesses.get(body.witness)
    case.require(
        before is None or (before.size, before.time) < (body.size, body.time),
        "witness", "a larger log or a later time than before", body.size,
    )  # fmt: skip
    seen = Witness(name=body.witness, vkey=vkeys[body.witness], size=body.size, time=body.time, index=case.entry.index)
    return [(case.state.witnesses, body.witness, seen)]


def cosigned_at(state: State, time_s: int, now: Time) -> Time:
    """A witness's own time; Denied for one that is still to come, which would count as fresh until then."""
    latest = add_seconds(now, state.parameters.clock_skew_s)
    if time_s > parse_time(latest).timestamp():
        raise Denied(f"cosignature, time: expected one until {latest}, got {time_s} seconds since 1970")
    return encode_time(datetime.fromtimestamp(time_s, UTC))


def tokens_revoked(case: Case) -> Puts:
    order, state = case.allowed(RevokeTokens), case.state
    if order.token is not None:
        row = RevokedToken(digest=order.token, unit=order.unit, index=case.entry.index)
        return [(state.tokens, token_key(order.unit, order.token), row)]
    unit = state.principals.get(order.unit)
    if unit is None:
        raise Denied(f"entry {case.entry.index}: unit: expected an enrolled one, got {order.unit}")
    return [(state.principals, unit.name, unit.model_copy(update={"tokens_since": order.issued_before}))]


RULES = {
    "tokens.revoked": tokens_revoked,
    "key.enrolled": key_enrolled,
    "key.revoked": key_revoked,
    "log-key.rotated": log_key_rotated,
    "text.erased": text_erased,
    "hold.placed": hold_placed,
    "hold.lifted": hold_lifted,
    "checkpoint.cosigned": checkpoint_cosigned,
}
