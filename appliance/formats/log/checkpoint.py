"""C2SP log checkpoints (c2sp.org/tlog-checkpoint): origin, size and root of the log, as a signed note.

The profile has no extension lines, and the log's key is named as the origin.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import MAX_DECIMAL, encode_base64, parse_base64, parse_decimal, show
from appliance.formats.core.merkle import EMPTY_ROOT, HASH_BYTES
from appliance.formats.log.note import check_key_name, parse_note, parse_vkey, sign_note, verify_note
from appliance.formats.signatures.keys import Signer

MAX_SIZE = MAX_DECIMAL


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`root` is the 32-byte RFC 6962 root over the log's first `size` entries."""

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
    """The note's text."""
    return f"{checkpoint.origin}\n{checkpoint.size}\n{encode_base64(checkpoint.root)}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] != "":
        raise BadInput(f"log checkpoint: expected 3 lines, got {show(text)}")
    size = parse_decimal(lines[1], "log checkpoint, size")
    return Checkpoint(lines[0], size, parse_base64(lines[2], "log checkpoint, root"))


def claimed_size(data: bytes) -> int:
    """The size that a note's checkpoint has; the note's signatures are not checked."""
    return parse_checkpoint(parse_note(data).text).size


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer, *others: Signer) -> bytes:
    """The signed note's bytes, with a line of each signer; every key's name is the origin."""
    return sign_note(encode_checkpoint(checkpoint), checkpoint.origin, signer, *others)


def open_checkpoint(data: bytes, vkey: str) -> Checkpoint:
    """The checkpoint, once its signature holds under the log's key and its origin is that key's name.

    Bytes that are no checkpoint at all are Tampered too; only a wrong `vkey` is BadInput.
    """
    name = parse_vkey(vkey).name
    try:
        note = parse_note(data)
        checkpoint = parse_checkpoint(note.text)
    except BadInput as error:
        raise Tampered(error.message) from None
    verify_note(note, vkey)
    if checkpoint.origin != name:
        raise Tampered(f"log checkpoint, origin: expected {show(name)}, got {show(checkpoint.origin)}")
    return checkpoint
