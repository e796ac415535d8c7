"""Rows as tokens: what the loop trains on, and how many of the tokens carry a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.ml.data.rows import Row
from appliance.ml.model.chat import Chat


@dataclass(frozen=True)
class Sample:
    """A row in token ids. `spans` are the positions that carry a loss, in order, each from start to stop.

    A token is predicted by the one before it, so no span starts at 0. An answer's end of turn is trained too.
    `rejected`: of a preference, whose `ids` end with the chosen answer, the tokens of the other one; else empty.
    """

    index: int
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    rejected: tuple[int, ...] = ()

    @property
    def trained_tokens(self) -> int:
        return sum(stop - start for start, stop in self.spans) + len(self.rejected)

    @property
    def tokens(self) -> int:
        """All that go through the model."""
        return len(self.ids) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the row's longest sequence: a prompt and one answer."""
        return max(len(self.ids), self.spans[0][0] + len(self.rejected))

    @property
    def weight(self) -> int:
        """What of it a step's loss is a mean over: its trained tokens, or the row where it is a preference."""
        return 1 if self.rejected else self.trained_tokens


def tokenize_rows(rows: Sequence[Row], chat: Chat, *, max_length: int) -> list[Sample]:
    """The rows as tokens; one that is too long is an error, and so are none at all."""
    samples = [tokenize_row(row, chat, max_length, f"dataset, row {row.index}") for row in rows]
    if not samples:
        raise BadInput("dataset: expected rows to train on, got none", code="nothing-to-train")
    return samples


def tokenize_row(row: Row, chat: Chat, max_length: int, place: str, limit: str = "max_length") -> Sample:
    """Each part's two texts are tokenised apart, as they are when the model answers.

    Every trained span must give back exactly its answer and the end of its turn. BadInput names the `place`, and by
    `limit` what allows no more tokens.
    """
    ids: list[int] = []
    spans = []
    for before, answer in row.parts:
        ids += chat.encode(before)
        own = _encode_answer(answer, chat, place)
        # The first token of all has nothing that it could be predicted from.
        spans.append((max(len(ids), 1), len(ids) + len(own)))
        ids += own
    rejected = () if row.rejected is None else tuple(_encode_answer(row.rejected, chat, place))
    longest = max(len(ids), spans[0][0] + len(rejected))
    if longest > max_length:
        raise BadInput(f"{place}: expected at most {max_length} tokens ({limit}), got {longest}")
    if not any(start < stop for start, stop in spans):
        raise BadInput(f"{place}: expected tokens to train on, got none", code="nothing-to-train")
    return Sample(row.index, tuple(ids), tuple((start, stop) for start, stop in spans if start < stop), rejected)


def _encode_answer(answer: str, chat: Chat, place: str) -> list[int]:
    own = chat.encode(answer)
    if chat.decode(own) != answer.removesuffix(chat.end_of_turn):
        raise BadInput(
            f"{place}: expected tokens that give back the answer, got {chat.decode(own)[:40]!r}", code="answer-altered"
        )
    return own
