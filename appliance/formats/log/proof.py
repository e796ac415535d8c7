"""Self-contained inclusion proofs (c2sp.org/tlog-proof) and requests to witnesses (c2sp.org/tlog-witness).

A `.tlog-proof` file has a header, an optional `extra` line, `index N`, the hashes of the inclusion proof, an empty
line, and the log's cosigned checkpoint as a signed note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.formats.core.fields import as_tampered, encode_base64, parse_base64, parse_decimal, show
from appliance.formats.core.merkle import HASH_BYTES, verify_inclusion
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.log_policy import CosignedCheckpoint, LogPolicy, open_witnessed

HEADER = "c2sp.org/tlog-proof@v1"
MAX_HASHES = 63
"""Maximum hashes of a proof, of inclusion or of consistency."""


@dataclass(frozen=True, slots=True)
class Proof:
    """An unverified inclusion proof; `hashes` lead from the entry's sibling to the root, and `extra` is not signed."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    def __post_init__(self) -> None:
        size = _check_parts(self.hashes, self.checkpoint, "proof")
        if not 0 <= self.index < size:
            raise BadInput(f"proof, index: expected 0 <= index < the checkpoint's size {size}, got {self.index}")


def _check_parts(hashes: tuple[bytes, ...], checkpoint: bytes, what: str) -> int:
    """Check the number of hashes, and return the size that the checkpoint claims."""
    if len(hashes) > MAX_HASHES:
        raise BadInput(f"{what}, hashes: expected at most {MAX_HASHES}, got {len(hashes)}")
    return claimed_size(checkpoint)


def encode_proof(proof: Proof) -> bytes:
    """Encode the proof as a `.tlog-proof` file."""
    extra = "" if proof.extra is None else f"extra {encode_base64(proof.extra)}\n"
    return f"{HEADER}\n{extra}index {proof.index}\n{encode_hashes(proof.hashes)}\n".encode() + proof.checkpoint


def parse_proof(data: bytes) -> Proof:
    """Parse a `.tlog-proof` file without verifying it."""
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


def verify_proof(data: bytes, leaf_hash: bytes, policy: LogPolicy) -> CosignedCheckpoint:
    """Verify that the log has an entry of this leaf hash, under a checkpoint that satisfies the policy.

    Raises:
        Tampered: the bytes are not a proof, the proof is wrong, or a required signature is invalid or missing.
    """
    with as_tampered():
        proof = parse_proof(data)
    witnessed = open_witnessed(proof.checkpoint, policy)
    verify_inclusion(leaf_hash, proof.index, witnessed.checkpoint.size, proof.hashes, witnessed.checkpoint.root)
    return witnessed


def split_head(data: bytes, what: str) -> tuple[list[str], bytes]:
    """Split the data at the first empty line into the lines before it, at least one, and the bytes after it.

    Raises:
        BadInput: there is no empty line, or the lines are not ASCII.
    """
    head, empty, rest = data.partition(b"\n\n")
    if not empty:
        raise BadInput(f"{what}: expected lines, an empty line and a checkpoint, got no empty line")
    try:
        return head.decode("ascii").split("\n"), rest
    except UnicodeDecodeError as error:
        place = f"{what}, byte {error.start}"
        raise BadInput(f"{place}: expected ASCII before the checkpoint, got {error.reason}") from None


def encode_hashes(hashes: Sequence[bytes]) -> str:
    """Encode the hashes in base64, one per line."""
    return "".join(f"{encode_base64(hash_)}\n" for hash_ in hashes)


def parse_hashes(lines: Sequence[str], what: str) -> tuple[bytes, ...]:
    return tuple(parse_base64(line, f"{what}, hash", size=HASH_BYTES) for line in lines)


MAX_REQUEST_BYTES = 1_048_576
"""Maximum bytes of a request that a witness reads from a file; 64 signatures of any kind fit."""


@dataclass(frozen=True, slots=True)
class WitnessRequest:
    """A request to cosign `checkpoint`, the bytes of a signed note.

    `hashes` is the proof that the checkpoint is consistent with the tree of size `old`.
    """

    old: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes

    def __post_init__(self) -> None:
        size = _check_parts(self.hashes, self.checkpoint, "witness request")
        if not 0 <= self.old <= size:
            raise BadInput(f"witness request, old: expected 0 to the checkpoint's size {size}, got {self.old}")


def encode_request(request: WitnessRequest) -> bytes:
    """Encode the request: `old N`, the hashes, an empty line and the checkpoint."""
    return f"old {request.old}\n{encode_hashes(request.hashes)}\n".encode() + request.checkpoint


def parse_request(data: bytes) -> WitnessRequest:
    """Parse a request to a witness."""
    lines, checkpoint = split_head(data, "witness request")
    keyword, _, old = lines[0].partition(" ")
    if keyword != "old":
        raise BadInput(f"witness request, line 1: expected old and a size, got {show(lines[0])}")
    size = parse_decimal(old, "witness request, old")
    return WitnessRequest(size, parse_hashes(lines[1:], "witness request"), checkpoint)
