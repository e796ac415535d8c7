"""The BCa bootstrap: bounds of a statistic from resamples of its units, corrected for bias and skewness.

Efron (1987), JASA 82:171; Efron and Tibshirani (1993), chapter 14. A p-value is the level whose bound is the value
that is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from operator import itemgetter

from appliance.domain.evaluation.statistics.distributions import normal_quantile, normal_tail
from appliance.domain.evaluation.statistics.generator import draw_indices
from appliance.domain.evaluation.statistics.numbers import fixed, settle, to_decimal
from appliance.domain.evaluation.statistics.units import Units


@dataclass(frozen=True)
class Bootstrap:
    """`replicates`: sorted, lowest first. `bias` is z0 and `acceleration` a of the papers."""

    estimate: Fraction
    replicates: tuple[Fraction, ...] = field(repr=False)
    bias: Decimal
    acceleration: Decimal

    @fixed
    def lower(self, level: Fraction) -> Fraction | None:
        """Below it lies the truth with this probability at most; None where there are too few resamples to say."""
        rank = floor(self._share(normal_quantile(level)) * (len(self.replicates) + 1))
        return self.replicates[rank - 1] if 1 <= rank <= len(self.replicates) else None

    @fixed
    def upper(self, level: Fraction) -> Fraction | None:
        rank = ceil(self._share(-normal_quantile(level)) * (len(self.replicates) + 1))
        return self.replicates[rank - 1] if 1 <= rank <= len(self.replicates) else None

    @fixed
    def greater(self, bound: Fraction) -> Fraction:
        """The least level at which the lower bound is above `bound`: a p-value of "more than that".

        Never below 1 / (resamples + 1).
        """
        least = Fraction(1, len(self.replicates) + 1)
        share = (sum(value <= bound for value in self.replicates) + 1) * least
        if share >= 1:
            return Fraction(1)
        shift = normal_quantile(share) - self.bias
        scale = 1 + self.acceleration * shift
        if scale <= 0:  # no level's bound is so far out
            return least if shift < 0 else Fraction(1)
        return max(least, settle(normal_tail(self.bias - shift / scale)))

    def _share(self, quantile: Decimal) -> Fraction:
        """Phi(z0 + (z0 + z) / (1 - a (z0 + z))): which share of the replicates lies below the bound."""
        shift = self.bias + quantile
        scale = 1 - self.acceleration * shift
        if scale <= 0:
            return Fraction(0 if shift < 0 else 1)
        return settle(normal_tail(-self.bias - shift / scale))


def bootstrap_mean(units: Units, key: bytes, resamples: int) -> Bootstrap:
    """Of the items' mean; units are drawn, with what belongs to them."""
    replicates = draw_replicates(units, key, resamples, lambda total, size: Fraction(total, size))
    return correct(units.mean, replicates, _leave_one_out(units))


def draw_replicates(
    units: Units, key: bytes, resamples: int, statistic: Callable[[int, int], Fraction]
) -> list[Fraction]:
    """The statistic of the sum and the number of the items, for each resample of as many units as there are."""
    count, items, found = len(units.sums), units.items, []
    for number in range(resamples):
        chosen = draw_indices(key, number, count, count)
        pick: Callable[[Sequence[int]], Iterable[int]] = itemgetter(*chosen) if count > 1 else tuple
        size = sum(pick(units.sizes)) if units.clustered else items
        found.append(statistic(sum(pick(units.sums)), size))
    return found


@fixed
def correct(estimate: Fraction, replicates: Iterable[Fraction], left_out: Sequence[Decimal]) -> Bootstrap:
    """Bias from the share of replicates below the estimate (those equal count half), acceleration from the statistic
    with one unit left out at a time, which may be in any one scale."""
    ordered = sorted(replicates)
    count = len(ordered)
    below = sum(value < estimate for value in ordered)
    equal = sum(value == estimate for value in ordered)
    share = min(max(Fraction(2 * below + equal, 2 * count), Fraction(1, 2 * count)), 1 - Fraction(1, 2 * count))
    return Bootstrap(estimate, tuple(ordered), normal_quantile(share), _accelerate(left_out))


def _accelerate(left_out: Sequence[Decimal]) -> Decimal:
    """Sum of cubes / (6 (sum of squares)^(3/2)) of mean less value; 0 where nothing varies."""
    mean = sum(left_out, Decimal(0)) / len(left_out)
    apart = [mean - value for value in left_out]
    squares = sum((value * value for value in apart), Decimal(0))
    # What the last digits make of equal values is no variation.
    if squares <= mean * mean * Decimal("1E-80"):
        return Decimal(0)
    return sum((value * value * value for value in apart), Decimal(0)) / (6 * squares * squares.sqrt())


@fixed
def _leave_one_out(units: Units) -> list[Decimal]:
    if len(units.sums) == 1:
        return [to_decimal(units.mean)]
    total, items = sum(units.sums), units.items
    return [Decimal(total - value) / (items - size) for value, size in zip(units.sums, units.sizes, strict=True)]
