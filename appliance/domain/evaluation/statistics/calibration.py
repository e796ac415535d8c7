"""Calibration: of the answers that were given with a confidence of 0.8, are 0.8 right?

Expected calibration error: Naeini, Cooper and Hauskrecht (2015), AAAI 29; bins as Guo et al. (2017), ICML. Brier score
of the chosen label: Brier (1950), Monthly Weather Review 78:1. Intervals are the BCa bootstrap's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from appliance.domain.evaluation.statistics.bootstrap import Bootstrap, bootstrap_mean, correct, draw_replicates
from appliance.domain.evaluation.statistics.numbers import fixed
from appliance.domain.evaluation.statistics.units import Units, group_units

BINS = 10
WHOLE = 1_000_000
"""A confidence of 1."""
_DIGIT = 64
_BASE = 1 << _DIGIT


@dataclass(frozen=True)
class Bin:
    """Answers of a confidence above number / BINS, up to (number + 1) / BINS: how many, their summed confidence, and
    how many of them are right."""

    items: int
    confidence: int
    right: int


def brier(confidence: int, right: bool) -> int:
    """(confidence - right)^2 in millionths, half to even: 0 at best, WHOLE at worst."""
    return round(Fraction((confidence - WHOLE * right) ** 2, WHOLE))


def bin_of(confidence: int) -> int:
    """(0, 0.1] is the first; 0 lies in it, too."""
    return max(0, (confidence * BINS - 1) // WHOLE)


def count_bins(answers: Sequence[tuple[int, bool]]) -> tuple[Bin, ...]:
    """`answers`: confidence in millionths, and whether it was right."""
    counts = [[0, 0, 0] for _ in range(BINS)]
    for confidence, right in answers:
        found = counts[bin_of(confidence)]
        found[0] += 1
        found[1] += confidence
        found[2] += right
    return tuple(Bin(*found) for found in counts)


def expected_error(answers: Sequence[tuple[int, bool]]) -> Fraction:
    """The sum over bins of |right - confidence|, by the number of answers: 0 to 1."""
    apart = sum(abs(found.right * WHOLE - found.confidence) for found in count_bins(answers))
    return Fraction(apart, WHOLE * len(answers))


def bootstrap_error(
    answers: Sequence[tuple[int, bool]], clusters: Sequence[str | None], key: bytes, resamples: int
) -> Bootstrap:
    """The expected calibration error's bootstrap.

    The bins' sums of right less confidence lie in one integer, as digits of base 2^64 that may be negative: so a
    resample is one sum.
    """
    packed = [(WHOLE * right - confidence) << (_DIGIT * bin_of(confidence)) for confidence, right in answers]
    units = group_units(packed, clusters)
    replicates = draw_replicates(units, key, resamples, lambda total, size: Fraction(_sum_apart(total), WHOLE * size))
    return correct(expected_error(answers), replicates, _leave_one_out(units))


@fixed
def _leave_one_out(units: Units) -> list[Decimal]:
    total, items = sum(units.sums), units.items
    return [
        Decimal(_sum_apart(total - value)) / max(1, items - size)
        for value, size in zip(units.sums, units.sizes, strict=True)
    ]


def _sum_apart(packed: int) -> int:
    """The sum of the digits' absolute values."""
    total = 0
    while packed:
        digit = (packed + _BASE // 2) % _BASE - _BASE // 2
        packed = (packed - digit) >> _DIGIT
        total += abs(digit)
    return total


def bootstrap_brier(
    answers: Sequence[tuple[int, bool]], clusters: Sequence[str | None], key: bytes, resamples: int
) -> Bootstrap:
    """The mean Brier score's bootstrap, in millionths."""
    return bootstrap_mean(group_units([brier(*answer) for answer in answers], clusters), key, resamples)
