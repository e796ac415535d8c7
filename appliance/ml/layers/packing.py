"""Packs: many short sequences in one row of tokens, isolated from each other, which makes small datasets fast.

A pack is a sequence of segments. Each attends causally to itself and to all of its `context`, the segments that it
continues: rows of a dataset share the prompt's beginning, which is computed once, and labels share the row that they
follow. The model receives no mask (an all-ones mask lets segments see each other). The attention function separates the
segments; a test compares the logits with those of the single sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import AttentionInterface
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from appliance.domain.planning.packs import count_common
from appliance.ml.layers.architecture import Architecture
from appliance.ml.layers.scores import Scoring
from appliance.ml.layers.scores import attend as attend_blocks

ATTENTION = "appliance_segments"
# Items are padded to a common size if the largest is at most SPREAD times the smallest plus SPARE tokens.
SPREAD, SPARE = 1.2, 32


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `stop` of the pack; `context` holds the spans that it continues, in order."""

    start: int
    stop: int
    context: tuple[tuple[int, int], ...] = ()

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The context of a segment that continues this one."""
        return (*self.context, (self.start, self.stop))


@dataclass
class Pack:
    """Token ids and positions, each a flat list, and the segments."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def add(self, ids: Sequence[int], after: Segment | None = None) -> Segment:
        """Append a segment and return it; its positions continue those of its context."""
        context = after.spans if after else ()
        first = sum(stop - start for start, stop in context)
        segment = Segment(len(self.ids), len(self.ids) + len(ids), context)
        self.ids += ids
        self.positions += range(first, first + len(ids))
        self.segments.append(segment)
        return segment

    def find_long(self, most: int) -> list[bool]:
        """Return for each token True if its sequence has more than `most` tokens.

        The longest of the segments that share a beginning decides for all of them.
        """
        long = [sum(b - a for a, b in segment.spans) > most for segment in self.segments]
        places = {segment.start: place for place, segment in enumerate(self.segments)}
        contexts = [[places[start] for start, _ in segment.context] for segment in self.segments]
        for place in reversed(range(len(long))):
            for before in contexts[place]:
                long[before] |= long[place]
        for place, context in enumerate(contexts):
            long[place] |= any(long[before] for before in context)
        return [
            mark for segment, mark in zip(self.segments, long, strict=True) for _ in range(segment.stop - segment.start)
        ]

    def arguments(self, device: str) -> dict[str, Any]:
        """Return the keyword arguments of the model's forward call."""
        return {
            "input_ids": torch.tensor([self.ids], device=device),
            "position_ids": torch.tensor([self.positions], device=device),
            "segments": tuple(self.segments),
            "use_cache": False,
        }


def pack_sequences(
    sequences: Sequence[Sequence[int]], *, keep: int = 1, longest_short: int | None = None
) -> tuple[Pack, list[Segment]]:
    """Return one pack of all sequences with their common beginning stored once, and the segment of each sequence.

    At least the last `keep` tokens of each sequence are its own. Sequences of more than `longest_short` tokens have
    other rotary angles, so they share nothing with shorter ones.
    """
    pack = Pack()
    shared = 0
    kinds = {longest_short is not None and len(sequence) > longest_short for sequence in sequences}
    if len(sequences) > 1 and len(kinds) == 1:
        shared = min(count_common(sequences), min(len(sequence) for sequence in sequences) - keep)
    root = pack.add(sequences[0][:shared]) if shared > 0 else None
    return pack, [pack.add(sequence[max(shared, 0) :], after=root) for sequence in sequences]


def pack_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]],
) -> tuple[Pack, list[tuple[Segment, Segment, Segment]]]:
    """Return one pack of (prompt, completion, other completion), and the three segments of each.

    Each prompt is computed once, and both of its completions continue it.
    """
    pack = Pack()
    prompts = [pack.add(prompt) for prompt, _, _ in pairs]
    return pack, [
        (prompt, pack.add(one, after=prompt), pack.add(other, after=prompt))
        for prompt, (_, one, other) in zip(prompts, pairs, strict=True)
    ]


T = TypeVar("T")


def group_alike(items: Sequence[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield runs of neighbouring items of similar size, since the cost of padding grows with its square."""
    group: list[T] = []
    for item in items:
        sizes = [size(other) for other in (*group, item)]
        if group and max(sizes) > SPREAD * min(sizes) + SPARE:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def count_tokens(segment: Segment) -> int:
    """Return the number of the segment's own tokens, without its context."""
    return segment.stop - segment.start


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: tuple[Segment, ...] = (),
    rows: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for one row: by `segments`, or by `rows` (see `PassAttention`), otherwise plain causal.

    `query` is [1, heads, tokens, size], `key` and `value` are [1, key heads, tokens, size], and the result is [1,
    tokens, heads, size].

    Raises:
        ValueError: the batch has more than one row, or there is a mask.
    """
    if query.shape[0] != 1 or attention_mask is not None:
        raise ValueError("one row without a mask is what this attention is for")
    scoring = Scoring(scaling or query.shape[-1] ** -0.5, sliding_window, softcap)
    if rows is not None:
        flat = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        return rows.attend(module.layer_idx, *flat, scoring)[None].contiguous(), None
    segments = segments or (Segment(0, query.shape[2]),)
    return _attend_segments(query, key, value, segments, scoring).transpose(1, 2).contiguous(), None


def _attend_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: tuple[Segment, ...], scoring: Scoring
) -> torch.Tensor:
    """Attend each segment to its context and itself.

    The tensors are separated with `split`, whose backward pass is one concatenation; slices would each fill a whole
    tensor.
    """
    sizes = [segment.stop - segment.start for segment in segments]
    places = {segment.start: number for number, segment in enumerate(segments)}
    queries, keys, values = (torch.split(tensor[0], sizes, dim=1) for tensor in (query, key, value))
    outputs = []
    for number, segment in enumerate(segments):
        spans = [places[start] for start, _ in segment.context] + [number]
        seen_keys, seen_values = (torch.cat([parts[span] for span in spans], dim=1) for parts in (keys, values))
        outputs.append(attend_causal(queries[number], seen_keys, seen_values, scoring))
    return torch.cat(outputs, dim=1)[None]


def attend_causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """Return causal attention [heads, queries, size], with the last query at the last key.

    `query` is [heads, queries, size]; `key` and `value` are [key heads, keys, size]; several heads share one key head.
    """
    queries, keys = query.shape[1], key.shape[1]
    hidden = hide_keys(queries, keys, scoring.window, query.device)
    return attend_blocks(query[None], key[None], value[None], hidden, scoring, keys - queries)[0]


def hide_keys(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return the mask of hidden keys, bool [queries, keys], for the last `queries` of `keys` tokens."""
    all_keys = torch.ones(queries, keys, dtype=torch.bool, device=device)
    later = all_keys.triu(keys - queries + 1)
    return later if window is None or window >= keys else later | all_keys.tril(keys - queries - window)


AttentionInterface.register(ATTENTION, attend)


@dataclass(frozen=True)
class Rotation:
    """Rotary factors of tokens: cosine and sine [tokens, rotated size], and the query scale [tokens, 1, 1] or None."""

    cosine: torch.Tensor
    sine: torch.Tensor
    query_scale: torch.Tensor | None = None


Rotations = dict[str | None, Rotation | None]
"""Rotary factors by `LayerKind.rope`; None for layers without positions."""


@dataclass(frozen=True)
class _Angles:
    frequencies: torch.Tensor
    long_frequencies: torch.Tensor | None
    scaling: float


class Positions:
    """The rotary angles of one model."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        self._architecture = architecture
        ropes = sorted({kind.rope for kind in architecture.kinds if kind.rope is not None})
        self._angles = {rope: _read_angles(model, rope) for rope in ropes}
        self.longest_short = find_longest_short(model.config)
        """Largest number of tokens of a sequence that uses the first set of angles; None if the model has one set."""

    def rotations(self, positions: torch.Tensor, dtype: torch.dtype, long: torch.Tensor | None = None) -> Rotations:
        """Return the rotary factors of tokens at `positions` [tokens]; `long`, bool [tokens], marks long sequences."""
        scale = None
        if self._architecture.query_scaling is not None:
            beta, length = self._architecture.query_scaling
            scale = (1 + beta * torch.log(1 + torch.floor(positions / length)))[:, None, None].to(dtype)
        rotations: Rotations = {None: None}
        for rope, angles in self._angles.items():
            turned = positions[:, None].float() * angles.frequencies
            if long is not None and angles.long_frequencies is not None:
                turned = torch.where(long[:, None], positions[:, None].float() * angles.long_frequencies, turned)
            both = torch.cat([turned, turned], dim=-1)
            cosine, sine = both.cos() * angles.scaling, both.sin() * angles.scaling
            rotations[rope] = Rotation(cosine.to(dtype), sine.to(dtype), scale)
        return rotations

    def rotations_of(self, pack: Pack, hidden: torch.Tensor) -> Rotations:
        """Return the rotary factors of a pack's tokens, on the device and in the dtype of `hidden`."""
        positions = torch.tensor(pack.positions, device=hidden.device)
        long = None
        if self.longest_short is not None:
            long = torch.tensor(pack.find_long(self.longest_short), device=hidden.device)
        return self.rotations(positions, hidden.dtype, long)


def find_longest_short(config: Any) -> int | None:
    """Return the largest number of tokens for the model's first set of angles; None if it has no second set."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") != "longrope":
        return None
    return int(parameters["original_max_position_embeddings"])


def _read_angles(model: Any, rope: str) -> _Angles:
    """Return the original angles: the library's own buffer may currently hold either set."""
    rotary, prefix = model.rotary_emb, f"{rope}_" if rope else ""
    original: torch.Tensor = getattr(rotary, f"{prefix}original_inv_freq")
    long, length = None, find_longest_short(model.config)
    if length is not None:
        long, _ = ROPE_INIT_FUNCTIONS["longrope"](model.config, original.device, seq_len=length + 1)
    return _Angles(original.float(), long, float(getattr(rotary, f"{prefix}attention_scaling")))


def rotate(x: torch.Tensor, rotation: Rotation, *, out: torch.Tensor) -> None:
    """Write x [tokens, heads, size], rotated, to `out`; sizes beyond those of `rotation` are copied."""
    x, out, cosine, sine = _narrow(x, rotation, out)
    torch.mul(x, cosine, out=out)
    (first, second), (early, late) = x.chunk(2, dim=-1), sine.chunk(2, dim=-1)
    into = out.chunk(2, dim=-1)
    into[0].addcmul_(second, early, value=-1)
    into[1].addcmul_(first, late)


def rotate_backward(grad: torch.Tensor, rotation: Rotation, *, out: torch.Tensor) -> None:
    """Write the gradient of x to `out`: the inverse rotation of `grad`."""
    grad, out, cosine, sine = _narrow(grad, rotation, out)
    torch.mul(grad, cosine, out=out)
    (first, second), (early, late) = grad.chunk(2, dim=-1), sine.chunk(2, dim=-1)
    into = out.chunk(2, dim=-1)
    into[0].addcmul_(second, late)
    into[1].addcmul_(first, early, value=-1)


def _narrow(
    x: torch.Tensor, rotation: Rotation, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    turned = rotation.cosine.shape[-1]
    if turned < x.shape[-1]:
        out[..., turned:] = x[..., turned:]
        x, out = x[..., :turned], out[..., :turned]
    return x, out, rotation.cosine[:, None], rotation.sine[:, None]
