"""The exchange with witnesses by files, without a network, and the detection of entries that the log has lost.

Processes of one log witness each other in the same way. Somebody who can change the database could remove a revocation
before another process reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from appliance.domain.core.state import State
from appliance.domain.governance.restoration import find_restoration
from appliance.domain.witnesses import CheckpointCosigned, cosigned_at
from appliance.errors import (
    ApplianceError,
    BadInput,
    Conflict,
    NotFound,
    Refusal,
    RefusalCode,
    Rejected,
    Tampered,
)
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.merkle import verify_consistency
from appliance.formats.log.checkpoint import (
    Checkpoint,
    WitnessKey,
    claimed_size,
    open_checkpoint,
    parse_checkpoint,
    parse_witness_vkey,
    verify_cosignature,
)
from appliance.formats.log.note import Note, NoteSignature, encode_note, is_post_quantum, parse_note, parse_vkey
from appliance.formats.log.proof import WitnessRequest, encode_request
from appliance.store.ledger.queue import AppendedEntry
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.core.record import append, append_at_head, require_size

log = logging.getLogger("appliance")

LOG_INCOMPLETE = RefusalCode(
    "log-incomplete",
    "machine",
    "A witness or another process has seen entries that this log does not have: {detail}.",
    "Call an auditor. No adapter is served until the log is restored.",
)

_LOSSES = ("log-truncated", "split-view")
"""Codes of a loss that a note with a valid signature of this log shows."""


def request(context: LedgerContext, witness: str, old: int | None) -> bytes:
    """Return the request to a witness (C2SP tlog-witness) to cosign the current log, from the size that it saw last.

    Raises:
        NotFound: Policy does not name the witness.
        BadInput: `old` is larger than the log.
    """
    state = context.ledger.state
    _find_key(state, witness)
    seen = state.witnesses.get(witness)
    start = old if old is not None else 0 if seen is None else seen.size
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    if start > size:
        raise BadInput(f"witness request, old: expected at most {size}, got {start}")
    proof = context.ledger.consistency_proof(start, size)
    return encode_request(WitnessRequest(start, tuple(proof), checkpoint))


def list_missing_entries(context: LedgerContext) -> list[Refusal]:
    """Return the refusal reasons because of entries that witnesses have seen and the log has lost."""
    return [LOG_INCOMPLETE(detail=Rejected(error.message)) for error in context.missing_from_log]


def accept(context: LedgerContext, data: bytes, source: str) -> AppendedEntry:
    """Keep a witness's cosignature, beside the database and as an entry.

    Raises:
        Tampered: With the code `log-truncated` or `split-view`, if the witness has seen a log that this one does not
            continue. From then on nothing is admitted and all slots are closed.
        BadInput: The note has no line of exactly one valid witness.
        Conflict: A restoration gave the witness's entries up, or other entries kept coming in between.
    """
    # A witness may have seen entries of another process that this one has not read yet. They are not lost.
    context.refresh()
    note = parse_note(data)
    state = context.ledger.state
    key = _find_cosigner(state, note)
    time_s = verify_cosignature(note, key.vkey)
    clean = Note(
        note.text, tuple(line for line in note.signatures if _is_log_signature(state, line) or line.name == key.name)
    )
    _refuse_given_up(state, encode_note(clean), time_s)
    seen = _open_checkpoint(context, encode_note(clean))
    with context.order_lock:  # two calls must not overwrite each other's result
        # A cosignature that shows a loss is kept, whatever its date. One that is refused as an entry is not kept.
        loss = find_loss(context, encode_note(clean))
        time = "" if loss else cosigned_at(state, time_s, context.now(state))
        if _must_keep(context, key.name, seen, time, is_lost=loss is not None):
            context.known_checkpoints.store_cosigned(key.name, encode_note(clean))
        context.missing_from_log[:] = compare(context)
    if context.missing_from_log:
        context.recheck_answers()
        raise context.missing_from_log[0]
    return append_at_head(
        context,
        f"cosignature of {key.name}",
        lambda size: _record(context, key.name, clean, seen.size, time, source, size),
    )


def _refuse_given_up(state: State, note: bytes, time_s: int) -> None:
    """Refuse a cosignature of entries that a restoration gave up. It is not kept, since no loss follows from it."""
    with suppress(Tampered):
        restoration = find_restoration(state.site, note, time_s)
        raise Conflict(
            f"cosigned checkpoint: expected one of this log, got one of entries that entry {restoration.index} gave "
            "up. Write a restoration file: appliance restoration export FILE. The witness accepts it with: "
            "appliance-witness accept-restoration FILE",
            code="given-up",
        )


def _must_keep(context: LedgerContext, witness: str, seen: Checkpoint, time: str, *, is_lost: bool) -> bool:
    """Return True if the cosignature must be kept.

    An older one, handed in again, must not replace a newer one. One that this log does not hold can be replaced only by
    a larger one of the same kind.
    """
    sizes = {}
    for data in context.known_checkpoints.list_notes():
        note = parse_note(data)
        if any(line.name == witness for line in note.signatures):
            sizes[data] = parse_checkpoint(note.text).size
    largest = max(sizes.values(), default=0)
    if any(find_loss(context, data) for data in sizes):
        return is_lost and seen.size > largest
    before = context.ledger.state.witnesses.get(witness)
    is_accepted = before is None or (seen.size > before.index and time >= before.time)
    return is_lost or (is_accepted and seen.size >= largest)


def find_loss(context: LedgerContext, data: bytes) -> Tampered | None:
    """Return the error if this log does not continue a witnessed checkpoint, else None."""
    try:
        _compare_one(context, data)
    except ApplianceError as error:
        return error if isinstance(error, Tampered) else Tampered(error.message)
    return None


def _record(
    context: LedgerContext, witness: str, note: Note, seen: int, time: str, source: str, size: int
) -> AppendedEntry:
    """Append the entry, with the proof that the log of `size` entries continues the checkpoint that the witness saw.

    Raises:
        LogMoved: Another entry was appended first.
    """
    proof = tuple(encode_base64(step) for step in context.ledger.consistency_proof(seen, size))
    body = CheckpointCosigned(witness=witness, size=seen, time=time, proof=proof)
    return append(
        context,
        body,
        source=source,
        documents={"note": encode_note(note)},
        guard=lambda state, _: require_size(state, size),
    )


class HeadExchange:
    """The exchange of the heads of a log's processes, through the folder that all of them share.

    A process that finds a loss admits nothing more and closes its slots, as after a witness's cosignature.
    """

    def __init__(self, context: LedgerContext) -> None:
        self._context = context
        self._kept: bytes | None = None
        """The checkpoint that this process stored last."""
        self._continued: frozenset[bytes] = frozenset()
        """Notes that this log continues. A log that only grows does not have to be compared with them again."""

    def run(self, catch_up: Callable[[], object]) -> None:
        """Store the checkpoint of this process's last commit, and compare this log with the notes of all.

        `catch_up` reads the entries of other processes. It is called after the notes were read, since each note's
        entries were in the database before it was stored.
        """
        context = self._context
        committed = context.ledger.committed
        if committed is not None and committed != self._kept:
            context.known_checkpoints.store_committed(context.processes.name, committed)
            self._kept = committed
        if context.missing_from_log and context.ledger.state.site.restorations:
            # Another process may have recorded the restoration.
            context.missing_from_log[:] = compare(context)
        notes = frozenset(context.known_checkpoints.list_notes())
        if notes <= self._continued:
            return
        catch_up()
        losses = {data: loss for data in notes - self._continued if (loss := find_loss(context, data)) is not None}
        self._continued = notes - losses.keys()
        found = [loss for loss in losses.values() if loss.code in _LOSSES]
        if found and not context.missing_from_log:
            log.critical("ALARM: nothing is admitted any more: %s", found[0].message)
            context.missing_from_log[:] = found
            context.recheck_answers()


def _find_key(state: State, witness: str) -> WitnessKey:
    keys = {key.name: key for key in map(parse_witness_vkey, state.parameters.witnesses)}
    if witness not in keys:
        raise NotFound(f"witness: expected one of {', '.join(keys) or 'none, as policy names none'}, got {witness!r}")
    return keys[witness]


def _find_cosigner(state: State, note: Note) -> WitnessKey:
    """Return the one witness of the valid policy that signed the note."""
    lines = {(line.name, line.key_id) for line in note.signatures}
    keys = [key for key in map(parse_witness_vkey, state.parameters.witnesses) if (key.name, key.key_id) in lines]
    if len(keys) != 1:
        names = ", ".join(line.name for line in note.signatures)
        raise BadInput(f"cosigned checkpoint: expected the line of one witness of the valid policy, got {names}")
    return keys[0]


def _is_log_signature(state: State, line: NoteSignature) -> bool:
    keys = map(parse_vkey, (key.vkey for key in state.site.log_keys))
    return any((line.name, line.key_id) == (key.name, key.key_id) for key in keys)


def compare(context: LedgerContext) -> list[Tampered]:
    """Return an error for each kept checkpoint that this log does not continue: it lost entries, or it forked.

    The notes are read first. Other processes store a note after its entries are in the database.
    """
    notes = context.known_checkpoints.list_notes()
    context.refresh()
    return [found for data in notes if (found := find_loss(context, data)) is not None]


def missing_cosignatures(context: LedgerContext) -> list[Tampered]:
    """Return an error for each valid witness whose last cosignature is in this log but not in the folder beside it.

    The folder may then also lack a later cosignature of a longer log.
    """
    state, notes = context.ledger.state, context.known_checkpoints.list_notes()
    # A witness that has cosigned nothing since a restoration has only notes that were given up.
    restored = max((step.index for step in state.site.restorations), default=0)
    given_up = context.known_checkpoints.list_given_up()
    return [
        Tampered(
            f"witnessed checkpoints, {context.known_checkpoints.folder}: expected a cosignature of {seen.name} over "
            f"{seen.size} entries or more, as in entry {seen.index}, got {f'one over {size}' if size else 'none'}. "
            "Mount or restore the folder; if it is lost for good, copy the state file from the witness's machine to "
            f"{context.known_checkpoints.path(seen.name)}",
            code="witness-missing",
        )
        for seen in state.witnesses.values()
        if seen.vkey in state.parameters.witnesses
        and (size := _find_largest_size([*notes, *(given_up if seen.index < restored else ())], seen.vkey)) < seen.size
    ]


def _find_largest_size(notes: Iterable[bytes], vkey: str) -> int:
    """Return the largest size that the witness has cosigned among the valid notes, or 0."""
    sizes = [0]
    for data in notes:
        with suppress(ApplianceError):
            note = parse_note(data)
            verify_cosignature(note, vkey)
            sizes.append(parse_checkpoint(note.text).size)
    return max(sizes)


def _compare_one(context: LedgerContext, data: bytes) -> None:
    state = context.ledger.state
    seen = _open_checkpoint(context, data)
    if seen.size > state.size:
        names = ", ".join(line.name for line in parse_note(data).signatures if line.name != seen.origin)
        who = f"the witness {names} has seen" if names else "a process of this log has committed"
        raise Tampered(
            f"ledger: expected at least {seen.size} entries, as {who}, got {state.size}: "
            f"entries {state.size} to {seen.size - 1} are lost",
            code="log-truncated",
        )
    with context.ledger.lock:
        size = context.ledger.state.size
        proof = context.ledger.consistency_proof(seen.size, size)
        root = context.ledger.edge.root()
    try:
        verify_consistency(seen.size, size, proof, seen.root, root)
    except Tampered as error:
        message = f"ledger: expected the log that a witness or another process has seen, got a fork: {error.message}"
        raise Tampered(message, code="split-view") from None


def _list_log_keys(context: LedgerContext, size: int) -> list[tuple[str, ...]]:
    """Return the sets of keys that can have signed a checkpoint of this size.

    They are the keys that the log had then, and those with a key that this log was given for a rotation that it may
    have lost. A key that was replaced before does not count: somebody who stole it could claim entries that the log
    never had.
    """
    site = context.ledger.state.site
    known, valid = [key.vkey for key in site.log_keys], site.checkpoint_keys(size)
    made = [vkey for vkey in context.keys.list_log_keys() if vkey not in known]
    others = [(*(key for key in valid if is_post_quantum(key) != is_post_quantum(vkey)), vkey) for vkey in made]
    return [*([valid] if valid else []), *others]


def _open_checkpoint(context: LedgerContext, data: bytes) -> Checkpoint:
    """Return the checkpoint, signed by a key that this log had at its size or was given."""
    try:
        size = claimed_size(data)
    except BadInput as error:
        raise Tampered(f"witnessed checkpoint: {error.message}") from None
    for vkeys in _list_log_keys(context, size):
        with suppress(Tampered):
            return open_checkpoint(data, *vkeys)
    raise Tampered("witnessed checkpoint: expected a signature by the key of this log at its size, got none that holds")
