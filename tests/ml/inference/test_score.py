"""Labels are scored as a constrained decoder would draw them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pytest
import torch

from appliance.errors import BadInput
from appliance.ml.inference.score import find_branches
from appliance.ml.model.base import LoadedBase
from tests.kit.scoring import score_labels

LABELS = [[10, 11, 2], [10, 12, 2], [10, 12, 13, 2], [20, 2]]
PROMPTS = [[1, 50, 60, 5, 6, 7], [1, 50, 60, 9], [1, 50, 60, 8, 8, 8, 8, 8, 8]]


def _next(base: LoadedBase, ids: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        hidden = base.hidden(input_ids=torch.tensor([list(ids)]), use_cache=False)[0, -1]
        return (hidden @ base.head().weight.T).double()


def _walk(base: LoadedBase, prompt: list[int], label: list[int]) -> float:
    """Compute the score by its definition, one token and one whole pass at a time."""
    total = 0.0
    for place, token in enumerate(label):
        allowed = sorted({other[place] for other in LABELS if other[:place] == label[:place]})
        chances = torch.log_softmax(_next(base, prompt + label[:place])[allowed], dim=-1)
        total += chances[allowed.index(token)].item()
    return total


@pytest.mark.thorough
def test_scores_are_those_of_a_walk_token_by_token(base: LoadedBase) -> None:
    for prompt in PROMPTS:
        row = score_labels(base, prompt, LABELS)
        assert row == pytest.approx([_walk(base, prompt, label) for label in LABELS], abs=1e-3)
        assert sum(math.exp(value) for value in row) == pytest.approx(1.0), "the label set is all there is"


def test_only_branching_places_are_asked() -> None:
    branches = find_branches(LABELS)
    assert [branch.path for branch in branches] == [(), (10,), (10, 12)]
    assert branches[0].choices == ((10, frozenset({0, 1, 2})), (20, frozenset({3})))


def test_a_label_that_begins_another_is_refused() -> None:
    """It cannot be told apart; the end of the turn behind every label sees to it that there is none."""
    with pytest.raises(BadInput, match="expected none to be the beginning of another"):
        find_branches([[10], [10, 11]])


@pytest.mark.thorough
def test_a_tree_of_labels_takes_as_long_as_their_tokens_and_no_longer() -> None:
    """These took the engine minutes: a thousand labels with a beginning in common, of a hundred thousand tokens."""
    labels = [[*range(100), number // 300, number % 300, 2] for number in range(1000)]
    began = time.monotonic()
    branches = find_branches(labels)
    assert time.monotonic() - began < 5
    assert [len(branch.path) for branch in branches] == [100, 101, 101, 101, 101]


def test_the_paths_to_all_branches_have_no_more_tokens_than_the_labels() -> None:
    """So that a bound of the labels' tokens bounds a classification's passes: a chain has most."""
    chain = [[*range(10, 10 + depth), 500, 2] for depth in range(60)]
    branches = find_branches(chain)
    assert len(branches) == len(chain) - 1
    assert sum(len(branch.path) for branch in branches) <= sum(map(len, chain))


@pytest.mark.parametrize("labels", [[[10], [10, 11]], [[10, 11], [10]], [[10], [10]]])
def test_labels_that_cannot_be_told_apart_are_refused_in_any_order(labels: list[list[int]]) -> None:
    with pytest.raises(BadInput, match="expected none to be the beginning of another"):
        find_branches(labels)
