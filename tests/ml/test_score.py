"""Labels are scored as a constrained decoder would draw them, many rows in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from appliance.errors import BadInput
from appliance.ml.base import Base
from appliance.ml.score import choose_labels, find_branches, score_rows

LABELS = [[10, 11, 2], [10, 12, 2], [10, 12, 13, 2], [20, 2]]
PROMPTS = [[1, 50, 60, 5, 6, 7], [1, 50, 60, 9], [1, 50, 60, 8, 8, 8, 8, 8, 8]]


def _next(base: Base, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden = base.hidden(input_ids=torch.tensor([list(ids)]), use_cache=False)[0, -1]
        return (hidden @ base.head_weight().T).double()


def _walk(base: Base, prompt: list[int], label: list[int]) -> float:
    """The definition, one token and one whole pass at a time."""
    total = 0.0
    for place, token in enumerate(label):
        allowed = sorted({other[place] for other in LABELS if other[:place] == label[:place]})
        chances = torch.log_softmax(_next(base, prompt + label[:place])[allowed], dim=-1)
        total += chances[allowed.index(token)].item()
    return total


def test_scores_are_those_of_a_walk_token_by_token(base: Base) -> None:
    done: list[int] = []
    scores = score_rows(base, PROMPTS, LABELS, done.append)
    for prompt, row in zip(PROMPTS, scores, strict=True):
        assert row == pytest.approx([_walk(base, prompt, label) for label in LABELS], abs=1e-3)
        assert sum(math.exp(value) for value in row) == pytest.approx(1.0), "the label set is all there is"
    assert done[-1] == len(PROMPTS)


def test_a_row_has_its_score_whatever_else_is_in_the_pack(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    together = score_rows(base, PROMPTS, LABELS, lambda done: None)
    monkeypatch.setattr("appliance.ml.score.PACK_TOKENS", 1)
    for row, alone in zip(together, score_rows(base, PROMPTS, LABELS, lambda done: None), strict=True):
        assert row == pytest.approx(alone, abs=1e-3)


def test_only_branching_places_are_asked() -> None:
    branches = find_branches(LABELS)
    assert [branch.path for branch in branches] == [(), (10,), (10, 12)]
    assert branches[0].choices == ((10, frozenset({0, 1, 2})), (20, frozenset({3})))


def test_a_label_that_begins_another_is_refused() -> None:
    """It cannot be told apart; the end of the turn behind every label sees to it that there is none."""
    with pytest.raises(BadInput, match="expected none to be the beginning of another"):
        find_branches([[10], [10, 11]])


def test_the_first_of_equals_is_chosen() -> None:
    assert choose_labels([[-1.0, -0.5, -0.5], [-0.1, -0.2, -3.0]], ["a", "b", "c"]) == ["b", "a"]
