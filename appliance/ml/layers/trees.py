"""Attention of a pack without gradients: a common beginning, and behind it families of segments.

A family is a segment that goes on from the beginning, and all that goes on from it: a row, and the labels that may
answer it. All families of about one size attend together, in one batched product, each under a mask of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from appliance.ml.layers.packing import Pack, Segment, group_alike
from appliance.ml.layers.scores import Scoring, attend


@dataclass(frozen=True)
class _Group:
    """Families that attend together.

    `queries` [families, most] are new tokens of the pack, and `keys` [families, most of these] what they see behind the
    beginning, each filled up with a family's last; `own` says where in `queries`, flattened, the families' tokens are,
    and `tokens` which they are. `hidden` [families, 1, queries, shared + keys] is what a query does not see;
    `distance`, of the same shape, is how far behind it a key is. `causal`: each family is one segment.
    """

    shared: int
    causal: bool
    queries: torch.Tensor
    keys: torch.Tensor
    own: torch.Tensor
    tokens: torch.Tensor
    hidden: torch.Tensor
    distance: torch.Tensor

    def hide(self, window: int | None) -> torch.Tensor:
        return self.hidden if window is None else self.hidden | (self.distance >= window)


Held = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a pack's tokens by layer, [tokens, key heads, size]."""


class TreeAttention:
    """See `Seen`. `start`: the first token that is read now; those before are in `held`, which takes the new ones too.
    Without `held` all are read at once, and nothing is kept."""

    def __init__(self, pack: Pack, device: str, *, start: int = 0, held: Held | None = None) -> None:
        self._start, self._held = start, held
        positions = torch.tensor(pack.positions)
        root, families = find_families(pack, start)
        begun = [Family([root], [root])] if root is not None and not start else []
        self._groups = [_lay_out([family], 0, positions, start, device) for family in begun]
        self._groups += [
            _lay_out(group, root.stop if root else 0, positions, start, device)
            for group in group_alike(families, lambda family: family.size)
        ]

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """[new tokens, heads, size]."""
        key, value = hold(self._held, number, self._start, key, value)
        seen = torch.empty_like(query)
        for group in self._groups:
            queries = take(query, group.queries)
            keys, values = (take(tensor, group.keys) for tensor in (key, value))
            if group.shared:
                keys, values = (
                    torch.cat([one[: group.shared].transpose(0, 1).expand(len(own), -1, -1, -1), own], dim=2)
                    for one, own in ((key, keys), (value, values))
                )
            shared = group.shared if group.causal else None
            made = attend(queries, keys, values, group.hide(scoring.window), scoring, shared)
            seen[group.tokens] = made.transpose(1, 2).flatten(0, 1)[group.own]
        return seen


def hold(
    held: Held | None, number: int, start: int, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of layer `number` of all tokens: those before `start`, which are held, and the new ones, which
    are held from now on."""
    if held is None:
        return key, value
    if start:
        key, value = (torch.cat(pair) for pair in zip(held[number], (key, value), strict=True))
    held[number] = key, value
    return key, value


def take(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[families, heads, most, size] of [tokens, heads, size]."""
    return tensor[places.flatten()].view(*places.shape, *tensor.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Family:
    """Its segments that are new, and of the others those that these go on from, in the pack's order."""

    new: list[Segment]
    seen: list[Segment]

    @classmethod
    def of(cls, segments: Sequence[Segment], start: int) -> Family:
        new = [segment for segment in segments if segment.start >= start]
        spans = {span for segment in new for span in segment.context}
        earlier = [one for one in segments if one.start < start and (one.start, one.stop) in spans]
        return cls(new, [*earlier, *new])

    @property
    def size(self) -> int:
        return _count(self.seen)


def _count(segments: Sequence[Segment]) -> int:
    return sum(segment.stop - segment.start for segment in segments)


def find_families(pack: Pack, start: int) -> tuple[Segment | None, list[Family]]:
    """The beginning that all other segments go on from, if there is one, and the families behind it that have tokens
    from `start` on, in the order of their first segments."""
    segments = pack.segments
    begun = len(segments) > 1 and all(one.context[:1] == segments[0].spans for one in segments[1:])
    found: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments[begun:]:
        found.setdefault(segment.spans[begun], []).append(segment)
    families = [Family.of(own, start) for own in found.values()]
    return segments[0] if begun else None, [family for family in families if family.new]


def _lay_out(families: Sequence[Family], shared: int, positions: torch.Tensor, start: int, device: str) -> _Group:
    most, most_keys = (max(sizes) for sizes in zip(*((_count(f.new), f.size) for f in families), strict=True))
    hidden = torch.ones(len(families), most, shared + most_keys, dtype=torch.bool)
    hidden[:, :, :shared] = False
    queries, keys, own = [], [], []
    for number, family in enumerate(families):
        columns: dict[int, int] = {}
        for segment in family.seen:
            columns[segment.start] = sum(one.stop - one.start for one in family.seen[: len(columns)])
        row = 0
        for segment in family.new:
            size = segment.stop - segment.start
            part = hidden[number, row : row + size]
            for first, stop in segment.context:
                if first in columns:
                    column = shared + columns[first]
                    part[:, column : column + stop - first] = False
            column = shared + columns[segment.start]
            part[:, column : column + size] = torch.ones(size, size, dtype=torch.bool).triu(1)
            row += size
        hidden[number, row:] = hidden[number, row - 1]
        new, seen = ([t for s in some for t in range(s.start, s.stop)] for some in (family.new, family.seen))
        queries.append(new + new[-1:] * (most - len(new)))
        keys.append(seen + seen[-1:] * (most_keys - len(seen)))
        own += [number * most + place for place in range(len(new))]
    query, key = torch.tensor(queries), torch.tensor(keys)
    behind = torch.cat([positions[:shared].expand(len(families), -1), positions[key]], dim=1)
    distance = positions[query][:, :, None] - behind[:, None]
    return _Group(
        shared,
        all(len(family.seen) == 1 for family in families),
        (query - start).to(device),
        key.to(device),
        torch.tensor(own, device=device),
        (query.flatten()[own] - start).to(device),
        hidden[:, None].to(device),
        distance[:, None].to(device),
    )
