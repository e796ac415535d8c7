"""Sealed messages open once, in their order, and as they were."""

from __future__ import annotations

import pytest

from appliance.errors import Tampered
from appliance.formats.core.sealed import OVERHEAD_BYTES, ConnectionCipher, derive_key

KEY = bytes(range(32))


def test_messages_open_in_the_order_in_which_they_were_sealed() -> None:
    sealing, opening = ConnectionCipher(KEY), ConnectionCipher(KEY)
    sealed = [sealing.encrypt_next(data) for data in (b"one", b"", b"one")]
    assert len(set(sealed)) == 3, "the same words under another number are other bytes"
    assert len(sealed[0]) == len(b"one") + OVERHEAD_BYTES
    assert [opening.decrypt_next(data) for data in sealed] == [b"one", b"", b"one"]


@pytest.mark.parametrize("spoil", ["changed", "repeated", "left out", "shortened", "other key"])
def test_any_other_message_does_not_open(spoil: str) -> None:
    sealing, opening = ConnectionCipher(KEY), ConnectionCipher(derive_key(KEY, b"x") if spoil == "other key" else KEY)
    first, second = sealing.encrypt_next(b"one"), sealing.encrypt_next(b"two")
    if spoil == "repeated":
        opening.decrypt_next(first)
    bad = {"changed": bytes([first[0] ^ 1]) + first[1:], "left out": second, "shortened": first[:-1]}
    with pytest.raises(Tampered, match="expected the next one under its key"):
        opening.decrypt_next(bad.get(spoil, first))


def test_a_key_is_of_its_context_alone() -> None:
    assert derive_key(KEY, b"ab", b"c") != derive_key(KEY, b"a", b"bc")
    assert derive_key(KEY, b"a") == derive_key(KEY, b"a")
