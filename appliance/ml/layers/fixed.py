"""Products of a fixed shape, for processors on which a row's bits depend on the number of rows in the product.

Some libraries split a sum for few rows and not for many, which changes the order of the additions. A product that
always has the same shape always has the same order. The rows of a pack therefore go through the layers in blocks of
`ROWS`, the last one padded. Its queries go in blocks of `QUERIES`, whose position alone decides how many keys a block
has and how many blocks go together. A sequence's bits are then independent of the other sequences in the pack and of
the length of the beginning that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.nn.functional import pad

from appliance.ml.layers.packing import Pack, Segment, group_alike
from appliance.ml.layers.scores import Scoring, attend


@dataclass(frozen=True)
class _TreeGroup:
    """Families that attend together.

    `queries`, int64 [families, most], are new tokens of the pack. `keys`, int64 [families, most keys], are the tokens
    that they see after the shared beginning. Both are padded with a family's last token. `own` indexes the families'
    tokens in the flattened `queries`; `tokens` are those tokens. `hidden`, bool [families, 1, queries, shared + keys],
    marks keys that a query does not see; `distance`, of the same shape, is the number of positions from a key to the
    query. `causal` is True if each family is one segment.
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
"""Keys and values of a pack's tokens by layer number, each [tokens, key heads, size]."""


class TreeAttention:
    """Attention over a tree of segments; implements `PassAttention`.

    `start` is the first token of this pass. `held` has the keys and values of the tokens before it and receives those
    of the new ones. Without `held` all tokens are read at once and none are stored.
    """

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
        """Return the attention output [new tokens, heads, size] of layer `number`."""
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
    """Return the keys and values of all tokens in layer `number`, and store them in `held`.

    `held` has those of the tokens before `start`; `key` and `value` are those of the new tokens.
    """
    if held is None:
        return key, value
    if start:
        key, value = (torch.cat(pair) for pair in zip(held[number], (key, value), strict=True))
    held[number] = key, value
    return key, value


def take(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the selected tokens as [families, heads, most, size] of a tensor [tokens, heads, size]."""
    return tensor[places.flatten()].view(*places.shape, *tensor.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Family:
    """The new segments of one branch, and `seen`: these and the earlier segments that they continue, in pack order."""

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
    """Return the beginning that all other segments continue, if any, and the families with tokens from `start` on.

    The families are in the order of their first segments.
    """
    segments = pack.segments
    begun = len(segments) > 1 and all(one.context[:1] == segments[0].spans for one in segments[1:])
    found: dict[tuple[int, int], list[Segment]] = {}
    for segment in segments[begun:]:
        found.setdefault(segment.spans[begun], []).append(segment)
    families = [Family.of(own, start) for own in found.values()]
    return segments[0] if begun else None, [family for family in families if family.new]


def _lay_out(families: Sequence[Family], shared: int, positions: torch.Tensor, start: int, device: str) -> _TreeGroup:
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
    return _TreeGroup(
        shared,
        all(len(family.seen) == 1 for family in families),
        (query - start).to(device),
        key.to(device),
        torch.tensor(own, device=device),
        (query.flatten()[own] - start).to(device),
        hidden[:, None].to(device),
        distance[:, None].to(device),
    )


ROWS = 256
QUERIES = 64
MOST, MOST_KEYS = 8, 4096
"""Largest number of query blocks in one product, and of keys in all of them together.

Blocks with more keys go together in smaller numbers.
"""


def multiply_in_blocks(
    linear: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, rows: int = ROWS
) -> torch.Tensor:
    """Return linear(x) for x [any number, in], applying `linear` to blocks of exactly `rows` rows."""
    blocks = [linear(pad(block, (0, 0, 0, rows - len(block))))[: len(block)] for block in torch.split(x, rows)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


@dataclass(frozen=True)
class _Block:
    """A family's queries in the columns from `number * QUERIES` on.

    `tokens` are the new tokens and `rows` their rows in the block. `keys` are the tokens of all columns, and `hidden`,
    bool [new tokens, columns], marks those that a query does not see.
    """

    number: int
    tokens: list[int]
    rows: list[int]
    keys: list[int]
    hidden: torch.Tensor

    @property
    def width(self) -> int:
        """Number of keys in the block's product, which depends on the block's number only."""
        return QUERIES << self.number.bit_length()


def _count_together(width: int) -> int:
    return max(1, min(MOST, MOST_KEYS // width))


class _Group:
    """Blocks of one width, always the same number of them, padded with the first block.

    `queries`, int64 [blocks, QUERIES], and `keys`, int64 [blocks, width], are tokens. `own` indexes the new ones in the
    flattened `queries`; `tokens` are those tokens.
    """

    def __init__(self, blocks: Sequence[_Block], positions: torch.Tensor, start: int, device: str) -> None:
        width = blocks[0].width
        count = _count_together(width)
        filled = [*blocks, *[blocks[0]] * (count - len(blocks))]
        queries = torch.zeros(count, QUERIES, dtype=torch.long)
        keys = torch.zeros(count, width, dtype=torch.long)
        hidden = torch.ones(count, QUERIES, width, dtype=torch.bool)
        # The softmax of a row in which every key is hidden would be NaN.
        hidden[:, :, 0] = False
        for place, block in enumerate(filled):
            seen = block.keys[:width]
            queries[place] = block.tokens[0]
            queries[place, block.rows] = torch.tensor(block.tokens)
            keys[place] = seen[0]
            keys[place, : len(seen)] = torch.tensor(seen)
            hidden[place, block.rows, : len(seen)] = block.hidden[:, :width]
        own = [place * QUERIES + row for place, block in enumerate(blocks) for row in block.rows]
        self.queries, self.keys = (queries - start).to(device), keys.to(device)
        self.own = torch.tensor(own, device=device)
        self.tokens = self.queries.flatten()[self.own]
        self._hidden = hidden[:, None].to(device)
        self._positions = positions[queries].to(device), positions[keys].to(device)

    def hide(self, window: int | None) -> torch.Tensor:
        """Return the mask of hidden keys, bool [blocks, 1, QUERIES, width].

        Hidden are later keys, keys of other segments and keys outside the window.
        """
        if window is None:
            return self._hidden
        query, key = self._positions
        return self._hidden | (query[:, None, :, None] - key[:, None, None] >= window)


class FixedAttention:
    """Attention over a tree of segments, like `TreeAttention`, in products of fixed shapes."""

    def __init__(self, pack: Pack, device: str, *, start: int = 0, held: Held | None = None) -> None:
        self._start, self._held = start, held
        positions = torch.tensor(pack.positions)
        blocks = sorted(_list_blocks(pack, start), key=lambda block: block.width)
        self._groups = [
            _Group(some[first : first + _count_together(width)], positions, start, device)
            for width, alike in groupby(blocks, key=lambda block: block.width)
            for some in [list(alike)]
            for first in range(0, len(some), _count_together(width))
        ]

    def attend(
        self, number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Return the attention output [new tokens, heads, size] of layer `number`."""
        key, value = hold(self._held, number, self._start, key, value)
        seen = torch.empty_like(query)
        for group in self._groups:
            queries = take(query, group.queries)
            keys, values = (take(tensor, group.keys) for tensor in (key, value))
            made = attend(queries, keys, values, group.hide(scoring.window), scoring)
            seen[group.tokens] = made.transpose(1, 2).flatten(0, 1)[group.own]
        return seen


def _list_blocks(pack: Pack, start: int) -> Iterator[_Block]:
    """Yield the blocks of every family with new tokens.

    A column is a token of the shared beginning or of the family, in the pack's order. A segment comes after the
    segments that it continues, so no query sees a column after its own.
    """
    root, families = find_families(pack, start)
    if root is not None and not start:
        yield from _divide(Family([root], [root]), [])
    for family in families:
        yield from _divide(family, [] if root is None else [root])


def _divide(family: Family, before: list[Segment]) -> Iterator[_Block]:
    keys = [token for one in (*before, *family.seen) for token in range(one.start, one.stop)]
    columns = {token: column for column, token in enumerate(keys)}
    hidden = torch.ones(len(keys), len(keys), dtype=torch.bool)
    for segment in family.new:
        own = slice(columns[segment.start], columns[segment.stop - 1] + 1)
        for start, stop in segment.context:
            hidden[own, columns[start] : columns[stop - 1] + 1] = False
        hidden[own, own] = torch.ones(segment.stop - segment.start, segment.stop - segment.start).triu(1).bool()
    new = sorted(columns[token] for one in family.new for token in range(one.start, one.stop))
    for number, some in groupby(new, key=lambda column: column // QUERIES):
        places = list(some)
        rows = [column % QUERIES for column in places]
        yield _Block(number, [keys[column] for column in places], rows, keys, hidden[places])
