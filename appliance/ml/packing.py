"""Many short sequences in one row of tokens, none of which sees another: what makes small sets quick.

A pack is a list of segments, one behind the other. Each attends to itself, causally, and to the whole of its `context`,
the segments it continues: rows of one dataset share the prompt's beginning, which is computed once, and labels share
the row they answer. No mask is passed to the model (an all-ones mask lets segments see each other); the attention
itself takes the segments apart, and a test compares the logits with those of the sequences alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "appliance_segments"
# Queries times keys up to which all scores are held at once, for the backward pass too.
SMALL = 1 << 16
# The same for a batch of segments.
LARGE = 1 << 18
# Segments are filled up to one length where the longest is at most so much longer than the shortest.
SPREAD, SPARE = 1.2, 8


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `stop` of the pack; `context` holds the spans it continues, in order."""

    start: int
    stop: int
    context: tuple[tuple[int, int], ...] = ()

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """What a segment that continues this one has as its context."""
        return (*self.context, (self.start, self.stop))


@dataclass
class Pack:
    """Token ids and their positions, flat, and the segments."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def add(self, ids: Sequence[int], after: Segment | None = None) -> Segment:
        """Appends a segment; its positions go on where the context ends."""
        context = after.spans if after else ()
        first = sum(stop - start for start, stop in context)
        segment = Segment(len(self.ids), len(self.ids) + len(ids), context)
        self.ids += ids
        self.positions += range(first, first + len(ids))
        self.segments.append(segment)
        return segment

    def arguments(self, device: str) -> dict[str, Any]:
        """What the model is called with."""
        return {
            "input_ids": torch.tensor([self.ids], device=device),
            "position_ids": torch.tensor([self.positions], device=device),
            "segments": tuple(self.segments),
            "use_cache": False,
        }


def pack_sequences(sequences: Sequence[Sequence[int]], *, keep: int = 1) -> tuple[Pack, list[Segment]]:
    """One pack of all sequences, their common beginning once; at least `keep` last tokens of each are its own."""
    pack = Pack()
    shared = 0
    if len(sequences) > 1:
        shared = min(count_common(sequences), min(len(sequence) for sequence in sequences) - keep)
    root = pack.add(sequences[0][:shared]) if shared > 0 else None
    return pack, [pack.add(sequence[max(shared, 0) :], after=root) for sequence in sequences]


def count_common(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences have in common."""
    count = 0
    for column in zip(*sequences, strict=False):
        if any(token != column[0] for token in column):
            break
        count += 1
    return count


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    segments: tuple[Segment, ...] = (),
    rows: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for one row: by segments or by the `rows` of a cache (`ml/cache.py`) where given, else plain causal.

    query is [1, heads, tokens, size], key and value [1, key heads, tokens, size], the result [1, tokens, heads, size].
    """
    if query.shape[0] != 1 or attention_mask is not None:
        raise ValueError("one row without a mask is what this attention is for")
    if rows is not None:
        return rows.attend(module.layer_idx, query, key, value, scaling or query.shape[-1] ** -0.5).contiguous(), None
    if segments:
        output = _attend_segments(query, key, value, segments, scaling or query.shape[-1] ** -0.5)
    else:
        causal = query.shape[2] > 1
        output = scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


def _attend_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: tuple[Segment, ...], scaling: float
) -> torch.Tensor:
    """Taken apart by `split`, whose backward pass is one concatenation; slices would each fill a whole tensor."""
    sizes = [segment.stop - segment.start for segment in segments]
    places = {segment.start: number for number, segment in enumerate(segments)}
    queries, keys, values = (torch.split(tensor[0], sizes, dim=1) for tensor in (query, key, value))
    outputs = []
    for number, segment in enumerate(segments):
        spans = [places[start] for start, _ in segment.context] + [number]
        seen_keys, seen_values = (torch.cat([parts[span] for span in spans], dim=1) for parts in (keys, values))
        outputs.append(_attend_own(queries[number], seen_keys, seen_values, scaling))
    return torch.cat(outputs, dim=1)[None]


def _attend_own(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention, the last query at the last key, in float32 where it is small: quicker than a fused kernel.

    query is [heads, queries, size], key and value [key heads, keys, size]; several heads share one key head.
    """
    (heads, queries, size), (groups, keys, _) = query.shape, key.shape
    later = torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(keys - queries + 1)
    if queries * keys > SMALL:
        rows = (query[None], key[None], value[None])
        return scaled_dot_product_attention(*rows, attn_mask=~later, scale=scaling, enable_gqa=True)[0]
    shared = query.float().reshape(groups, heads // groups * queries, size) * scaling
    scores = (shared @ key.float().transpose(1, 2)).view(heads, queries, keys)
    weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
    output = weights.view(groups, heads // groups * queries, keys) @ value.float()
    return output.view(heads, queries, size).to(query.dtype)


AttentionInterface.register(ATTENTION, attend)


@dataclass(frozen=True)
class Group:
    """Neighbouring segments of about one length, laid out for a batched attention.

    `padded` is [segments, longest]: each segment's places in the pack, filled up with 0. `places` says where in it,
    flattened, the segments' own tokens stand. What fills up comes later than all it is filled up to, so `later`, the
    causal mask of [longest, root + longest], hides it; its own rows are never read.
    """

    padded: torch.Tensor
    places: torch.Tensor
    later: torch.Tensor


@dataclass(frozen=True)
class Layout:
    """A pack of one level: a common beginning of `root` tokens, seen by all segments, and the segments in groups."""

    root: int
    groups: tuple[Group, ...]


def lay_out(segments: Sequence[Segment], device: str) -> Layout:
    """The layout of `pack_sequences`; ValueError for a pack of more levels."""
    root = segments[0].stop if len(segments) > 1 and segments[1].context else 0
    leaves = segments[1:] if root else segments
    if any(leaf.context != (segments[0].spans if root else ()) for leaf in leaves):
        raise ValueError("a pack of one level is what this layout is for")
    return Layout(root, tuple(_lay_out_group(group, root, device) for group in _group(leaves)))


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


def _lay_out_group(leaves: Sequence[Segment], root: int, device: str) -> Group:
    longest = max(leaf.stop - leaf.start for leaf in leaves)
    padded = [[*range(leaf.start, leaf.stop), *[0] * (longest - leaf.stop + leaf.start)] for leaf in leaves]
    places = [row * longest + column for row, leaf in enumerate(leaves) for column in range(leaf.stop - leaf.start)]
    later = torch.ones(longest, root + longest, dtype=torch.bool, device=device).triu(root + 1)
    return Group(torch.tensor(padded, device=device), torch.tensor(places, device=device), later)


def attend_flat(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, turns: Any, layout: Layout
) -> torch.Tensor:
    """Attention of a pack, differentiable: query [tokens, heads * size], key and value [tokens, key heads * size]."""
    heads = [tensor.view(len(tensor), -1, module.head_dim) for tensor in (query, key, value)]
    heads = [_norm(module, name, tensor) for name, tensor in zip(("q_norm", "k_norm", ""), heads, strict=True)]
    heads = [turn(heads[0], *turns), turn(heads[1], *turns), heads[2]]
    parts = []
    root = [tensor[: layout.root].transpose(0, 1)[None] for tensor in heads]
    if layout.root:
        later = torch.ones(layout.root, layout.root, dtype=torch.bool, device=query.device).triu(1)
        parts.append(_attend_batch(root[0], root[1], root[2], later, module.scaling).transpose(1, 2)[0])
    for group in layout.groups:
        own = [_take(tensor, group.padded).transpose(1, 2) for tensor in heads]
        if layout.root:
            for number in (1, 2):
                shared = root[number].expand(len(group.padded), -1, -1, -1)
                own[number] = torch.cat([shared, own[number]], dim=2)
        output = _attend_batch(own[0], own[1], own[2], group.later, module.scaling).transpose(1, 2)
        parts.append(output.reshape(-1, *output.shape[2:]).index_select(0, group.places))
    return torch.cat(parts).flatten(1)


def _take(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """x [tokens, ...] at places [rows, columns]."""
    return x.index_select(0, places.flatten()).view(*places.shape, *x.shape[1:])


def _attend_batch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, later: torch.Tensor, scaling: float
) -> torch.Tensor:
    """query [rows, heads, queries, size], key and value [rows, key heads, keys, size]; `later` hides keys."""
    (rows, heads, queries, size), (_, groups, keys, _) = query.shape, key.shape
    if later.numel() > LARGE:
        return scaled_dot_product_attention(query, key, value, attn_mask=~later, scale=scaling, enable_gqa=True)
    shared = (query * scaling).reshape(rows * groups, heads // groups * queries, size)
    scores = shared @ key.reshape(rows * groups, keys, size).transpose(1, 2)
    weights = scores.view(rows, heads, queries, keys).masked_fill(later, float("-inf")).softmax(dim=-1)
    output = weights.view(rows * groups, -1, keys) @ value.reshape(rows * groups, keys, size)
    return output.view(rows, heads, queries, size)


def turn(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x is [tokens, heads, size], cosine and sine [tokens, size]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]


def _norm(module: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """Qwen3 normalises queries and keys by head."""
    norm = getattr(module, name, None) if name else None
    return x if norm is None else norm(x)
