"""Cosignatures: the sizes of the log that witnesses have seen, and the times until which cosignatures are valid."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import Field

from appliance.domain.core.action import EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import Event
from appliance.domain.core.names import Base64, Time, add_seconds
from appliance.domain.core.records.site import WitnessRecord
from appliance.domain.core.state import State
from appliance.errors import Denied, Refusal, RefusalCode
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.checkpoint import parse_checkpoint, parse_witness_vkey, verify_cosignature
from appliance.formats.log.note import parse_note, verify_note

TOO_FEW_COSIGNATURES = RefusalCode(
    "cosignatures-missing",
    "policy",
    "Policy requires {needed} witnesses that have cosigned the log since {oldest}. There are {valid}.",
    "Have the witnesses cosign the log again: appliance witness request.",
)


class CheckpointCosigned(Event):
    """The event of a witness's cosignature of the log at `size`.

    `note` is the checkpoint with the witness's line. `proof` (RFC 6962, base64) proves that the log up to this entry
    begins with the log that the witness saw.
    """

    type = "checkpoint.cosigned"
    documents = ("note",)
    witness: str = Field(max_length=200)
    size: int = Field(ge=1)
    time: Time
    proof: tuple[Base64, ...] = Field(max_length=63)

    def about(self) -> tuple[str, ...]:
        return (f"witness:{self.witness}",)


def witnessed_until(state: State) -> list[Time]:
    """Return the time until which enough cosignatures are valid without new ones, as a list of one.

    The list is empty if policy requires no witnesses, or if too few have cosigned.
    """
    rules = state.parameters
    times = [w.time for w in state.witnesses.values() if w.vkey in rules.witnesses and not _has_lapsed(state, w, "")]
    return cosigned_until(times, rules.witness_quorum, rules.witness_lifetime_s)


def cosigned_until(times: Iterable[Time], quorum: int, lifetime_s: int) -> list[Time]:
    """Return the time until which a quorum of the newest of these cosignatures is valid, as a list of one.

    The list is empty if there are too few, or if the quorum is 0.
    """
    needed = sorted(times, reverse=True)[quorum - 1 : quorum] if quorum else []
    return [add_seconds(time, lifetime_s) for time in needed]


def refuse_unwitnessed_log(state: State, now: Time) -> list[Refusal]:
    """Return the refusal reason if policy requires witnesses and there are too few current cosignatures."""
    rules = state.parameters
    if not rules.witness_quorum:
        return []
    oldest = add_seconds(now, -rules.witness_lifetime_s)
    seen = [w for w in state.witnesses.values() if w.vkey in rules.witnesses and not _has_lapsed(state, w, now)]
    if len(seen) >= rules.witness_quorum:
        return []
    return [TOO_FEW_COSIGNATURES(needed=rules.witness_quorum, oldest=oldest, valid=len(seen))]


def _has_lapsed(state: State, witness: WitnessRecord, now: Time) -> bool:
    """Return True if the cosignature is too old now, or was when the clock was set back."""
    return add_seconds(witness.time, state.parameters.witness_lifetime_s) < state.site.time_for(witness.index, now)


def apply_cosignature(case: Case) -> Changes:
    """Apply a cosignature of a checkpoint of this log by a witness of the valid policy set.

    The keys that the log had at its size must have signed the checkpoint, too. The state has no Merkle tree, so callers
    that have one verify the proof that the log begins with the checkpoint's entries.
    """
    body, site = case.of(CheckpointCosigned), case.state.site
    vkeys = {parse_witness_vkey(vkey).name: vkey for vkey in site.parameters.witnesses}
    case.require(body.witness in vkeys, "witness", f"one of {sorted(vkeys)}", body.witness)
    note = parse_note(case.documents["note"])
    time_s = verify_cosignature(note, vkeys[body.witness])
    for_log = {line.key_id for line in note.signatures if line.name == site.origin}
    signed = [key.vkey for key in site.log_keys if bytes.fromhex(key.vkey.split("+")[1]) in for_log]
    for vkey in {*site.checkpoint_keys(body.size), *signed}:
        verify_note(note, vkey)
    checkpoint = parse_checkpoint(note.text)
    case.require(checkpoint.origin == site.origin, "note, origin", site.origin, checkpoint.origin)
    case.require(checkpoint.size == body.size, "size", checkpoint.size, body.size)
    case.require(body.size <= case.entry.index, "size", f"at most {case.entry.index}", body.size)
    time = cosigned_at(case.state, time_s, case.entry.time)
    case.require(body.time == time, "time", time, body.time)
    before = case.state.witnesses.get(body.witness)
    if before is not None:
        # Otherwise repeated cosignatures of an old checkpoint would be valid, and the log after it could be truncated.
        case.require(body.size > before.index, "size", f"more than {before.index}, its cosignature before", body.size)
        case.require(body.time >= before.time, "time", f"at least {before.time}", body.time)
    seen = WitnessRecord(
        name=body.witness, vkey=vkeys[body.witness], size=body.size, time=body.time, index=case.entry.index
    )
    return [(case.state.witnesses, body.witness, seen)]


def cosigned_at(state: State, time_s: int, now: Time) -> Time:
    """Return a witness's own time of its cosignature.

    Raises: Denied for a time in the future, since the cosignature would be fresh until then.
    """
    latest = add_seconds(now, state.parameters.clock_skew_s)
    if time_s > parse_time(latest).timestamp():
        raise Denied(f"cosignature, time: expected one until {latest}, got {time_s} seconds since 1970")
    return encode_time(datetime.fromtimestamp(time_s, UTC))


EVENTS = (EventRule(CheckpointCosigned, apply_cosignature),)
