"""Products of one shape each, for processors on which a row's bits depend on how many rows are multiplied beside it.

A library that splits a sum for few rows and not for many adds in another order, and where a product has one shape
alone, it has one order. So a pack's rows go through the layers in blocks of `ROWS`, the last filled up, and its queries
in blocks of `QUERIES`, whose places alone decide how many keys each has and how many go together. A sequence's bits are
then its own, whatever other sequences are in the pack and however much of its beginning they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.nn.functional import pad

from appliance.ml.layers.packing import Pack, Segment
from appliance.ml.layers.scores import Scoring, attend
from appliance.ml.layers.trees import Family, Held, find_families, hold, take

ROWS = 256
QUERIES = 64
MOST, MOST_KEYS = 8, 4096
"""Blocks of queries in one product, and keys of them all: fewer blocks where each has more keys."""


def multiply_in_blocks(
    linear: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, rows: int = ROWS
) -> torch.Tensor:
    """linear(x) for x [any, in], which is only ever shown so many rows."""
    blocks = [linear(pad(block, (0, 0, 0, rows - len(block))))[: len(block)] for block in torch.split(x, rows)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


@dataclass(frozen=True)
class _Block:
    """A family's queries at the columns `number * QUERIES` on: new tokens, and their rows of the block. `keys`: the
    tokens at all columns; `hidden` [new tokens, columns] is what each does not see of them."""

    number: int
    tokens: list[int]
    rows: list[int]
    keys: list[int]
    hidden: torch.Tensor

    @property
    def width(self) -> int:
        """Keys of its product: its place alone decides."""
        return QUERIES << self.number.bit_length()


def _count_together(width: int) -> int:
    return max(1, min(MOST, MOST_KEYS // width))


class _Group:
    """As many blocks of one width as there always are of it, filled up with the first.

    `queries` [blocks, QUERIES] and `keys` [blocks, width] are tokens, `own` says where in `queries`, flattened, new
    ones stand, and `tokens` which they are.
    """

    def __init__(self, blocks: Sequence[_Block], positions: torch.Tensor, start: int, device: str) -> None:
        width = blocks[0].width
        count = _count_together(width)
        filled = [*blocks, *[blocks[0]] * (count - len(blocks))]
        queries = torch.zeros(count, QUERIES, dtype=torch.long)
        keys = torch.zeros(count, width, dtype=torch.long)
        hidden = torch.ones(count, QUERIES, width, dtype=torch.bool)
        # A row of which all is hidden would be no number.
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
        """[blocks, 1, QUERIES, width]: what no query sees, for what comes later, belongs to others or is too far."""
        if window is None:
            return self._hidden
        query, key = self._positions
        return self._hidden | (query[:, None, :, None] - key[:, None, None] >= window)


class FixedAttention:
    """As `TreeAttention`, with products of one shape each."""

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
        """[new tokens, heads, size]."""
        key, value = hold(self._held, number, self._start, key, value)
        seen = torch.empty_like(query)
        for group in self._groups:
            queries = take(query, group.queries)
            keys, values = (take(tensor, group.keys) for tensor in (key, value))
            made = attend(queries, keys, values, group.hide(scoring.window), scoring)
            seen[group.tokens] = made.transpose(1, 2).flatten(0, 1)[group.own]
        return seen


def _list_blocks(pack: Pack, start: int) -> Iterator[_Block]:
    """Of each family that grows. A column is a token of the beginning or of the family, in the pack's order: what a
    segment goes on from comes before it, so no query sees a column behind its own."""
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
