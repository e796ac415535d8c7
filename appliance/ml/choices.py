"""An answer that is one of a set of labels: at each token only those that lead to a label can be drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from appliance.ml.score import find_branches


class Choices:
    """The labels that can still come, as tokens with the end of the turn; BadInput where one begins another."""

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        find_branches(labels)
        self._left = [tuple(label) for label in labels]
        self._place = 0

    def narrow(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the next tokens that lead to a label; every other one is impossible."""
        allowed = sorted({label[self._place] for label in self._left})
        narrowed = torch.full_like(logits, float("-inf"))
        narrowed[allowed] = logits[allowed]
        return narrowed

    def take(self, token: int) -> None:
        """Leaves the labels that go on with this token."""
        self._left = [label for label in self._left if label[self._place] == token]
        self._place += 1
