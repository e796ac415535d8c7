"""A row's digest says nothing about the row without the row's own key, and one row's key opens that row alone."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from appliance.errors import BadInput, Tampered
from appliance.formats.artifacts.rows import (
    cluster_digest,
    digest_row,
    parse_row_proof_value,
    prove_row,
    row_digest,
    row_key,
    row_proof_value,
    rows_root,
    verify_row,
)
from appliance.formats.core.merkle import hash_leaf, inclusion_proof, verify_inclusion
from tests.kit.mutations import reshaped

KEY = bytes(range(32))


def test_keys_and_digests_are_the_hmacs_that_the_page_names() -> None:
    key = hmac.digest(KEY, b"appliance/row-key/v1\0" + (7).to_bytes(8, "big"), "sha256")
    assert row_key(KEY, 7) == key
    assert row_digest(KEY, 7, b"row") == hmac.digest(key, b"appliance/row-digest/v1\0row", "sha256")
    assert digest_row(key, b"row") == row_digest(KEY, 7, b"row")
    assert cluster_digest(KEY, "contract 7") == hmac.digest(KEY, b"appliance/cluster/v1\0contract 7", "sha256")


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


ROWS = [f"row {n}".encode() for n in range(11)]
DIGESTS = [row_digest(KEY, index, row) for index, row in enumerate(ROWS)]


@pytest.mark.parametrize("index", range(11))
def test_a_row_is_proved_by_its_own_key_alone(index: int) -> None:
    proof = parse_row_proof_value(row_proof_value(prove_row(KEY, DIGESTS, index, ROWS[index])))
    verify_row(proof, 11, rows_root(DIGESTS))
    assert proof.key == row_key(KEY, index)
    other = (index + 1) % 11
    assert digest_row(proof.key, ROWS[other]) != DIGESTS[other], "another row's digest does not open by it"


@pytest.mark.parametrize(
    "changes",
    [
        {"row": b"row 9"}, {"key": bytes(32)}, {"index": 4}, {"index": 11}, {"path": ()}, {"size": 12},
        {"path": (bytes(32),) * 4},
    ],
    ids=str,
)  # fmt: skip
def test_a_proof_that_says_anything_else_does_not_hold(changes: dict[str, Any]) -> None:
    proof = replace(prove_row(KEY, DIGESTS, 3, ROWS[3]), **changes)
    with pytest.raises(Tampered):
        verify_row(proof, 11, rows_root(DIGESTS))


def test_a_proof_of_another_dataset_does_not_hold() -> None:
    proof = prove_row(KEY, DIGESTS, 3, ROWS[3])
    with pytest.raises(Tampered):
        verify_row(proof, 11, rows_root(DIGESTS[::-1]))
    with pytest.raises(Tampered):
        verify_row(proof, 10, rows_root(DIGESTS))


@pytest.mark.parametrize(
    "changes", [{"index": -1}, {"size": True}, {"row": "%"}, {"path": ["?"]}, {"more": 1}], ids=str
)
def test_a_value_that_is_no_proof_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        parse_row_proof_value(row_proof_value(prove_row(KEY, DIGESTS, 3, ROWS[3])) | changes)


@pytest.mark.parametrize(("key", "index"), [(b"", 0), (KEY[:31], 0), (KEY, -1), (KEY, 2**64)])
def test_other_keys_and_indexes_are_refused(key: bytes, index: int) -> None:
    with pytest.raises(BadInput):
        row_digest(key, index, b"row")
    if len(key) != len(KEY):
        with pytest.raises(BadInput):
            cluster_digest(key, "contract 7")


def test_the_pages_proof_holds_under_the_pages_root() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "formats" / "rows.md").read_text()
    proof = parse_row_proof_value(json.loads(page.partition("```json\n")[2].partition("```")[0]))
    root = re.search(r"`sha256:([0-9a-f]{64})`, of three rows", page)
    assert root is not None and proof.row == b'{"index":1,"text":"two"}'
    verify_row(proof, 3, bytes.fromhex(root[1]))


@given(reshaped(row_proof_value(prove_row(KEY, DIGESTS, 3, ROWS[3]))))
def test_a_proof_of_any_shape_is_answered_with_an_error_of_ours(value: Any) -> None:
    with suppress(BadInput, Tampered):
        verify_row(parse_row_proof_value(value), len(ROWS), rows_root(DIGESTS))
