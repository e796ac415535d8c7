"""Row digests: what binds a dataset's rows to the ledger without letting anyone guess them.

Every row has its own key, derived from the dataset's; its digest is an HMAC under that key, so a short row cannot be
found by trying. Handing out one row's key lets a third party check this row and no other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from appliance.errors import BadInput
from appliance.formats.merkle import hash_leaf, root_of

DATASET_KEY_BYTES = 32
_KEY_DOMAIN = b"appliance/row-key/v1\x00"
_DIGEST_DOMAIN = b"appliance/row-digest/v1\x00"


def row_key(dataset_key: bytes, index: int) -> bytes:
    """HMAC-SHA256(dataset key, domain ‖ index as u64 big-endian): 32 bytes."""
    if len(dataset_key) != DATASET_KEY_BYTES:
        raise BadInput(f"dataset key: expected {DATASET_KEY_BYTES} bytes, got {len(dataset_key)}")
    if not 0 <= index < 2**64:
        raise BadInput(f"row, index: expected 0 to 2^64 - 1, got {index}")
    return hmac.new(dataset_key, _KEY_DOMAIN + index.to_bytes(8, "big"), hashlib.sha256).digest()


def row_digest(dataset_key: bytes, index: int, row: bytes) -> bytes:
    """HMAC-SHA256(row key, domain ‖ row): 32 bytes."""
    return digest_row(row_key(dataset_key, index), row)


def digest_row(key: bytes, row: bytes) -> bytes:
    """The same, for whoever holds only this row's key."""
    return hmac.new(key, _DIGEST_DOMAIN + row, hashlib.sha256).digest()


def rows_root(row_digests: Iterable[bytes]) -> bytes:
    """The RFC 6962 root over row digests, in the rows' order."""
    return root_of(hash_leaf(digest) for digest in row_digests)
