"""Scores of labels after a prompt, for tests that compare other computations with them."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.ml.inference.score import find_branches, score_prompt
from appliance.ml.model.base import LoadedBase


def score_labels(base: LoadedBase, prompt: Sequence[int], labels: Sequence[Sequence[int]]) -> list[float]:
    """Return the log-probability of each label after the prompt, as the engine computes it in one pass."""
    return score_prompt(base, prompt, find_branches(labels), len(labels))
