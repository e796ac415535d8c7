"""Attention scores written out: scaled, soft-capped, hidden, and their softmax in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scoring:
    """How a layer's queries score keys: query times key times `scaling`, s then as cap tanh(s / cap); a query sees the
    last `window` keys, its own among them, or all."""

    scaling: float
    window: int | None = None
    softcap: float | None = None


def fold(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[rows, heads, queries, ...] as [rows * key heads, heads a key head * queries, ...]: they share a key."""
    return x.reshape(key.shape[0] * key.shape[1], -1, x.shape[-1])


def cap_scores(query: torch.Tensor, key: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """[rows, heads, queries, keys], float32, none hidden; query [rows, heads, queries, size], key [rows, key heads,
    keys, size]."""
    scores = fold(query * scoring.scaling, key) @ key.flatten(0, 1).transpose(1, 2)
    wide = scores.view(*query.shape[:3], -1).float()
    return wide if scoring.softcap is None else wide.div_(scoring.softcap).tanh_().mul_(scoring.softcap)


def attention_weights(query: torch.Tensor, key: torch.Tensor, hidden: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Attention weights, [rows, heads, queries, keys]: the scores' softmax in float32, 0 where `hidden` is true."""
    scores = cap_scores(query, key, scoring).masked_fill_(hidden, float("-inf"))
    return scores.softmax(dim=-1).to(query.dtype)
