"""Attention scores computed explicitly: scaled, soft-capped, masked, with a softmax in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from appliance.domain.planning.packs import SCORE_BLOCK


@dataclass(frozen=True)
class Scoring:
    """Parameters of a layer's attention scores.

    A score is s = `scaling` * query · key, then c tanh(s / c) with c = `softcap`. A query sees the last `window` keys,
    its own included; all if None.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


def group_queries(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Group the queries that share a key head.

    Return [rows, heads, queries, size] as [rows * key heads, (heads / key heads) * queries, size].
    """
    return x.reshape(key.shape[0] * key.shape[1], -1, x.shape[-1])


def cap_scores(query: torch.Tensor, key: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Return the scores without a mask, float32 [rows, heads, queries, keys].

    `query` is [rows, heads, queries, size]; `key` is [rows, key heads, keys, size].
    """
    scores = group_queries(query * scoring.scaling, key) @ key.flatten(0, 1).transpose(1, 2)
    wide = scores.view(*query.shape[:3], -1).float()
    # The last product is not in place: the gradient of tanh needs its output.
    return wide if scoring.softcap is None else wide.div_(scoring.softcap).tanh_() * scoring.softcap


def attention_weights(query: torch.Tensor, key: torch.Tensor, hidden: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Return the softmax of the scores, [rows, heads, queries, keys], 0 where `hidden` is True.

    The softmax is computed in float32; the result has the query's dtype.
    """
    scores = cap_scores(query, key, scoring).masked_fill_(hidden, float("-inf"))
    return scores.softmax(dim=-1).to(query.dtype)


def split_queries(queries: int, shared: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of queries, and the range of keys that a block may see; query i sees keys up to `shared` + i."""
    for start in range(0, queries, SCORE_BLOCK):
        stop = min(queries, start + SCORE_BLOCK)
        first = 0 if window is None else max(0, shared + start - window + 1)
        yield slice(start, stop), slice(first, shared + stop)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    scoring: Scoring,
    shared: int | None = None,
) -> torch.Tensor:
    """Return the attention output [rows, heads, queries, size], block by block.

    `hidden` is as in `attention_weights`. With `shared`, query i sees no key after `shared` + i, and keys that no query
    of a block sees are skipped.
    """
    count, keys = query.shape[2], key.shape[2]
    outputs = []
    blocks = split_queries(count, keys, None) if shared is None else split_queries(count, shared, scoring.window)
    for part, seen in blocks:
        some, own, values = query[:, :, part], key[:, :, seen], value[:, :, seen]
        weights = attention_weights(some, own, hidden[..., part, seen], scoring)
        outputs.append((group_queries(weights, key) @ values.flatten(0, 1)).view_as(some))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
