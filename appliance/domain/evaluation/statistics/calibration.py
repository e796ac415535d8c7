"""Calibration of confidences: among the answers with confidence 0.8, is a share of 0.8 right?

Expected calibration error: Naeini, Cooper and Hauskrecht (2015), AAAI 29, with the bins of Guo et al. (2017), ICML.
Brier score of the chosen label: Brier (1950), Monthly Weather Review 78:1. The intervals are those of the BCa
bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from appliance.domain.evaluation.statistics.distributions import Units, group_units
from appliance.domain.evaluation.statistics.numbers import fixed
from appliance.domain.evaluation.statistics.resampling import Bootstrap, bootstrap_mean, correct, draw_replicates

BINS = 10
"""Number of bins of equal width between confidence 0 and 1."""
WHOLE = 1_000_000
"""A confidence of 1, in millionths."""
_DIGIT_BITS = 64
_BASE = 1 << _DIGIT_BITS


@dataclass(frozen=True)
class Bin:
    """The answers of one bin: confidence above number / BINS and at most (number + 1) / BINS.

    `items` is their number, `confidence` the sum of their confidences in millionths, and `right` how many are right.
    """

    items: int
    confidence: int
    right: int


def brier(confidence: int, right: bool) -> int:
    """Return the Brier score of one answer: (confidence - right)^2 in millionths, rounded half to even.

    0 is the best value, WHOLE the worst.
    """
    return round(Fraction((confidence - WHOLE * right) ** 2, WHOLE))


def bin_of(confidence: int) -> int:
    """Return the number of the bin that contains a confidence. Bin 0 is (0, 0.1], and contains 0, too."""
    return max(0, (confidence * BINS - 1) // WHOLE)


def count_bins(answers: Sequence[tuple[int, bool]]) -> tuple[Bin, ...]:
    """Return the bins of these answers. An answer is its confidence in millionths, and True if it is right."""
    counts = [[0, 0, 0] for _ in range(BINS)]
    for confidence, right in answers:
        found = counts[bin_of(confidence)]
        found[0] += 1
        found[1] += confidence
        found[2] += right
    return tuple(Bin(*found) for found in counts)


def expected_error(answers: Sequence[tuple[int, bool]]) -> Fraction:
    """Return the expected calibration error, from 0 to 1.

    It is the sum over the bins of |number right - summed confidence|, divided by the number of answers.
    """
    differences = sum(abs(found.right * WHOLE - found.confidence) for found in count_bins(answers))
    return Fraction(differences, WHOLE * len(answers))


def bootstrap_error(
    answers: Sequence[tuple[int, bool]], clusters: Sequence[str | None], key: bytes, resamples: int
) -> Bootstrap:
    """Return the bootstrap of the expected calibration error.

    For speed, the difference of each bin is one digit, positive or negative, of an integer in base 2^64. The
    differences of all bins in a resample are then a single sum.
    """
    packed = [(WHOLE * right - confidence) << (_DIGIT_BITS * bin_of(confidence)) for confidence, right in answers]
    units = group_units(packed, clusters)
    replicates = draw_replicates(
        units, key, resamples, lambda total, size: Fraction(_sum_absolute_digits(total), WHOLE * size)
    )
    return correct(expected_error(answers), replicates, _leave_one_out(units))


@fixed
def _leave_one_out(units: Units) -> list[Decimal]:
    total, items = sum(units.sums), units.items
    return [
        Decimal(_sum_absolute_digits(total - value)) / max(1, items - size)
        for value, size in zip(units.sums, units.sizes, strict=True)
    ]


def _sum_absolute_digits(packed: int) -> int:
    """Return the sum of the absolute values of the digits in base 2^64."""
    total = 0
    while packed:
        digit = (packed + _BASE // 2) % _BASE - _BASE // 2
        packed = (packed - digit) >> _DIGIT_BITS
        total += abs(digit)
    return total


def bootstrap_brier(
    answers: Sequence[tuple[int, bool]], clusters: Sequence[str | None], key: bytes, resamples: int
) -> Bootstrap:
    """Return the bootstrap of the mean Brier score, in millionths."""
    return bootstrap_mean(group_units([brier(*answer) for answer in answers], clusters), key, resamples)
