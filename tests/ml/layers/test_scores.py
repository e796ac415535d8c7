"""Attention scores that are written out, and their gradient."""

from __future__ import annotations

import torch

from appliance.ml.layers.scores import Scoring, attend


def test_the_gradient_of_capped_scores_is_that_of_their_formula() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 5, 8, requires_grad=True) for heads in (4, 2, 2))
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    made = attend(query, key, value, hidden, Scoring(scaling=0.5, softcap=3.0))
    whole = [part.repeat_interleave(2, dim=1) for part in (key, value)]
    scores = 3 * torch.tanh(query * 0.5 @ whole[0].transpose(2, 3) / 3)
    expected = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ whole[1]
    torch.testing.assert_close(made, expected)
    inputs = (query, key, value)
    for one, other in zip(
        torch.autograd.grad(made.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
