"""Row digests, which bind a dataset's rows to the ledger without revealing them.

Each row has its own key, derived from the key of the dataset. The row's digest is an HMAC (RFC 2104) under that key, so
that a short row cannot be found by guessing. A third party that is given the key of one row can check this row only.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import BadInput, Tampered
from appliance.formats.core.fields import encode_base64, parse_base64, parse_count, parse_list, parse_object
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, root_of, verify_inclusion

DATASET_KEY_BYTES = 32
DIGEST_BYTES = 32
_KEY_DOMAIN = b"appliance/row-key/v1\x00"
_MEMBERS = frozenset({"index", "size", "row", "key", "path"})
_DIGEST_DOMAIN = b"appliance/row-digest/v1\x00"
_CLUSTER_DOMAIN = b"appliance/cluster/v1\x00"
_SLICE_DOMAIN = b"appliance/slice/v1\x00"
_SLICE_BYTES = 8


def row_key(dataset_key: bytes, index: int) -> bytes:
    """Derive the 32-byte key of a row: HMAC-SHA256(dataset key, domain ‖ index as u64 big-endian).

    Raises:
        BadInput: the dataset key is not 32 bytes, or the index is out of range.
    """
    if len(dataset_key) != DATASET_KEY_BYTES:
        raise BadInput(f"dataset key: expected {DATASET_KEY_BYTES} bytes, got {len(dataset_key)}")
    if not 0 <= index < 2**64:
        raise BadInput(f"row, index: expected 0 to 2^64 - 1, got {index}")
    return hmac.new(dataset_key, _KEY_DOMAIN + index.to_bytes(8, "big"), hashlib.sha256).digest()


def row_digest(dataset_key: bytes, index: int, row: bytes) -> bytes:
    """Compute the 32-byte digest of a row: HMAC-SHA256(row key, domain ‖ row)."""
    return digest_row(row_key(dataset_key, index), row)


def digest_row(key: bytes, row: bytes) -> bytes:
    """Compute the digest of a row from the key of this row alone."""
    return hmac.new(key, _DIGEST_DOMAIN + row, hashlib.sha256).digest()


def cluster_digest(dataset_key: bytes, value: str) -> bytes:
    """Compute the 32-byte cluster digest, which is equal for rows that belong together and hides their common value."""
    return _digest_group(dataset_key, _CLUSTER_DOMAIN, value)


def slice_digest(dataset_key: bytes, value: str) -> bytes:
    """Compute the 8-byte slice digest of a value by which the rows of a blind set are grouped."""
    return _digest_group(dataset_key, _SLICE_DOMAIN, value)[:_SLICE_BYTES]


def _digest_group(dataset_key: bytes, domain: bytes, value: str) -> bytes:
    """Compute HMAC-SHA256(dataset key, domain ‖ value)."""
    if len(dataset_key) != DATASET_KEY_BYTES:
        raise BadInput(f"dataset key: expected {DATASET_KEY_BYTES} bytes, got {len(dataset_key)}")
    return hmac.new(dataset_key, domain + value.encode("utf-8"), hashlib.sha256).digest()


def split_digests(data: bytes) -> list[bytes]:
    """Split the bytes of row_digests.bin into 32-byte digests, in the order of the rows.

    Raises:
        BadInput: the length is not a multiple of 32.
    """
    if len(data) % DIGEST_BYTES:
        raise BadInput(f"row digests: expected {DIGEST_BYTES} bytes for each row, got {len(data)} in all")
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def rows_root(row_digests: Iterable[bytes]) -> bytes:
    """Compute the Merkle root (RFC 6962 section 2.1) over row digests, in the order of the rows."""
    return root_of(hash_leaf(digest) for digest in row_digests)


@dataclass(frozen=True)
class RowProof:
    """A proof that one row is in a dataset of `size` rows.

    It has the row's bytes and key, and the Merkle path from the row's digest to the dataset's root.
    """

    index: int
    size: int
    row: bytes = field(repr=False)
    key: bytes = field(repr=False)
    path: tuple[bytes, ...]


def prove_row(dataset_key: bytes, row_digests: Sequence[bytes], index: int, row: bytes) -> RowProof:
    """Build the proof for one row.

    The proof discloses this row only, since it does not hold the keys of the others.
    """
    leaves = [hash_leaf(digest) for digest in row_digests]
    path = inclusion_proof(index, len(leaves), lambda level, at: root_of(leaves[at << level : (at + 1) << level]))
    return RowProof(index, len(leaves), row, row_key(dataset_key, index), tuple(path))


def verify_row(proof: RowProof, size: int, root: bytes) -> None:
    """Check that the proof's row is at its index in the dataset of this size and root."""
    if proof.size != size:
        raise Tampered(f"row proof, size: expected {size} rows, got {proof.size}")
    verify_inclusion(hash_leaf(digest_row(proof.key, proof.row)), proof.index, size, proof.path, root)


def row_proof_value(proof: RowProof) -> dict[str, Any]:
    """Return the JSON object of a proof, for a document that includes it."""
    return {
        "index": proof.index,
        "size": proof.size,
        "row": encode_base64(proof.row),
        "key": encode_base64(proof.key),
        "path": [encode_base64(step) for step in proof.path],
    }


def parse_row_proof_value(value: Any) -> RowProof:
    """Parse the JSON object that `row_proof_value` returns; `verify_row` verifies the proof."""
    member = parse_object(value, "row proof", _MEMBERS)
    return RowProof(
        index=parse_count(member["index"], "row proof, index"),
        size=parse_count(member["size"], "row proof, size"),
        row=parse_base64(member["row"], "row proof, row"),
        key=parse_base64(member["key"], "row proof, key"),
        path=tuple(parse_base64(step, "row proof, path") for step in parse_list(member["path"], "row proof, path")),
    )
