"""An answer that is one of a set of labels: at each token only those that lead to a label can be drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from appliance.ml.inference.trie import build_trie


class Choices:
    """The labels that can still come, as tokens with the end of the turn; BadInput where one begins another."""

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        self._place = build_trie(labels)

    def narrow(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the next tokens that lead to a label; every other one is impossible."""
        allowed = sorted(self._place.choices)
        narrowed = torch.full_like(logits, float("-inf"))
        narrowed[allowed] = logits[allowed]
        return narrowed

    def take(self, token: int) -> None:
        """Keeps only the labels that continue with this token."""
        self._place = self._place.choices[token]
