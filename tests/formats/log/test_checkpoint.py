"""A log checkpoint is C2SP's three lines, signed under the origin's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import BadInput, Tampered
from appliance.formats.core.merkle import EMPTY_ROOT
from appliance.formats.log.checkpoint import (
    MAX_SIZE,
    Checkpoint,
    encode_checkpoint,
    open_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from appliance.formats.log.note import parse_note, sign_note, vkey_of
from appliance.formats.signatures.keys import Ed25519Signer

ORIGIN = "appliance.example/log"
ROOT = bytes(range(32))


def test_the_specification_s_example_parses_and_comes_back(vectors: Callable[[str], Any]) -> None:
    text = parse_note(vectors("signed_note")["checkpoint"].encode()).text
    checkpoint = parse_checkpoint(text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert encode_checkpoint(checkpoint) == text


@pytest.mark.parametrize("size", [1, 10, 20852163, MAX_SIZE])
def test_a_signed_checkpoint_opens_under_the_log_s_key(size: int, ed25519: Ed25519Signer) -> None:
    checkpoint = Checkpoint(ORIGIN, size, ROOT)
    assert open_checkpoint(sign_checkpoint(checkpoint, ed25519), vkey_of(ORIGIN, ed25519)) == checkpoint


def test_no_byte_of_a_signed_checkpoint_can_change(ed25519: Ed25519Signer) -> None:
    data = sign_checkpoint(Checkpoint(ORIGIN, 7, ROOT), ed25519)
    vkey = vkey_of(ORIGIN, ed25519)
    for place in range(len(data)):
        for other in (data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], data[:place], data[place + 1 :]):
            if other != data:
                with pytest.raises(Tampered):
                    open_checkpoint(other, vkey)


def test_a_checkpoint_of_another_log_or_key_does_not_open(ed25519: Ed25519Signer, other_ed25519: Ed25519Signer) -> None:
    data = sign_checkpoint(Checkpoint(ORIGIN, 7, ROOT), ed25519)
    for vkey in (vkey_of(ORIGIN, other_ed25519), vkey_of("appliance.example/other", ed25519)):
        with pytest.raises(Tampered):
            open_checkpoint(data, vkey)


def test_the_key_of_one_log_cannot_sign_for_another_origin(ed25519: Ed25519Signer) -> None:
    text = encode_checkpoint(Checkpoint("appliance.example/other", 7, ROOT))
    data = sign_note(text, ORIGIN, ed25519)
    with pytest.raises(Tampered, match="origin"):
        open_checkpoint(data, vkey_of(ORIGIN, ed25519))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        f"o\n1\n{'A' * 43}=\nextension\n",
        f"o\n1\n{'A' * 43}=\n\n",
        f"o\n1\n{'A' * 43}=",
        f"\n1\n{'A' * 43}=\n",
        f"o o\n1\n{'A' * 43}=\n",
        f"o\n01\n{'A' * 43}=\n",
        f"o\n+1\n{'A' * 43}=\n",
        f"o\n-1\n{'A' * 43}=\n",
        f"o\n\u0661\n{'A' * 43}=\n",
        f"o\n1 \n{'A' * 43}=\n",
        f"o\n\n{'A' * 43}=\n",
        f"o\n{2**63}\n{'A' * 43}=\n",
        f"o\n{'9' * 5000}\n{'A' * 43}=\n",
        f"o\n1\n{'A' * 42}B=\n",
        f"o\n1\n{'A' * 40}\n",
        "o\n1\n\n",
        f"o\n0\n{'A' * 43}=\n",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_checkpoint(text)


def test_the_empty_log_has_the_empty_root() -> None:
    empty = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert parse_checkpoint(encode_checkpoint(empty)) == empty
