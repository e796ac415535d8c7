"""Attention of a pack of one level, forward and backward by hand: what training goes through.

A pack is segments, of which some continue another one: the beginning that all rows share, or the prompt of two answers.
Neighbours of about one length attend together,
in batched products, a block of queries after the other; scores are made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from appliance.ml.layers.architecture import Architecture, LayerKind
from appliance.ml.layers.norms import Norm
from appliance.ml.layers.packing import Segment, count_tokens, group_alike, hide_keys
from appliance.ml.layers.positions import Rotation, rotate, rotate_backward
from appliance.ml.layers.scores import Scoring, attend, attention_weights, cap_scores, fold, split_queries


@dataclass(frozen=True)
class SegmentGroup:
    """Neighbouring segments, tokens `start` to `stop` of the pack, laid out for a batched attention.

    `padded` is [segments, longest]: each segment's places in the pack, filled up with its last. `own` says where in it,
    flattened, the segments' own tokens stand; None where nothing is filled up. What fills up comes later than all it is
    filled up to, so the causal mask hides it, and its own rows are never read. `shared`: how many tokens of the
    pack, from `first` on, each segment sees before its own.
    """

    start: int
    stop: int
    shared: int
    padded: torch.Tensor
    own: torch.Tensor | None
    first: int = 0
    _hidden: dict[int | None, torch.Tensor] = field(default_factory=dict, compare=False)

    def slides(self, window: int | None) -> bool:
        """Whether a window of so many keys hides any."""
        return window is not None and window < self.shared + self.padded.shape[1]

    def hidden(self, window: int | None) -> torch.Tensor:
        """[longest, shared + longest]: what no query of a segment sees, for what comes later or before the window."""
        window = window if self.slides(window) else None
        if window not in self._hidden:
            longest = self.padded.shape[1]
            self._hidden[window] = hide_keys(longest, self.shared + longest, window, self.padded.device)
        return self._hidden[window]


Layout = tuple[SegmentGroup, ...]


def lay_out(segments: Sequence[Segment], device: str) -> Layout:
    """The layout of a pack, what is continued before what continues it; ValueError for a pack of more levels."""
    groups = []
    for context, some in groupby(segments, key=lambda segment: segment.context):
        if len(context) > 1:
            raise ValueError("a pack of one level is what this layout is for")
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
    """A layer's attention between its projections. Queries, keys and values of a token stand behind one another."""

    def __init__(self, layer: Any, kind: LayerKind, architecture: Architecture) -> None:
        module = layer.self_attn
        self._query, self._key, self._size = architecture.heads, architecture.key_heads, module.head_dim
        self.scoring = Scoring(float(module.scaling), kind.window, architecture.softcap)
        self._row = architecture.row.head_norm == "row"
        # Queries and keys have norms of their own, or none.
        self._norms = (
            [None]
            if architecture.row.head_norm == "none"
            else [Norm(module.q_norm, architecture.row), Norm(module.k_norm, architecture.row)]
        )

    def forward(self, flat: torch.Tensor, rotation: Rotation | None, layout: Layout) -> torch.Tensor:
        """flat is [tokens, (heads + 2 key heads) * size]; the result [tokens, heads * size]."""
        heads = self._turned(self._split(flat), rotation)
        seen = flat.new_empty(len(flat), self._query, self._size)
        for group in layout:
            query, key, value = self._take(heads, group)
            seen[group.start : group.stop] = _flatten(attend_group(query, key, value, group, self.scoring), group)
        return seen.flatten(1)

    def backward(
        self,
        grad: torch.Tensor,
        flat: torch.Tensor,
        rotation: Rotation | None,
        layout: Layout,
    ) -> torch.Tensor:
        """The gradient of flat, of that of what was seen."""
        plain = self._split(flat)
        heads = self._turned(plain, rotation)
        grads = torch.empty_like(heads)
        grad = grad.view(len(flat), self._query, self._size)
        for group in layout:
            found = attend_group_backward(_pad(grad, group, fill=False), *self._take(heads, group), group, self.scoring)
            own = [found[0], *(one[:, :, group.shared :] for one in found[1:])]
            grads[group.start : group.stop] = _flatten(torch.cat(own, dim=1), group)
            if group.shared:
                root = torch.cat([one[:, :, : group.shared].sum(0) for one in found[1:]])
                grads[group.first : group.first + group.shared, self._query :] += root.transpose(0, 1)
        return self._turned_back(grads, plain, rotation).flatten(1)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
        """[tokens, heads, size] of what `split` gives."""
        heads = torch.cat([query, key, value], dim=1)
        seen = torch.empty_like(query)
        for group in layout:
            seen[group.start : group.stop] = _flatten(
                attend_group(*self._take(heads, group), group, self.scoring), group
            )
        return seen

    def split(self, flat: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [tokens, heads, size], key and value [tokens, key heads, size], turned to their positions."""
        turned = self._turned(self._split(flat), rotation)
        query, key, value = torch.split(turned, [self._query, self._key, self._key], dim=1)
        return query, key, value

    def _split(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.view(len(flat), -1, self._size)

    def _parts(self, heads: torch.Tensor) -> Sequence[torch.Tensor]:
        """Queries and keys of [tokens, heads, size]: what is turned, in one where each has no norm of its own."""
        both = heads[:, : self._query + self._key]
        return [both] if self._norms == [None] else torch.split(both, [self._query, self._key], dim=1)

    def _turned(self, plain: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        """Queries and keys with their positions; values as they are."""
        turned = torch.empty_like(plain)
        for part, into, norm in zip(self._parts(plain), self._parts(turned), self._norms, strict=True):
            normal = part if norm is None else norm.forward(self._joined(part)).view(part.shape)
            if rotation is None:
                into.copy_(normal)
            else:
                rotate(normal, rotation, out=into)
        if rotation is not None and rotation.query_scale is not None:
            turned[:, : self._query] *= rotation.query_scale
        turned[:, self._query + self._key :] = plain[:, self._query + self._key :]
        return turned

    def _turned_back(self, grads: torch.Tensor, plain: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        back = torch.empty_like(grads)
        if rotation is not None and rotation.query_scale is not None:
            grads[:, : self._query] *= rotation.query_scale
        for grad, into, part, norm in zip(
            self._parts(grads), self._parts(back), self._parts(plain), self._norms, strict=True
        ):
            if rotation is None:
                into.copy_(grad)
            else:
                rotate_backward(grad, rotation, out=into)
            if norm is not None:
                into.copy_(norm.backward(self._joined(into), *norm.divide(self._joined(part))).view(into.shape))
        back[:, self._query + self._key :] = grads[:, self._query + self._key :]
        return back

    def _joined(self, part: torch.Tensor) -> torch.Tensor:
        """What a norm of queries or keys sees: each head by itself, or all of a token's in a row."""
        return part.flatten(1) if self._row else part

    def _take(self, heads: torch.Tensor, group: SegmentGroup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [segments, heads, longest, size], key and value [segments, key heads, shared + longest, size]."""
        own = _pad(heads, group, fill=True)
        query, *seen = torch.split(own, [self._query, self._key, self._key], dim=1)
        if group.shared:
            root = (
                heads[group.first : group.first + group.shared, self._query :]
                .transpose(0, 1)
                .expand(len(own), -1, -1, -1)
            )
            seen = [torch.cat(pair, dim=2) for pair in zip(torch.split(root, self._key, dim=1), seen, strict=True)]
        return query.contiguous(), seen[0].contiguous(), seen[1].contiguous()


def _pad(x: torch.Tensor, group: SegmentGroup, fill: bool) -> torch.Tensor:
    """x [tokens, heads, size] as [segments, heads, longest, size]; filled up with itself, or with zeros."""
    if group.own is None:
        rows = x[group.start : group.stop]
    elif fill:
        rows = x.index_select(0, group.padded.flatten())
    else:
        rows = x.new_zeros(group.padded.numel(), *x.shape[1:]).index_copy_(0, group.own, x[group.start : group.stop])
    return rows.view(*group.padded.shape, *x.shape[1:]).transpose(1, 2)


def _flatten(x: torch.Tensor, group: SegmentGroup) -> torch.Tensor:
    """The same back: [own tokens, heads, size]."""
    rows = x.transpose(1, 2).flatten(0, 1)
    return rows if group.own is None else rows.index_select(0, group.own)


def attend_group(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: SegmentGroup, scoring: Scoring
) -> torch.Tensor:
    """What the group's queries see, [segments, heads, longest, size]: on the CPU block by block, elsewhere by what
    torch chooses."""
    hidden = group.hidden(scoring.window)
    if query.device.type == "cpu" or scoring.softcap is not None:
        return attend(query, key, value, hidden, scoring, group.shared)
    # No kernel of CUDA takes both a mask and key heads that several heads share: torch would hold all scores then.
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
    """The gradients of query, key and value; scores are made again."""
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
    for part, seen in blocks:
        own = query[:, :, part], key[:, :, seen].contiguous(), value[:, :, seen].contiguous()
        found = _attend_backward(grad[:, :, part].contiguous(), *own, hidden[part, seen], scoring)
        grads_query.append(found[0])
        for total, one in zip(totals, found[1:], strict=True):
            total[:, :, seen] += one
    return torch.cat(grads_query, dim=2), *totals


def _attend_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    scoring: Scoring,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights, folded = attention_weights(query, key, hidden, scoring), fold(grad, key)
    grad_value = fold(weights, key).transpose(1, 2) @ folded
    grad_weights = (folded @ value.flatten(0, 1).transpose(1, 2)).view_as(weights)
    scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    if scoring.softcap is not None:
        scores *= cap_scores(query, key, scoring).div_(scoring.softcap).square_().neg_().add_(1).to(scores.dtype)
    scores.mul_(scoring.scaling)
    grad_query = fold(scores, key) @ key.flatten(0, 1)
    grad_key = fold(scores, key).transpose(1, 2) @ fold(query, key)
    return grad_query.view_as(query), grad_key.view_as(key), grad_value.view_as(value)
