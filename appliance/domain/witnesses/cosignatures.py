"""Cosignatures: what witnesses have seen of the log, and until when that counts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import Base64, Time, add_seconds
from appliance.domain.core.records.site import Witness
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule
from appliance.errors import Denied
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.cosignature import parse_witness_vkey, verify_cosignature
from appliance.formats.log.note import parse_note, verify_note


class CheckpointCosigned(Event):
    """A witness saw the log grow to `size`; `note` is the checkpoint with its line, `proof` (RFC 6962, base64) that the
    log up to this entry begins with what it saw."""

    type = "checkpoint.cosigned"
    documents = ("note",)
    witness: str = Field(max_length=200)
    size: int = Field(ge=1)
    time: Time
    proof: tuple[Base64, ...] = Field(max_length=63)

    def about(self) -> tuple[str, ...]:
        return (f"witness:{self.witness}",)


def witnessed_until(state: State) -> list[Time]:
    """Until when enough cosignatures count, without new ones; nothing where policy asks for none, or too few witnesses
    have cosigned."""
    rules = state.parameters
    times = [w.time for w in state.witnesses.values() if w.vkey in rules.witnesses and not _lapsed(state, w, "")]
    return cosigned_until(times, rules.witness_quorum, rules.witness_lifetime_s)


def cosigned_until(times: Iterable[Time], quorum: int, lifetime_s: int) -> list[Time]:
    """Until when so many of the newest of these cosignatures count; nothing where there are fewer or none is needed."""
    needed = sorted(times, reverse=True)[quorum - 1 : quorum] if quorum else []
    return [add_seconds(time, lifetime_s) for time in needed]


def unwitnessed(state: State, now: Time) -> list[str]:
    """Why there are too few current cosignatures, where policy asks for witnesses."""
    rules = state.parameters
    if not rules.witness_quorum:
        return []
    oldest = add_seconds(now, -rules.witness_lifetime_s)
    seen = [w for w in state.witnesses.values() if w.vkey in rules.witnesses and not _lapsed(state, w, now)]
    if len(seen) >= rules.witness_quorum:
        return []
    return [f"witnesses: expected {rules.witness_quorum} cosignatures since {oldest}, got {len(seen)}"]


def _lapsed(state: State, witness: Witness, now: Time) -> bool:
    """Whether the cosignature is too old now, or was when the clock was set back."""
    return add_seconds(witness.time, state.parameters.witness_lifetime_s) < state.site.time_for(witness.index, now)


def checkpoint_cosigned(case: Case) -> Changes:
    """A witness of the policy in force has signed a checkpoint of this log, which the log's own key signed too.

    That the log begins with what the checkpoint says is not the fold's to check, which knows no tree: a holder of the
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
    if before is not None:
        # Otherwise an old checkpoint, cosigned again and again, would count, and the log behind it could be cut off.
        case.require(body.size > before.index, "size", f"more than {before.index}, its cosignature before", body.size)
        case.require(body.time >= before.time, "time", f"at least {before.time}", body.time)
    seen = Witness(name=body.witness, vkey=vkeys[body.witness], size=body.size, time=body.time, index=case.entry.index)
    return [(case.state.witnesses, body.witness, seen)]


def cosigned_at(state: State, time_s: int, now: Time) -> Time:
    """A witness's own time; Denied for one that is still to come, which would count as fresh until then."""
    latest = add_seconds(now, state.parameters.clock_skew_s)
    if time_s > parse_time(latest).timestamp():
        raise Denied(f"cosignature, time: expected one until {latest}, got {time_s} seconds since 1970")
    return encode_time(datetime.fromtimestamp(time_s, UTC))


EVENTS = (EventRule(CheckpointCosigned, checkpoint_cosigned),)
