"""Many short sequences in one row of tokens, none of which sees another: what makes small sets quick.

A pack is a list of segments, one behind the other. Each attends to itself, causally, and to the whole of its `context`,
the segments it continues: rows of one dataset share the prompt's beginning, which is computed once, and labels share
the row they answer. No mask is passed to the model (an all-ones mask lets segments see each other); the attention
itself takes the segments apart, and a test compares the logits with those of the sequences alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import AttentionInterface

from appliance.ml.layers.scores import Scoring
from appliance.ml.layers.scores import attend as attend_blocks

ATTENTION = "appliance_segments"
# What attends together is filled up to one size where the largest is at most so much larger than the smallest.
SPREAD, SPARE = 1.2, 32


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

    def find_long(self, most: int) -> list[bool]:
        """Of each token whether its sequence has more than so many tokens. A segment and all that share a beginning
        with it are long together: the longest of them decides."""
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
        """What the model is called with."""
        return {
            "input_ids": torch.tensor([self.ids], device=device),
            "position_ids": torch.tensor([self.positions], device=device),
            "segments": tuple(self.segments),
            "use_cache": False,
        }


def pack_sequences(
    sequences: Sequence[Sequence[int]], *, keep: int = 1, longest_short: int | None = None
) -> tuple[Pack, list[Segment]]:
    """One pack of all sequences, their common beginning once; at least `keep` last tokens of each are its own.

    `longest_short`: tokens from which on a sequence has other positions, so that it shares nothing with shorter ones.
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
    """One pack of (prompt, answer, other answer): each prompt is computed once, and both its answers continue it."""
    pack = Pack()
    prompts = [pack.add(prompt) for prompt, _, _ in pairs]
    return pack, [
        (prompt, pack.add(one, after=prompt), pack.add(other, after=prompt))
        for prompt, (_, one, other) in zip(prompts, pairs, strict=True)
    ]


T = TypeVar("T")


def group_alike(items: Sequence[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Neighbours, as long as the largest is not much larger than the smallest: filling up costs by the square."""
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
    """Of its own, without its context."""
    return segment.stop - segment.start


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
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: tuple[Segment, ...] = (),
    rows: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for one row: by segments, or by `rows` (see `Seen`), otherwise plain causal.

    query is [1, heads, tokens, size], key and value [1, key heads, tokens, size], the result [1, tokens, heads, size].
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
    """Taken apart by `split`, whose backward pass is one concatenation; slices would each fill a whole tensor."""
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
    """Causal attention, the last query at the last key: query [heads, queries, size], key and value [key heads, keys,
    size]; several heads share one key head."""
    queries, keys = query.shape[1], key.shape[1]
    hidden = hide_keys(queries, keys, scoring.window, query.device)
    return attend_blocks(query[None], key[None], value[None], hidden, scoring, keys - queries)[0]


def hide_keys(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[queries, keys]: what the last `queries` of so many tokens do not see."""
    all_keys = torch.ones(queries, keys, dtype=torch.bool, device=device)
    later = all_keys.triu(keys - queries + 1)
    return later if window is None or window >= keys else later | all_keys.tril(keys - queries - window)


AttentionInterface.register(ATTENTION, attend)
