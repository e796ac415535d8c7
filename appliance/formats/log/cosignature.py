"""C2SP cosignatures (c2sp.org/tlog-cosignature): a witness's statement that it saw a log grow to a checkpoint, and
when.

Type 0x04: an Ed25519 signature over `cosignature/v1`, the time and the note's text. A witness's vkey has its own
parser, so that a log's key is never taken for a witness's. Type 0x06 (ML-DSA-44) is kept and not checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import MAX_DECIMAL, show
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.note import (
    Note,
    NoteSignature,
    check_key_id,
    check_key_name,
    hash_key,
    join_vkey,
    signatures_by,
    split_vkey,
)
from appliance.formats.signatures.keys import Signer, ed25519_raw, ed25519_spki, verify_signature

_TYPE = b"\x04"
_TIME_BYTES, _SIGNATURE_BYTES = 8, 64


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """A witness's Ed25519 key with the name under which it cosigns."""

    name: str
    spki: bytes

    def __post_init__(self) -> None:
        check_key_name(self.name)
        ed25519_raw(self.spki)

    @property
    def key_id(self) -> bytes:
        return hash_key(self.name, self._typed)

    @property
    def vkey(self) -> str:
        return join_vkey(self.name, self.key_id, self._typed)

    @property
    def _typed(self) -> bytes:
        return _TYPE + ed25519_raw(self.spki)


def witness_vkey_of(name: str, key: Signer | bytes) -> str:
    """`name+hex(key id)+base64(04 ‖ public key)`, of a signer or of an SPKI."""
    return WitnessKey(name, key if isinstance(key, bytes) else key.spki).vkey


def parse_witness_vkey(text: str) -> WitnessKey:
    """The key id is recomputed: a vkey whose parts do not belong together is refused, and so is one of a log."""
    name, key_id, typed = split_vkey(text)
    if typed[:1] != _TYPE or len(typed) != 33:
        raise BadInput(f"witness vkey, type: expected 04 and 32 bytes, got {show(typed.hex())}")
    key = WitnessKey(name, ed25519_spki(typed[1:]))
    check_key_id(key.key_id, key_id)
    return key


def cosign(note: Note, name: str, signer: Signer, time_s: int) -> NoteSignature:
    """The witness's line for a log checkpoint, at `time_s` seconds since 1970.

    It states that the witness saw no larger checkpoint of this log, and that all earlier ones were consistent. The
    caller must have checked both.
    """
    parse_checkpoint(note.text)
    key = WitnessKey(name, signer.spki)
    if not 1 <= time_s <= MAX_DECIMAL:
        raise BadInput(f"cosignature, time: expected 1 to {MAX_DECIMAL} seconds, got {time_s}")
    sig = signer.sign(_message(note.text, time_s))
    return NoteSignature(name, key.key_id, time_s.to_bytes(_TIME_BYTES, "big") + sig)


def verify_cosignature(note: Note, vkey: str) -> int:
    """When the witness cosigned, in seconds since 1970: there is at least one line by it, and every such line is valid.

    The time is the witness's claim: the caller must compare it with a clock.
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
