"""Rows that pass the model together, in training, in evaluation and in a plan of either.

The worker splits real rows by `split_into_packs`; a plan splits token counts by the same function.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from appliance.domain.planning.shape import Lengths
from appliance.domain.recipe.recipe import ResolvedRecipe

PACK_TOKENS = 2048
"""Approximate number of tokens in a pack, in training and in evaluation."""
LOGIT_CHUNK = 128
"""Positions whose logits are in memory at the same time in training."""
HEAD_ROWS = 512
"""Positions whose logits are in memory at the same time in evaluation."""
SCORE_BLOCK = 128
"""Queries of a segment whose attention scores are in memory at the same time."""
KEPT_BYTES = 1_000_000_000
"""Most bytes of dequantised weights that are kept between uses, if no layer is computed again."""
_MOST_DRAWN = 2_000
"""Most steps that are drawn to find the largest pack; more steps rarely find a larger one."""

Row = TypeVar("Row")


def split_into_packs(
    rows: Iterable[Row], count_tokens: Callable[[Row], int], most_tokens: int, most_rows: int | None = None
) -> Iterator[list[Row]]:
    """Yield packs of consecutive rows with at most `most_tokens` tokens and `most_rows` rows.

    A row with more tokens is a pack of its own.
    """
    pack: list[Row] = []
    size = 0
    for row in rows:
        tokens = count_tokens(row)
        if pack and (size + tokens > most_tokens or len(pack) == most_rows):
            yield pack
            pack, size = [], 0
        pack.append(row)
        size += tokens
    if pack:
        yield pack


def count_common(sequences: Sequence[Sequence[int]]) -> int:
    """Return the number of leading tokens that all sequences share.

    In lexicographic order all sequences lie between the first and the last, so what these two share, all share.
    """
    first, last = min(map(tuple, sequences), default=()), max(map(tuple, sequences), default=())
    return next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


@dataclass(frozen=True)
class PlannedPack:
    """Rows that pass the model together: segments behind a common beginning (`root`).

    `tokens`: all tokens. `longest`: tokens of the longest segment. `trained`: tokens that have a loss.
    """

    tokens: int
    segments: int
    root: int
    longest: int
    trained: int

    @property
    def scores(self) -> int:
        """Return the attention scores of one head in one layer."""
        return self.segments * self.longest * (self.root + self.longest) + self.root**2

    @property
    def held_scores(self) -> int:
        """Return the attention scores of one head that are in memory at the same time."""
        own = self.segments * min(SCORE_BLOCK, self.longest) * (self.root + self.longest)
        return max(own, min(SCORE_BLOCK, self.root) * self.root)


def count_trained_rows(recipe: ResolvedRecipe, rows: int) -> int:
    """Return the number of training rows without those that are used to validate."""
    return max(1, round(rows * (1 - float(recipe.validation))))


def draw_packs(lengths: Lengths, recipe: ResolvedRecipe, rows: int) -> Iterator[PlannedPack]:
    """Yield the packs of a run with rows of these lengths, and last a pack of the longest row alone.

    The order of rows is not that of the run, which torch draws. Drawing as many steps as the run has finds a pack that
    is about as large as its largest one.
    """
    rows = count_trained_rows(recipe, rows)
    spread, size = lengths.spread(rows), recipe.rows_a_step
    steps = min(_MOST_DRAWN, recipe.count_steps(rows))
    draw = random.Random(recipe.seed)
    order: list[int] = []
    for _ in range(steps):
        if not order:
            order = draw.sample(spread, rows)
        step, order = sorted(order[:size]), order[size:]
        for rank in range(recipe.processes):
            share = step[rank :: recipe.processes]
            for part in split_into_packs(share, int, PACK_TOKENS, 1 if recipe.privacy else recipe.batch_size):
                yield make_pack(part, lengths)
    yield make_pack([lengths.longest], lengths)


def make_pack(rows: Sequence[int], lengths: Lengths) -> PlannedPack:
    """Return the pack of rows with these token counts."""
    root = min(lengths.shared, min(rows) - 1) if len(rows) > 1 else 0
    tokens = sum(rows) - root * (len(rows) - 1)
    return PlannedPack(tokens, len(rows), root, max(rows) - root, min(tokens, len(rows) * lengths.trained))
