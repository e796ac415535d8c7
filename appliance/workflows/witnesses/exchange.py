"""Witnesses without a network: files carried to one and back, and what they say of a log that has lost entries."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from appliance.domain.core.state import State
from appliance.domain.witnesses.cosignatures import CheckpointCosigned, cosigned_at
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.fields import encode_base64
from appliance.formats.core.merkle import verify_consistency
from appliance.formats.log.checkpoint import Checkpoint, claimed_size, open_checkpoint, parse_checkpoint
from appliance.formats.log.cosignature import WitnessKey, parse_witness_vkey, verify_cosignature
from appliance.formats.log.note import Note, NoteSignature, encode_note, parse_note, parse_vkey
from appliance.formats.log.witness_request import WitnessRequest, encode_request
from appliance.store.ledger.queue import Appended
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append

_ATTEMPTS = 100


def request(context: Context, witness: str, old: int | None) -> bytes:
    """What the witness is asked to cosign (C2SP tlog-witness): the log as it stands, from the size it saw last."""
    state = context.ledger.state
    _key(state, witness)
    seen = state.witnesses.get(witness)
    start = old if old is not None else 0 if seen is None else seen.size
    checkpoint = context.ledger.checkpoint()
    size = claimed_size(checkpoint)
    if start > size:
        raise BadInput(f"witness request, old: expected at most {size}, got {start}")
    proof = context.ledger.consistency_proof(start, size)
    return encode_request(WitnessRequest(start, tuple(proof), checkpoint))


def accept(context: Context, data: bytes, source: str) -> Appended:
    """Keeps a witness's cosignature, beside the database and as an entry.

    Tampered with the code `behind` or `fork` when the witness has seen a log that this one does not continue: nothing
    is admitted from then on, and what was loaded answers no more.
    """
    note = parse_note(data)
    state = context.ledger.state
    key = _cosigner(state, note)
    time_s = verify_cosignature(note, key.vkey)
    clean = Note(
        note.text, tuple(line for line in note.signatures if _is_log_signature(state, line) or line.name == key.name)
    )
    seen = _open(encode_note(clean), _log_keys(context))
    with context.order_lock:  # what one finds is not overwritten by another who has looked before
        # What shows a loss is kept whatever it is dated; of what is refused as an entry nothing is.
        against = _find_loss(context, encode_note(clean))
        time = "" if against else cosigned_at(state, time_s, context.now(state))
        if _is_news(context, key.name, seen, time, against=against is not None):
            context.witnessed.keep(key.name, encode_note(clean))
        context.missing_from_log = compare(context)
    if context.missing_from_log:
        context.recheck_answers()
        raise context.missing_from_log[0]
    for _ in range(_ATTEMPTS):
        with suppress(_Moved):
            return _record(context, key.name, clean, seen.size, time, source)
    raise Conflict(f"cosignature of {key.name}: expected no other entry in between, got some; try again")


def _is_news(context: Context, witness: str, seen: Checkpoint, time: str, *, against: bool) -> bool:
    """Whether to remember it: an older word, handed in again, must not take the place of a newer one, and nothing but a
    newer one of its kind the place of one that this log does not hold."""
    kept = {}
    for data in context.witnessed.notes():
        note = parse_note(data)
        if any(line.name == witness for line in note.signatures):
            kept[data] = parse_checkpoint(note.text).size
    largest = max(kept.values(), default=0)
    if any(_find_loss(context, data) for data in kept):
        return against and seen.size > largest
    before = context.ledger.state.witnesses.get(witness)
    is_accepted = before is None or (seen.size > before.index and time >= before.time)
    return against or (is_accepted and seen.size >= largest)


def _find_loss(context: Context, data: bytes) -> Tampered | None:
    """What a witnessed checkpoint says that this log does not hold."""
    try:
        _compare_one(context, data)
    except ApplianceError as error:
        return error if isinstance(error, Tampered) else Tampered(error.message)
    return None


def _record(context: Context, witness: str, note: Note, seen: int, time: str, source: str) -> Appended:
    """The entry, with the proof that the log up to it begins with what was seen. _Moved where others came first."""
    size = context.ledger.state.size
    proof = tuple(encode_base64(step) for step in context.ledger.consistency_proof(seen, size))
    body = CheckpointCosigned(witness=witness, size=seen, time=time, proof=proof)
    return append(
        context,
        body,
        source=source,
        documents={"note": encode_note(note)},
        guard=lambda state, _: _check_size(state, size),
    )


class _Moved(Conflict):
    """Others were appended between the proof and its entry."""


def _check_size(state: State, size: int) -> None:
    if state.size != size:
        raise _Moved(f"log: expected size {size}, got {state.size}")


def _key(state: State, witness: str) -> WitnessKey:
    keys = {key.name: key for key in map(parse_witness_vkey, state.parameters.witnesses)}
    if witness not in keys:
        raise NotFound(f"witness: expected one of {', '.join(keys) or 'none, as policy names none'}, got {witness!r}")
    return keys[witness]


def _cosigner(state: State, note: Note) -> WitnessKey:
    """The one witness of the policy in force whose line the note carries."""
    lines = {(line.name, line.key_id) for line in note.signatures}
    keys = [key for key in map(parse_witness_vkey, state.parameters.witnesses) if (key.name, key.key_id) in lines]
    if len(keys) != 1:
        names = ", ".join(line.name for line in note.signatures)
        raise BadInput(f"cosigned checkpoint: expected the line of one witness of the policy in force, got {names}")
    return keys[0]


def _is_log_signature(state: State, line: NoteSignature) -> bool:
    keys = map(parse_vkey, (key.vkey for key in state.site.log_keys))
    return any((line.name, line.key_id) == (key.name, key.key_id) for key in keys)


def compare(context: Context) -> list[Tampered]:
    """What the witnesses have seen and this log does not hold: entries that were lost, or a log that forked."""
    return [found for data in context.witnessed.notes() if (found := _find_loss(context, data)) is not None]


def missing_cosignatures(context: Context) -> list[Tampered]:
    """The words of witnesses in force that this log holds, and that are not kept beside it: what was kept after them,
    of a longer log, would be missing too."""
    state, notes = context.ledger.state, context.witnessed.notes()
    return [
        Tampered(
            f"witnessed checkpoints, {context.witnessed.folder}: expected a cosignature of {seen.name} over "
            f"{seen.size} entries or more, as in entry {seen.index}, got {f'one over {size}' if size else 'none'}. "
            "Mount or restore the folder; if it is lost for good, copy the state file from the witness's machine to "
            f"{context.witnessed.path(seen.name)}",
            code="witness-missing",
        )
        for seen in state.witnesses.values()
        if seen.vkey in state.parameters.witnesses and (size := _largest(notes, seen.vkey)) < seen.size
    ]


def _largest(notes: Iterable[bytes], vkey: str) -> int:
    """The size that the witness's latest word among these is on; 0 where there is none that holds."""
    sizes = [0]
    for data in notes:
        with suppress(ApplianceError):
            note = parse_note(data)
            verify_cosignature(note, vkey)
            sizes.append(parse_checkpoint(note.text).size)
    return max(sizes)


def _compare_one(context: Context, data: bytes) -> None:
    state = context.ledger.state
    seen = _open(data, _log_keys(context))
    if seen.size > state.size:
        names = ", ".join(line.name for line in parse_note(data).signatures if line.name != seen.origin)
        raise Tampered(
            f"ledger: expected at least {seen.size} entries, as the witness {names} has seen, got {state.size}: "
            f"entries {state.size} to {seen.size - 1} are lost",
            code="behind",
        )
    with context.ledger.lock:
        size = context.ledger.state.size
        proof = context.ledger.consistency_proof(seen.size, size)
        root = context.ledger.root
    try:
        verify_consistency(seen.size, size, proof, seen.root, root)
    except Tampered as error:
        message = f"ledger: expected the log that a witness has seen, got a fork of it: {error.message}"
        raise Tampered(message, code="fork") from None


def _log_keys(context: Context) -> list[str]:
    site = context.ledger.state.site
    return [*(key.vkey for key in site.log_keys), *context.keyring.log_signers(site.origin)]


def _open(data: bytes, log_keys: Iterable[str]) -> Checkpoint:
    """The checkpoint, signed by any key that this log has had or was given."""
    for vkey in log_keys:
        with suppress(Tampered):
            return open_checkpoint(data, vkey)
    raise Tampered("witnessed checkpoint: expected a signature by a key of this log, got none that holds")
