"""A request to a witness is C2SP's `add-checkpoint`: what litewitness takes is read here, and written again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import BadInput
from appliance.formats.core.merkle import consistency_proof, root_of
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.proof import MAX_HASHES, WitnessRequest, encode_request, parse_request
from appliance.formats.signatures.keys import Ed25519Signer
from tests.formats.conftest import LEAVES, ORIGIN, read_node

Vectors = Callable[[str], Any]


def test_the_specification_s_request_and_litewitness_s_come_back(vectors: Vectors) -> None:
    published = vectors("transparency")
    for text in (published["request"], *published["litewitness"]["accepted"]):
        assert encode_request(parse_request(text.encode())) == text.encode()
    request = parse_request(published["request"].encode())
    assert (request.old, len(request.hashes)) == (20_852_014, 4)
    assert request.checkpoint.startswith(b"example.com/behind-the-sofa\n20852163\n")


def test_a_request_is_three_parts(ed25519: Ed25519Signer) -> None:
    checkpoint = sign_checkpoint(Checkpoint(ORIGIN, 7, root_of(LEAVES[:7])), ed25519)
    request = WitnessRequest(5, tuple(consistency_proof(5, 7, read_node)), checkpoint)
    data = encode_request(request)
    assert data.startswith(b"old 5\n")
    assert data.endswith(b"\n\n" + checkpoint)
    assert parse_request(data) == request


@pytest.mark.parametrize(
    "head",
    [
        "old 5",
        "old 5\n\n",
        "old 05\n",
        "old -1\n",
        "old 8\n",
        "old \n",
        "old\n",
        "Old 5\n",
        "old  5\n",
        "old 5 \n",
        "old 5\r\n",
        "old \u0665\n",
        "\nold 5\n",
        "old 5\nAAAA\n",
        "old 5\n" + f"{'A' * 42}B=\n",
        "old 5\n" + f"{'A' * 43}=\n" * (MAX_HASHES + 1),
    ],
)
def test_malformed_requests_are_refused(head: str, ed25519: Ed25519Signer) -> None:
    checkpoint = sign_checkpoint(Checkpoint(ORIGIN, 7, root_of(LEAVES[:7])), ed25519)
    with pytest.raises(BadInput):
        parse_request(f"{head}\n".encode() + checkpoint)


def test_what_is_no_checkpoint_is_no_request() -> None:
    for rest in (b"", b"text\n", "text\n\n\u2014 n AAAAAAA=\n".encode()):
        with pytest.raises(BadInput):
            parse_request(b"old 0\n\n" + rest)
