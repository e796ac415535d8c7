"""An answer that is one of a set of labels, or in a grammar: at each token only what leads there can be drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from appliance.ml.inference.trie import build_trie
from appliance.ml.model.grammars import Matcher


class Choices:
    """The labels that can still come, as tokens with the end of the turn; BadInput where one begins another."""

    def __init__(self, labels: Sequence[Sequence[int]]) -> None:
        self._place = build_trie(labels)

    def allows(self, token: int) -> bool:
        """Whether this token leads to a label."""
        return token in self._place.choices

    def allowed(self) -> list[int]:
        """The tokens that lead to a label; none behind a whole one."""
        return sorted(self._place.choices)

    def narrow(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the next tokens that lead to a label; every other one is impossible."""
        allowed = self.allowed()
        narrowed = torch.full_like(logits, float("-inf"))
        narrowed[allowed] = logits[allowed]
        return narrowed

    def take(self, token: int) -> None:
        """Keeps only the labels that continue with this token."""
        self._place = self._place.choices[token]


class Grammar:
    """What a matcher lets come. The mask is of one row alone, so that it is the same in any batch."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def allows(self, token: int) -> bool:
        """Whether this token may come next; much quicker than a mask."""
        return self._matcher.allows(token)

    def narrow(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the next tokens that may come; every other one is impossible."""
        mask = torch.frombuffer(bytearray(self._matcher.mask()), dtype=torch.uint8)
        bits = mask[:, None].bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and(1).bool().flatten()
        return logits.masked_fill(~bits[: len(logits)], float("-inf"))

    def take(self, token: int) -> None:
        """What comes next depends on this token."""
        self._matcher.take(token)
