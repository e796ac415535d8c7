"""A log checkpoint is C2SP's three lines, signed under the origin's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from appliance.formats.log.note import NoteSignature, encode_note, parse_note, sign_note, vkey_of
from appliance.formats.signatures.keys import Ed25519Signer
from appliance.formats.signatures.ml_dsa import MlDsaSigner, generate_ml_dsa

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


def test_a_checkpoint_of_two_algorithms_opens_under_both_keys_and_under_each(
    ed25519: Ed25519Signer, ml_dsa_key: MlDsaSigner
) -> None:
    checkpoint = Checkpoint(ORIGIN, 7, ROOT)
    data = sign_checkpoint(checkpoint, ml_dsa_key, ed25519)
    both = vkey_of(ORIGIN, ml_dsa_key), vkey_of(ORIGIN, ed25519)
    for vkeys in (both, both[:1], both[1:]):
        assert open_checkpoint(data, *vkeys) == checkpoint
    lines = data.decode().split("\n\n")[1].splitlines()
    assert [len(line) > 4_000 for line in lines] == [True, False], "the line of Ed25519 is the last one"
    with pytest.raises(BadInput, match="expected at least one"):
        open_checkpoint(data)
    with pytest.raises(BadInput, match="all of one name"):
        open_checkpoint(data, both[0], vkey_of("appliance.example/other", ed25519))


def test_the_post_quantum_line_cannot_be_removed_changed_or_exchanged(
    ed25519: Ed25519Signer, ml_dsa_key: MlDsaSigner
) -> None:
    """Each of these notes opens under the Ed25519 key alone, and under both keys none does."""
    checkpoint = Checkpoint(ORIGIN, 7, ROOT)
    classical, both = vkey_of(ORIGIN, ed25519), (vkey_of(ORIGIN, ml_dsa_key), vkey_of(ORIGIN, ed25519))
    note = parse_note(sign_checkpoint(checkpoint, ml_dsa_key, ed25519))
    line, last = note.signatures
    flipped = NoteSignature(line.name, line.key_id, line.sig[:-1] + bytes([line.sig[-1] ^ 1]))
    other_text = parse_note(sign_checkpoint(replace(checkpoint, size=8), ml_dsa_key)).signatures[0]
    other_key = parse_note(sign_checkpoint(checkpoint, generate_ml_dsa())).signatures[0]
    forged = NoteSignature(line.name, line.key_id, other_key.sig)
    again = parse_note(sign_checkpoint(checkpoint, ml_dsa_key)).signatures[0]
    assert again != line, "signatures are hedged"
    assert open_checkpoint(encode_note(replace(note, signatures=(again, line, last))), *both) == checkpoint
    for lines in ((), (flipped,), (other_text,), (other_key,), (forged,), (line, flipped), (flipped, line)):
        changed = encode_note(replace(note, signatures=(*lines, last)))
        assert open_checkpoint(changed, classical) == checkpoint
        with pytest.raises(Tampered, match="signature"):
            open_checkpoint(changed, *both)
    with pytest.raises(Tampered, match="expected one by"):
        open_checkpoint(encode_note(replace(note, signatures=(line,))), *both)
