"""Proofs that can be verified alone (c2sp.org/tlog-proof): one entry's place in a log, under a checkpoint that others
cosigned.

A file `.tlog-proof`: a header, `extra` where there is some, `index N`, the inclusion proof's hashes, an empty line, and
the log's checkpoint as a signed note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import encode_base64, parse_base64, parse_decimal, show
from appliance.formats.core.merkle import HASH_BYTES, verify_inclusion
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.log_policy import LogPolicy, Witnessed, open_witnessed
from appliance.formats.log.note import parse_note

HEADER = "c2sp.org/tlog-proof@v1"
_MAX_HASHES = 63


@dataclass(frozen=True, slots=True)
class Proof:
    """`hashes` lead from the entry's sibling to the root; `extra` is not signed; nothing here is verified."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def __post_init__(self) -> None:
        if len(self.hashes) > _MAX_HASHES:
            raise BadInput(f"proof, hashes: expected at most {_MAX_HASHES}, got {len(self.hashes)}")
        size = parse_checkpoint(parse_note(self.checkpoint).text).size
        if not 0 <= self.index < size:
            raise BadInput(f"proof, index: expected 0 <= index < the checkpoint's size {size}, got {self.index}")


def encode_proof(proof: Proof) -> bytes:
    extra = "" if proof.extra is None else f"extra {encode_base64(proof.extra)}\n"
    return f"{HEADER}\n{extra}index {proof.index}\n{encode_hashes(proof.hashes)}\n".encode() + proof.checkpoint


def parse_proof(data: bytes) -> Proof:
    lines, checkpoint = split_head(data, "proof")
    if (first := lines.pop(0)) != HEADER:
        raise BadInput(f"proof, line 1: expected {HEADER}, got {show(first)}")
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = parse_base64(lines.pop(0)[6:], "proof, extra")
    if not lines or not lines[0].startswith("index "):
        raise BadInput(f"proof: expected a line with the index, got {show(lines[:1])}")
    index = parse_decimal(lines[0][6:], "proof, index")
    return Proof(index, parse_hashes(lines[1:], "proof"), checkpoint, extra)


def verify_proof(data: bytes, leaf_hash: bytes, policy: LogPolicy) -> Witnessed:
    """The checkpoint of the log that has the entry of this leaf hash, signed and cosigned as the policy asks.

    Bytes that are no proof are Tampered too.
    """
    try:
        proof = parse_proof(data)
    except BadInput as error:
        raise Tampered(error.message) from None
    witnessed = open_witnessed(proof.checkpoint, policy)
    verify_inclusion(leaf_hash, proof.index, witnessed.checkpoint.size, proof.hashes, witnessed.checkpoint.root)
    return witnessed


def split_head(data: bytes, what: str) -> tuple[list[str], bytes]:
    """The lines before the first empty one, at least one line, and the bytes after it."""
    head, empty, rest = data.partition(b"\n\n")
    if not empty:
        raise BadInput(f"{what}: expected lines, an empty line and a checkpoint, got no empty line")
    try:
        return head.decode("ascii").split("\n"), rest
    except UnicodeDecodeError as error:
        place = f"{what}, byte {error.start}"
        raise BadInput(f"{place}: expected ASCII before the checkpoint, got {error.reason}") from None


def encode_hashes(hashes: Sequence[bytes]) -> str:
    """A line each."""
    return "".join(f"{encode_base64(hash_)}\n" for hash_ in hashes)


def parse_hashes(lines: Sequence[str], what: str) -> tuple[bytes, ...]:
    return tuple(parse_base64(line, f"{what}, hash", size=HASH_BYTES) for line in lines)
