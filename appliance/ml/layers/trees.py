"""Attention of a pack without gradients: a common beginning, and behind it families of segments.

A family is a segment that goes on from the beginning, and all that goes on from it: a row, and the labels that may
answer it. All families of about one size attend together, in one batched product, each under a mask of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from appliance.ml.layers.packing import Pack, Segment
from appliance.ml.layers.scores import Scoring, attention_weights, fold

# Queries times keys of a family from which attention scores are not held whole.
LARGE = 1 << 17
# Families are filled up to one size where the largest is at most so much larger than the smallest.
SPREAD, SPARE = 1.2, 32


@dataclass(frozen=True)
class _Group:
    """`places` [families, largest] are tokens of the pack, filled up with each family's last; `own` says where in it,
    flattened, the families' tokens stand, and `tokens` which they are. `hidden`, [families, 1, largest, shared +
    largest], is what a query does not see; `distance`, of the same shape, how far behind it a key stands."""

    places: torch.Tensor
    own: torch.Tensor
    tokens: torch.Tensor
    hidden: torch.Tensor
    distance: torch.Tensor

    def hide(self, window: int | None) -> torch.Tensor:
        return self.hidden if window is None else self.hidden | (self.distance >= window)


class TreeAttention:
    """See `Seen`."""

    def __init__(self, pack: Pack, device: str) -> None:
        segments = pack.segments
        root = (
            segments[0] if len(segments) > 1 and all(s.context[:1] == segments[0].spans for s in segments[1:]) else None
        )
        self._shared = root.stop if root else 0
        positions = torch.tensor(pack.positions)
        families = list(_families(segments[1:] if root else segments, len(root.spans) if root else 0))
        groups = [_lay_out(group, self._shared, positions, device) for group in _gather(families)]
        self._groups = ([_lay_out([[root]], 0, positions, device)] if root else []) + groups
        self._shares = [0] * bool(root) + [self._shared] * len(groups)

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """[tokens, heads, size]."""
        seen = torch.empty_like(query)
        for group, shared in zip(self._groups, self._shares, strict=True):
            queries, keys, values = (_take(tensor, group.places) for tensor in (query, key, value))
            if shared:
                keys, values = (
                    torch.cat([one[:shared].transpose(0, 1).expand(len(own), -1, -1, -1), own], dim=2)
                    for one, own in ((key, keys), (value, values))
                )
            made = _attend(queries, keys.contiguous(), values.contiguous(), group.hide(scoring.window), scoring)
            seen[group.tokens] = made.transpose(1, 2).flatten(0, 1)[group.own]
        return seen


def _take(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[families, heads, largest, size] of [tokens, heads, size]."""
    return tensor[places.flatten()].view(*places.shape, *tensor.shape[1:]).transpose(1, 2)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    if hidden.shape[-2] * hidden.shape[-1] > LARGE and scoring.softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=~hidden, scale=scoring.scaling, enable_gqa=True
        )
    most = max(1, LARGE // hidden.shape[-1])
    outputs = []
    for some, unseen in zip(torch.split(query, most, dim=2), torch.split(hidden, most, dim=2), strict=True):
        weights = attention_weights(some, key, unseen, scoring)
        outputs.append((fold(weights, key) @ value.flatten(0, 1)).view_as(some))
    return torch.cat(outputs, dim=2)


def _families(segments: Sequence[Segment], depth: int) -> Iterator[list[Segment]]:
    """Segments by the first of their context behind `depth` spans, in the order of these."""
    found: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.spans[depth], []).append(segment)
    return iter(found.values())


def _gather(families: Sequence[list[Segment]]) -> Iterator[list[list[Segment]]]:
    """Neighbours, as long as the largest is not much larger than the smallest: filling up costs by the square."""
    group: list[list[Segment]] = []
    for family in families:
        sizes = [_size(other) for other in (*group, family)]
        if group and max(sizes) > SPREAD * min(sizes) + SPARE:
            yield group
            group = []
        group.append(family)
    yield group


def _size(family: Sequence[Segment]) -> int:
    return sum(segment.stop - segment.start for segment in family)


def _lay_out(families: Sequence[Sequence[Segment]], shared: int, positions: torch.Tensor, device: str) -> _Group:
    largest = max(map(_size, families))
    places, hidden = [], torch.ones(len(families), largest, shared + largest, dtype=torch.bool)
    hidden[:, :, :shared] = False
    for row, family in zip(hidden, families, strict=True):
        tokens = [token for segment in family for token in range(segment.start, segment.stop)]
        columns = {token: column for column, token in enumerate(tokens)}
        for segment in family:
            first, size = columns[segment.start], segment.stop - segment.start
            own = row[first : first + size]
            for start, stop in segment.context:
                if start in columns:
                    own[:, shared + columns[start] : shared + columns[start] + stop - start] = False
            later = torch.ones(size, size, dtype=torch.bool).triu(1)
            own[:, shared + first : shared + first + size] = later
        row[len(tokens) :] = row[len(tokens) - 1]
        places.append(tokens + tokens[-1:] * (largest - len(tokens)))
    place = torch.tensor(places)
    own = [row * largest + column for row, family in enumerate(families) for column in range(_size(family))]
    at = positions[place]
    behind = torch.cat([positions[:shared].expand(len(families), -1), at], dim=1)
    distance = at[:, :, None] - behind[:, None]
    return _Group(
        place.to(device),
        torch.tensor(own, device=device),
        place.flatten()[own].to(device),
        hidden[:, None].to(device),
        distance[:, None].to(device),
    )
