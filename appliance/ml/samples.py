"""Rows as tokens: what the loop trains on, and how many of the tokens carry a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.ml.chat import Chat
from appliance.ml.data import Row


@dataclass(frozen=True)
class Sample:
    """Prompt and answer in token ids. The loss is on the answer alone, the end of the turn included."""

    index: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt + self.answer


def tokenize_rows(rows: Sequence[Row], chat: Chat, *, max_length: int) -> list[Sample]:
    """Prompt and answer are tokenised apart, as they are when the model answers; a row that is too long is an error."""
    samples = [Sample(row.index, tuple(chat.encode(row.prompt)), tuple(chat.encode(row.answer))) for row in rows]
    for sample in samples:
        if len(sample.ids) > max_length:
            raise BadInput(
                f"dataset, row {sample.index}: expected at most {max_length} tokens (max_length), got {len(sample.ids)}"
            )
        if not sample.prompt or not sample.answer:
            raise BadInput(
                f"dataset, row {sample.index}: expected tokens to train on, got none", code="nothing-to-train"
            )
    if not samples:
        raise BadInput("dataset: expected rows to train on, got none", code="nothing-to-train")
    return samples
