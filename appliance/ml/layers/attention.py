"""Attention of a pack of one level, forward and backward by hand: what training goes through.

A pack is a common beginning, which all segments see, and the segments. Neighbours of about one length attend together,
in one batched product. Short ones hold their scores, which are made again in the backward pass; long ones go through
a fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from appliance.ml.layers.norms import divide_by_rms, normalise, normalise_backward
from appliance.ml.layers.packing import Segment

# Queries times keys of a segment from which scores are not held whole.
LARGE = 1 << 18
# Segments are filled up to one length where the longest is at most so much longer than the shortest.
SPREAD, SPARE = 1.2, 32

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class SegmentGroup:
    """Neighbouring segments, tokens `start` to `stop` of the pack, laid out for a batched attention.

    `padded` is [segments, longest]: each segment's places in the pack, filled up with its last. `own` says where in it,
    flattened, the segments' own tokens stand; None where nothing is filled up. What fills up comes later than all it is
    filled up to, so the causal mask hides it, and its own rows are never read. `shared`: first tokens of the pack that
    each segment sees before its own; `later`, [longest, shared + longest], hides keys.
    """

    start: int
    stop: int
    shared: int
    padded: torch.Tensor
    own: torch.Tensor | None
    later: torch.Tensor

    @property
    def is_large(self) -> bool:
        return self.later.numel() > LARGE


Layout = tuple[SegmentGroup, ...]


def lay_out(segments: Sequence[Segment], device: str) -> Layout:
    """The layout of `pack_sequences`, the common beginning a group of its own; ValueError for a pack of more levels."""
    root = segments[0].stop if len(segments) > 1 and segments[1].context else 0
    leaves = segments[1:] if root else segments
    if any(leaf.context != (segments[0].spans if root else ()) for leaf in leaves):
        raise ValueError("a pack of one level is what this layout is for")
    first = [_lay_out_group(segments[:1], 0, device)] if root else []
    return (*first, *(_lay_out_group(group, root, device) for group in _group(leaves)))


def _group(leaves: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Neighbours, as long as the longest is not much longer than the shortest: filling up costs by the square."""
    group: list[Segment] = []
    for leaf in leaves:
        sizes = [other.stop - other.start for other in (*group, leaf)]
        if group and max(sizes) > SPREAD * min(sizes) + SPARE:
            yield group
            group = []
        group.append(leaf)
    yield group


def _lay_out_group(segments: Sequence[Segment], shared: int, device: str) -> SegmentGroup:
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
        shared,
        torch.tensor(padded, device=device),
        torch.tensor(own, device=device) if min(sizes) < longest else None,
        torch.ones(longest, shared + longest, dtype=torch.bool, device=device).triu(shared + 1),
    )


class Attention:
    """A layer's attention between its projections. Queries, keys and values of a token stand behind one another."""

    def __init__(self, module: Any) -> None:
        size = module.head_dim
        self._query, self._key = module.q_proj.out_features // size, module.k_proj.out_features // size
        self._size, self._scaling = size, module.scaling
        # Qwen3 normalises queries and keys by head.
        self._norms = [module.q_norm, module.k_norm] if hasattr(module, "q_norm") else [None]

    def forward(self, flat: torch.Tensor, turns: Any, layout: Layout) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """flat is [tokens, (heads + 2 key heads) * size]; the result [tokens, heads * size], and of each group what the
        fused kernel needs again: the logarithm of each query's sum."""
        heads = self._turned(self._split(flat), turns)
        seen = flat.new_empty(len(flat), self._query, self._size)
        sums = []
        for group in layout:
            query, key, value = self._take(heads, group)
            if group.is_large:
                output, kept = _attend_fused(query, key, value, group, self._scaling)
            else:
                weights = _attention_weights(query, key, group.later, self._scaling)
                output, kept = (_fold(weights, key) @ value.flatten(0, 1)).view_as(query), None
            seen[group.start : group.stop] = _flatten(output, group)
            sums.append(kept)
        return seen.flatten(1), sums

    def backward(
        self,
        grad: torch.Tensor,
        flat: torch.Tensor,
        seen: torch.Tensor,
        sums: Sequence[torch.Tensor | None],
        turns: Any,
        layout: Layout,
    ) -> torch.Tensor:
        """The gradient of flat, of that of what was seen."""
        plain = self._split(flat)
        heads = self._turned(plain, turns)
        grads = torch.empty_like(heads)
        parts = [tensor.view(len(flat), self._query, self._size) for tensor in (grad, seen)]
        for group, kept in zip(layout, sums, strict=True):
            taken = self._take(heads, group)
            grad_output, output = (_pad(part, group, fill) for part, fill in zip(parts, (False, True), strict=True))
            if group.is_large:
                found = _attend_fused_backward(grad_output, *taken, output, kept, group, self._scaling)
            else:
                found = _attend_backward(grad_output, *taken, group.later, self._scaling)
            own = [found[0], *(one[:, :, group.shared :] for one in found[1:])]
            grads[group.start : group.stop] = _flatten(torch.cat(own, dim=1), group)
            if group.shared:
                root = torch.cat([one[:, :, : group.shared].sum(0) for one in found[1:]])
                grads[: group.shared, self._query :] += root.transpose(0, 1)
        return self._turned_back(grads, plain, turns).flatten(1)

    def _split(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.view(len(flat), -1, self._size)

    def _parts(self, heads: torch.Tensor) -> Sequence[torch.Tensor]:
        """Queries and keys of [tokens, heads, size]: what is turned, in one where each has no norm of its own."""
        both = heads[:, : self._query + self._key]
        return [both] if self._norms == [None] else torch.split(both, [self._query, self._key], dim=1)

    def _turned(self, plain: torch.Tensor, turns: Any) -> torch.Tensor:
        """Queries and keys with their positions; values as they are."""
        turned = torch.empty_like(plain)
        for part, into, norm in zip(self._parts(plain), self._parts(turned), self._norms, strict=True):
            rotate(part if norm is None else normalise(part, norm), *turns, out=into)
        turned[:, self._query + self._key :] = plain[:, self._query + self._key :]
        return turned

    def _turned_back(self, grads: torch.Tensor, plain: torch.Tensor, turns: Any) -> torch.Tensor:
        back = torch.empty_like(grads)
        for grad, into, part, norm in zip(
            self._parts(grads), self._parts(back), self._parts(plain), self._norms, strict=True
        ):
            rotate_backward(grad, *turns, out=into)
            if norm is not None:
                into.copy_(normalise_backward(into, *divide_by_rms(part, norm), norm))
        back[:, self._query + self._key :] = grads[:, self._query + self._key :]
        return back

    def _take(self, heads: torch.Tensor, group: SegmentGroup) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [segments, heads, longest, size], key and value [segments, key heads, shared + longest, size]."""
        own = _pad(heads, group, fill=True)
        query, *seen = torch.split(own, [self._query, self._key, self._key], dim=1)
        if group.shared:
            root = heads[: group.shared, self._query :].transpose(0, 1).expand(len(own), -1, -1, -1)
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


def _fold(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[segments, heads, queries, ...] as [segments * key heads, heads a key head * queries, ...]: they share a key."""
    return x.reshape(key.shape[0] * key.shape[1], -1, x.shape[-1])


def _attention_weights(query: torch.Tensor, key: torch.Tensor, later: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention weights [segments, heads, queries, keys], their softmax in float32."""
    scores = _fold(query * scaling, key) @ key.flatten(0, 1).transpose(1, 2)
    wide = scores.view(*query.shape[:3], -1).float()
    return wide.masked_fill_(later, float("-inf")).softmax(dim=-1).to(query.dtype)


def _attend_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, later: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights, folded = _attention_weights(query, key, later, scaling), _fold(grad, key)
    grad_value = _fold(weights, key).transpose(1, 2) @ folded
    grad_weights = (folded @ value.flatten(0, 1).transpose(1, 2)).view_as(weights)
    scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(scaling)
    grad_query = _fold(scores, key) @ key.flatten(0, 1)
    grad_key = _fold(scores, key).transpose(1, 2) @ _fold(query, key)
    return grad_query.view_as(query), grad_key.view_as(key), grad_value.view_as(value)


def _attend_fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: SegmentGroup, scaling: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """On the CPU torch's own kernel, whose sums are kept; elsewhere what torch chooses, done again when needed."""
    if query.device.type != "cpu":
        return scaled_dot_product_attention(
            query, key, value, attn_mask=~group.later, scale=scaling, enable_gqa=True
        ), None
    output, sums = _forward(
        query, *_repeat(query, key, value), 0.0, not group.shared, **_masked(query, group), scale=scaling
    )
    return output, sums


def _attend_fused_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor | None,
    group: SegmentGroup,
    scaling: float,
) -> tuple[torch.Tensor, ...]:
    if sums is None:
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        with torch.enable_grad():
            again, _ = _attend_fused(leaves[0], leaves[1], leaves[2], group, scaling)
        return torch.autograd.grad(again, leaves, grad)
    keys, values = _repeat(query, key, value)
    found = _backward(
        grad, query, keys, values, output, sums, 0.0, not group.shared, **_masked(query, group), scale=scaling
    )
    return found[0], *(one.view(*key.shape[:2], -1, *key.shape[2:]).sum(2) for one in found[1:])


def _masked(query: torch.Tensor, group: SegmentGroup) -> dict[str, torch.Tensor]:
    """What the kernel adds to the scores: where nothing is shared, it knows the causal mask itself."""
    if not group.shared:
        return {}
    mask = torch.zeros(group.later.shape, dtype=query.dtype, device=query.device)
    return {"attn_mask": mask.masked_fill_(group.later, float("-inf"))}


def _repeat(query: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Key heads as often as there are heads."""
    return [tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in tensors]


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, out: torch.Tensor) -> None:
    """Rotary positions (https://arxiv.org/abs/2104.09864): x [tokens, heads, size], cosine and sine [tokens, size]."""
    torch.mul(x, cosine[:, None], out=out)
    (first, second), (early, late) = x.chunk(2, dim=-1), sine[:, None].chunk(2, dim=-1)
    into = out.chunk(2, dim=-1)
    into[0].addcmul_(second, early, value=-1)
    into[1].addcmul_(first, late)


def rotate_backward(grad: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, *, out: torch.Tensor) -> None:
    """The gradient of x: the same turn the other way."""
    torch.mul(grad, cosine[:, None], out=out)
    (first, second), (early, late) = grad.chunk(2, dim=-1), sine[:, None].chunk(2, dim=-1)
    into = out.chunk(2, dim=-1)
    into[0].addcmul_(second, late)
    into[1].addcmul_(first, early, value=-1)
