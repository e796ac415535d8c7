"""Attention over a pack of one level with a hand-written backward pass, for training.

A pack consists of segments. Some continue another segment: a beginning that all rows share, or the prompt of two
completions. Neighbouring segments of similar length attend together in batched products, one block of queries after the
other. The backward pass recomputes the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from appliance.ml.layers.architecture import Architecture, LayerKind
from appliance.ml.layers.head import Norm
from appliance.ml.layers.packing import Rotation, Segment, count_tokens, group_alike, hide_keys, rotate, rotate_backward
from appliance.ml.layers.scores import Scoring, attend, attention_weights, cap_scores, group_queries, split_queries


@dataclass(frozen=True)
class SegmentGroup:
    """Neighbouring segments, tokens `start` to `stop` of the pack, laid out for batched attention.

    `padded`, int64 [segments, longest], holds each segment's token indices in the pack, padded with the segment's last
    index. `own`, int64 [own tokens], indexes the segments' own tokens in the flattened `padded`; None without padding.
    Padding comes after the real tokens, so the causal mask hides it, and its output rows are discarded. Before its own
    tokens each segment sees `shared` tokens of the pack, starting at `first`.
    """

    start: int
    stop: int
    shared: int
    padded: torch.Tensor
    own: torch.Tensor | None
    first: int = 0
    _hidden: dict[int | None, torch.Tensor] = field(default_factory=dict, compare=False)

    def slides(self, window: int | None) -> bool:
        """Return True if a window of this many keys hides any key of the group."""
        return window is not None and window < self.shared + self.padded.shape[1]

    def hidden(self, window: int | None) -> torch.Tensor:
        """Return the mask of hidden keys, bool [longest, shared + longest]: later keys, and keys before the window."""
        window = window if self.slides(window) else None
        if window not in self._hidden:
            longest = self.padded.shape[1]
            self._hidden[window] = hide_keys(longest, self.shared + longest, window, self.padded.device)
        return self._hidden[window]


Layout = tuple[SegmentGroup, ...]


def lay_out(segments: Sequence[Segment], device: str) -> Layout:
    """Return the layout of a pack of one level, in which each segment comes after the one that it continues.

    Raises:
        ValueError: a segment continues more than one other segment.
    """
    groups = []
    for context, some in groupby(segments, key=lambda segment: segment.context):
        if len(context) > 1:
            raise ValueError("segments: expected at most one context for each, got more")
        span = context[0] if context else (0, 0)
        groups += [_lay_out_group(group, span, device) for group in group_alike(list(some), count_tokens)]
    return tuple(groups)


def _lay_out_group(segments: Sequence[Segment], span: tuple[int, int], device: str) -> SegmentGroup:
    sizes = [segment.stop - segment.start for segment in segments]
    longest = max(sizes)
    padded = [
        [*range(segment.start, segment.stop), *[segment.stop - 1] * (longest - size)]
        for segment, size in zip(segments, sizes, strict=True)
    ]
    own = [row * longest + column for row, size in enumerate(sizes) for column in range(size)]
    return SegmentGroup(
        segments[0].start,
        segments[-1].stop,
        span[1] - span[0],
        torch.tensor(padded, device=device),
        torch.tensor(own, device=device) if min(sizes) < longest else None,
        span[0],
    )


class Attention:
    """The attention of one layer, between its projections.

    The heads of a token are concatenated: its queries, then its keys, then its values.
    """

    def __init__(self, layer: Any, kind: LayerKind, architecture: Architecture) -> None:
        module = layer.self_attn
        self._query, self._key, self._size = architecture.heads, architecture.key_heads, module.head_dim
        self.scoring = Scoring(float(module.scaling), kind.window, architecture.softcap)
        self._row = architecture.row.head_norm == "row"
        # Norms of the queries and of the keys.
        self._norms = (
            [None]
            if architecture.row.head_norm == "none"
            else [Norm(module.q_norm, architecture.row), Norm(module.k_norm, architecture.row)]
        )

    def forward(self, flat: torch.Tensor, rotation: Rotation | None, layout: Layout) -> torch.Tensor:
        """Return the attention output [tokens, heads * size] of `flat` [tokens, (heads + 2 key heads) * size]."""
        heads = self._rotate_heads(self._split(flat), rotation)
        visible = flat.new_empty(len(flat), self._query, self._size)
        for group in layout:
            query, key, value = self._take(heads, group)
            visible[group.start : group.stop] = _flatten(attend_group(query, key, value, group, self.scoring), group)
        return visible.flatten(1)

    def backward(
        self,
        grad: torch.Tensor,
        flat: torch.Tensor,
        rotation: Rotation | None,
        layout: Layout,
    ) -> torch.Tensor:
        """Return the gradient of `flat`, given the gradient `grad` of the output of `forward`."""
        plain = self._split(flat)
        heads = self._rotate_heads(plain, rotation)
        grads = torch.empty_like(heads)
        grad = grad.view(len(flat), self._query, self._size)
        for group in layout:
            gradients = attend_group_backward(
                _pad(grad, group, fill=False), *self._take(heads, group), group, self.scoring
            )
            own = [gradients[0], *(one[:, :, group.shared :] for one in gradients[1:])]
            grads[group.start : group.stop] = _flatten(torch.cat(own, dim=1), group)
            if group.shared:
                root = torch.cat([one[:, :, : group.shared].sum(0) for one in gradients[1:]])
                grads[group.first : group.first + group.shared, self._query :] += root.transpose(0, 1)
        return self._rotate_heads_backward(grads, plain, rotation).flatten(1)

    def split(self, flat: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the query [tokens, heads, size] and key and value [tokens, key heads, size], query and key rotated."""
        turned = self._rotate_heads(self._split(flat), rotation)
        query, key, value = torch.split(turned, [self._query, self._key, self._key], dim=1)
        return query, key, value

    def _split(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.view(len(flat), -1, self._size)

    def _view_queries_and_keys(self, heads: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return views of the queries and keys of [tokens, heads, size]: one view without norms, otherwise two."""
        both = heads[:, : self._query + self._key]
        return [both] if self._norms == [None] else torch.split(both, [self._query, self._key], dim=1)

    def _rotate_heads(self, plain: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        """Return the heads with queries and keys normalised and rotated to their positions; values are unchanged."""
        turned = torch.empty_like(plain)
        for part, into, norm in zip(
            self._view_queries_and_keys(plain), self._view_queries_and_keys(turned), self._norms, strict=True
        ):
            normal = part if norm is None else norm.forward(self._shape_for_norm(part)).view(part.shape)
            if rotation is None:
                into.copy_(normal)
            else:
                rotate(normal, rotation, out=into)
        if rotation is not None and rotation.query_scale is not None:
            turned[:, : self._query] *= rotation.query_scale
        turned[:, self._query + self._key :] = plain[:, self._query + self._key :]
        return turned

    def _rotate_heads_backward(
        self, grads: torch.Tensor, plain: torch.Tensor, rotation: Rotation | None
    ) -> torch.Tensor:
        back = torch.empty_like(grads)
        if rotation is not None and rotation.query_scale is not None:
            grads[:, : self._query] *= rotation.query_scale
        for grad, into, part, norm in zip(
            self._view_queries_and_keys(grads),
            self._view_queries_and_keys(back),
            self._view_queries_and_keys(plain),
            self._norms,
            strict=True,
        ):
            if rotation is None:
                into.copy_(grad)
            else:
                rotate_backward(grad, rotation, out=into)
            if norm is not None:
                into.copy_(
                    norm.backward(self._shape_for_norm(into), *norm.divide(self._shape_for_norm(part))).view(into.shape)
                )
        back[:, self._query + self._key :] = grads[:, self._query + self._key :]
        return back

    def _shape_for_norm(self, part: torch.Tensor) -> torch.Tensor:
        """Return queries or keys in the shape that their norm takes: single heads, or all heads of a token in a row."""
        return part.flatten(1) if self._row else part

    def _take(self, heads: torch.Tensor, group: SegmentGroup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the group's query [segments, heads, longest, size] and its key and value.

        Key and value are [segments, key heads, shared + longest, size].
        """
        own = _pad(heads, group, fill=True)
        query, *visible = torch.split(own, [self._query, self._key, self._key], dim=1)
        if group.shared:
            root = (
                heads[group.first : group.first + group.shared, self._query :]
                .transpose(0, 1)
                .expand(len(own), -1, -1, -1)
            )
            visible = [
                torch.cat(pair, dim=2) for pair in zip(torch.split(root, self._key, dim=1), visible, strict=True)
            ]
        return query.contiguous(), visible[0].contiguous(), visible[1].contiguous()


def _pad(x: torch.Tensor, group: SegmentGroup, fill: bool) -> torch.Tensor:
    """Return x [tokens, heads, size] as [segments, heads, longest, size], padded with the last token or with zeros."""
    if group.own is None:
        rows = x[group.start : group.stop]
    elif fill:
        rows = x.index_select(0, group.padded.flatten())
    else:
        rows = x.new_zeros(group.padded.numel(), *x.shape[1:]).index_copy_(0, group.own, x[group.start : group.stop])
    return rows.view(*group.padded.shape, *x.shape[1:]).transpose(1, 2)


def _flatten(x: torch.Tensor, group: SegmentGroup) -> torch.Tensor:
    """Undo `_pad`: return [own tokens, heads, size] of [segments, heads, longest, size]."""
    rows = x.transpose(1, 2).flatten(0, 1)
    return rows if group.own is None else rows.index_select(0, group.own)


def attend_group(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: SegmentGroup, scoring: Scoring
) -> torch.Tensor:
    """Return the attention output of a group, [segments, heads, longest, size].

    On a CPU, or with a soft cap, the product is computed block by block; elsewhere torch chooses the kernel.
    """
    hidden = group.hidden(scoring.window)
    if query.device.type == "cpu" or scoring.softcap is not None:
        return attend(query, key, value, hidden, scoring, group.shared)
    # No CUDA kernel supports a mask together with shared key heads; torch would then hold all scores in memory.
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    if group.shared or group.slides(scoring.window):
        return scaled_dot_product_attention(query, key, value, attn_mask=~hidden, scale=scoring.scaling)
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scoring.scaling)


def attend_group_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: SegmentGroup,
    scoring: Scoring,
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of query, key and value; the scores are recomputed."""
    if query.device.type != "cpu" and scoring.softcap is None:
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        with torch.enable_grad():
            again = attend_group(leaves[0], leaves[1], leaves[2], group, scoring)
        return torch.autograd.grad(again, leaves, grad)
    hidden, count = group.hidden(scoring.window), query.shape[2]
    blocks = list(split_queries(count, group.shared, scoring.window))
    if len(blocks) == 1:
        return _attend_backward(grad, query, key, value, hidden, scoring)
    grads_query, totals = [], [torch.zeros_like(key), torch.zeros_like(value)]
    for part, visible in blocks:
        own = query[:, :, part], key[:, :, visible].contiguous(), value[:, :, visible].contiguous()
        gradients = _attend_backward(grad[:, :, part].contiguous(), *own, hidden[part, visible], scoring)
        grads_query.append(gradients[0])
        for total, one in zip(totals, gradients[1:], strict=True):
            total[:, :, visible] += one
    return torch.cat(grads_query, dim=2), *totals


def _attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    scoring: Scoring,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights, grouped = attention_weights(query, key, hidden, scoring), group_queries(grad, key)
    grad_value = group_queries(weights, key).transpose(1, 2) @ grouped
    grad_weights = (grouped @ value.flatten(0, 1).transpose(1, 2)).view_as(weights)
    scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    if scoring.softcap is not None:
        scores *= cap_scores(query, key, scoring).div_(scoring.softcap).square_().neg_().add_(1).to(scores.dtype)
    scores.mul_(scoring.scaling)
    grad_query = group_queries(scores, key) @ key.flatten(0, 1)
    grad_key = group_queries(scores, key).transpose(1, 2) @ group_queries(query, key)
    return grad_query.view_as(query), grad_key.view_as(key), grad_value.view_as(value)
