"""A row's digest says nothing about the row without the row's own key, and one row's key opens that row alone."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from appliance.errors import BadInput
from appliance.formats.merkle import hash_leaf, inclusion_proof, verify_inclusion
from appliance.formats.rows import digest_row, row_digest, row_key, rows_root

KEY = bytes(range(32))


def test_keys_and_digests_are_the_hmacs_that_the_page_names() -> None:
    key = hmac.digest(KEY, b"appliance/row-key/v1\0" + (7).to_bytes(8, "big"), "sha256")
    assert row_key(KEY, 7) == key
    assert row_digest(KEY, 7, b"row") == hmac.digest(key, b"appliance/row-digest/v1\0row", "sha256")
    assert digest_row(key, b"row") == row_digest(KEY, 7, b"row")


def test_equal_rows_in_other_places_or_datasets_have_other_digests() -> None:
    digests = {row_digest(key, index, b"yes") for key in (KEY, bytes(32)) for index in range(100)}
    assert len(digests) == 200
    assert hashlib.sha256(b"yes").digest() not in digests


def test_the_root_is_rfc_6962_s_over_the_digests() -> None:
    digests = [row_digest(KEY, index, b"row") for index in range(5)]
    leaves = [hash_leaf(digest) for digest in digests]
    nodes = {(0, i): leaf for i, leaf in enumerate(leaves)}
    nodes[1, 0] = hashlib.sha256(b"\x01" + leaves[0] + leaves[1]).digest()
    nodes[1, 1] = hashlib.sha256(b"\x01" + leaves[2] + leaves[3]).digest()
    nodes[2, 0] = hashlib.sha256(b"\x01" + nodes[1, 0] + nodes[1, 1]).digest()
    for index, leaf in enumerate(leaves):
        proof = inclusion_proof(index, 5, lambda level, i: nodes[level, i])
        verify_inclusion(leaf, index, 5, proof, rows_root(digests))


@pytest.mark.parametrize(("key", "index"), [(b"", 0), (KEY[:31], 0), (KEY, -1), (KEY, 2**64)])
def test_other_keys_and_indexes_are_refused(key: bytes, index: int) -> None:
    with pytest.raises(BadInput):
        row_digest(key, index, b"row")
