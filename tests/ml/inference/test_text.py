"""The streamed text: whole characters, and no part of a stop text, however its bytes are split into tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from appliance.ml.inference.sampling import TextStream


def decode(tokens: Sequence[int]) -> str:
    """Decode one token a byte, as a tokenizer does for an unknown character."""
    return bytes(tokens).decode("utf-8", errors="replace")


def send(text: str, stop: tuple[str, ...]) -> list[str]:
    """Return the pieces until the stop text or the end."""
    sender = TextStream(decode, stop)
    pieces = []
    for byte in text.encode():
        pieces.append(sender.push(byte))
        if sender.stopped:
            return pieces
    return [*pieces, sender.finish()]


@pytest.mark.parametrize("stop", ["<é>", "<<é", "a→b", "\n→"])
def test_the_beginning_of_a_stop_text_is_not_sent_where_its_next_character_is_cut(stop: str) -> None:
    assert "".join(send(f"yes {stop} no", (stop,))) == "yes "


def test_what_only_began_like_a_stop_text_is_sent_once() -> None:
    text = "a→c, a→ and é"
    pieces = send(text, ("a→b",))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
