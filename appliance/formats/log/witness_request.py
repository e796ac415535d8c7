"""The request to a witness (c2sp.org/tlog-witness, the body of `add-checkpoint`): from a size that it has seen to a
checkpoint.

`old N`, the hashes of the consistency proof, an empty line, and the log's checkpoint as a signed note.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.formats.core.fields import parse_decimal, show
from appliance.formats.log.checkpoint import parse_checkpoint
from appliance.formats.log.note import parse_note
from appliance.formats.log.proof import encode_hashes, parse_hashes, split_head

MAX_HASHES = 63
MAX_REQUEST_BYTES = 1_048_576
"""What a reader takes from a stick: 64 signatures of any kind fit."""


@dataclass(frozen=True, slots=True)
class WitnessRequest:
    """`hashes` are to prove that `checkpoint`, a signed note's bytes, continues the tree of size `old`."""

    old: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes

    def __post_init__(self) -> None:
        if len(self.hashes) > MAX_HASHES:
            raise BadInput(f"witness request, hashes: expected at most {MAX_HASHES}, got {len(self.hashes)}")
        size = parse_checkpoint(parse_note(self.checkpoint).text).size
        if not 0 <= self.old <= size:
            raise BadInput(f"witness request, old: expected 0 to the checkpoint's size {size}, got {self.old}")


def encode_request(request: WitnessRequest) -> bytes:
    return f"old {request.old}\n{encode_hashes(request.hashes)}\n".encode() + request.checkpoint


def parse_request(data: bytes) -> WitnessRequest:
    lines, checkpoint = split_head(data, "witness request")
    keyword, _, old = lines[0].partition(" ")
    if keyword != "old":
        raise BadInput(f"witness request, line 1: expected old and a size, got {show(lines[0])}")
    size = parse_decimal(old, "witness request, old")
    return WitnessRequest(size, parse_hashes(lines[1:], "witness request"), checkpoint)
