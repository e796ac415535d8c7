"""C2SP log checkpoints (c2sp.org/tlog-checkpoint) and the cosignatures of witnesses (c2sp.org/tlog-cosignature).

A checkpoint is a signed note with the origin, size and root of the log. This module accepts no extension lines, and the
name of the log's key must be the origin. By a cosignature a witness states when it saw the log grow to a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import MAX_DECIMAL, as_tampered, encode_base64, parse_base64, parse_decimal, show
from appliance.formats.core.merkle import EMPTY_ROOT, HASH_BYTES
from appliance.formats.log.note import (
    Note,
    NoteSignature,
    check_key_id,
    check_key_name,
    hash_key,
    join_vkey,
    parse_note,
    parse_vkey,
    sign_note,
    signatures_by,
    split_vkey,
    verify_note,
)
from appliance.formats.signatures.keys import Signer, ed25519_raw, ed25519_spki, verify_signature

MAX_SIZE = MAX_DECIMAL


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The origin, size and root of a log; `root` is the 32-byte RFC 6962 root over its first `size` entries."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        check_key_name(self.origin)
        if not 0 <= self.size <= MAX_SIZE:
            raise BadInput(f"log checkpoint, size: expected 0 to {MAX_SIZE}, got {self.size}")
        if len(self.root) != HASH_BYTES:
            raise BadInput(f"log checkpoint, root: expected {HASH_BYTES} bytes, got {len(self.root)}")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise BadInput(f"log checkpoint, root of size 0: expected {EMPTY_ROOT.hex()}, got {self.root.hex()}")


def encode_checkpoint(checkpoint: Checkpoint) -> str:
    """Encode the checkpoint as the text of a note."""
    return f"{checkpoint.origin}\n{checkpoint.size}\n{encode_base64(checkpoint.root)}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Parse the text of a note as a checkpoint."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] != "":
        raise BadInput(f"log checkpoint: expected 3 lines, got {show(text)}")
    size = parse_decimal(lines[1], "log checkpoint, size")
    return Checkpoint(lines[0], size, parse_base64(lines[2], "log checkpoint, root"))


def claimed_size(data: bytes) -> int:
    """Return the size that a note's checkpoint claims, without verifying signatures."""
    return parse_checkpoint(parse_note(data).text).size


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer, *others: Signer) -> bytes:
    """Sign the checkpoint with each signer and return the bytes of the note; the origin is the name of every key."""
    return sign_note(encode_checkpoint(checkpoint), checkpoint.origin, signer, *others)


def open_checkpoint(data: bytes, *vkeys: str) -> Checkpoint:
    """Verify the note's signatures by all of these keys of a log and return its checkpoint.

    Raises:
        Tampered: the bytes are not a checkpoint, a signature is invalid or missing, or the keys have another name than
            the origin.
        BadInput: one of `vkeys` is malformed, or there is none.
    """
    names = {parse_vkey(vkey).name for vkey in vkeys}
    if len(names) != 1:
        raise BadInput(f"log checkpoint, keys: expected at least one, all of one name, got {show(sorted(names))}")
    with as_tampered():
        note = parse_note(data)
        checkpoint = parse_checkpoint(note.text)
    for vkey in vkeys:
        verify_note(note, vkey)
    if names != {checkpoint.origin}:
        raise Tampered(f"log checkpoint, origin: expected {show(*names)}, got {show(checkpoint.origin)}")
    return checkpoint


_TYPE = b"\x04"
_TIME_BYTES, _SIGNATURE_BYTES = 8, 64


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """A witness's Ed25519 key and the name under which it cosigns."""

    name: str
    spki: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        ed25519_raw(self.spki)

    @property
    def key_id(self) -> bytes:
        """Return the 4-byte key id."""
        return hash_key(self.name, self._typed)

    @property
    def vkey(self) -> str:
        """Return the vkey `name+hex(key id)+base64(04 ‖ public key)`."""
        return join_vkey(self.name, self.key_id, self._typed)

    @property
    def _typed(self) -> bytes:
        return _TYPE + ed25519_raw(self.spki)


def witness_vkey_of(name: str, key: Signer | bytes) -> str:
    """Return the vkey `name+hex(key id)+base64(04 ‖ public key)` of a signer or an SPKI."""
    return WitnessKey(name, key if isinstance(key, bytes) else key.spki).vkey


def parse_witness_vkey(text: str) -> WitnessKey:
    """Parse a witness's vkey and check its key id.

    Raises:
        BadInput: the key id does not match, or the vkey is of another type, such as a log's.
    """
    name, key_id, typed = split_vkey(text)
    if typed[:1] != _TYPE or len(typed) != 33:
        raise BadInput(f"witness vkey, type: expected 04 and 32 bytes, got {show(typed.hex())}")
    key = WitnessKey(name, ed25519_spki(typed[1:]))
    check_key_id(key.key_id, key_id)
    return key


def cosign(note: Note, name: str, signer: Signer, time_s: int) -> NoteSignature:
    """Cosign a log checkpoint at `time_s`, in seconds since 1970, and return the line of the signature.

    The line states that the witness saw no larger checkpoint of this log and that all earlier ones were consistent. The
    caller must have checked both.
    """
    parse_checkpoint(note.text)
    key = WitnessKey(name, signer.spki)
    if not 1 <= time_s <= MAX_DECIMAL:
        raise BadInput(f"cosignature, time: expected 1 to {MAX_DECIMAL} seconds, got {time_s}")
    sig = signer.sign(_message(note.text, time_s))
    return NoteSignature(name, key.key_id, time_s.to_bytes(_TIME_BYTES, "big") + sig)


def verify_cosignature(note: Note, vkey: str) -> int:
    """Verify all lines of this witness and return the latest time at which it cosigned, in seconds since 1970.

    The time is a claim of the witness; the caller must compare it with a clock.

    Raises:
        Tampered: the witness has no line, or one is invalid.
    """
    key = parse_witness_vkey(vkey)
    return max(_verify(note.text, key, line.sig) for line in signatures_by(note, key.name, key.key_id))


def _verify(text: str, key: WitnessKey, blob: bytes) -> int:
    if len(blob) != _TIME_BYTES + _SIGNATURE_BYTES:
        expected = _TIME_BYTES + _SIGNATURE_BYTES
        raise Tampered(f"cosignature of {show(key.name)}: expected {expected} bytes, got {len(blob)}")
    time_s = int.from_bytes(blob[:_TIME_BYTES], "big")
    if not 1 <= time_s <= MAX_DECIMAL:
        raise Tampered(f"cosignature of {show(key.name)}, time: expected 1 to {MAX_DECIMAL}, got {time_s}")
    verify_signature(key.spki, _message(text, time_s), blob[_TIME_BYTES:])
    return time_s


def _message(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()
