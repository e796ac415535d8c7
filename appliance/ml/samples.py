"""Rows as tokens: what the loop trains on, and how many of the tokens carry a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.errors import BadInput
from appliance.ml.chat import Chat
from appliance.ml.data import Row


@dataclass(frozen=True)
class Sample:
    """A row in token ids. `spans` are the positions that carry a loss, in order, each from start to stop.

    A token is predicted by the one before it, so no span starts at 0. An answer's end of turn is trained too.
    """

    index: int
    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def trained_tokens(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    @property
    def prompt(self) -> tuple[int, ...]:
        """What stands before the first span."""
        return self.ids[: self.spans[0][0]]

    @property
    def answer(self) -> tuple[int, ...]:
        """The first span and what follows it: all of the answer, where there is one."""
        return self.ids[self.spans[0][0] :]


def tokenize_rows(rows: Sequence[Row], chat: Chat, *, max_length: int) -> list[Sample]:
    """Prompt and answer are tokenised apart, as they are when the model answers; a row that is too long is an error."""
    samples = []
    for row in rows:
        prompt, answer = chat.encode(row.prompt), chat.encode(row.answer)
        sample = Sample(row.index, (*prompt, *answer), ((len(prompt), len(prompt) + len(answer)),))
        if len(sample.ids) > max_length:
            raise BadInput(
                f"dataset, row {sample.index}: expected at most {max_length} tokens (max_length), got {len(sample.ids)}"
            )
        if not prompt or not answer:
            raise BadInput(
                f"dataset, row {sample.index}: expected tokens to train on, got none", code="nothing-to-train"
            )
        samples.append(sample)
    if not samples:
        raise BadInput("dataset: expected rows to train on, got none", code="nothing-to-train")
    return samples
