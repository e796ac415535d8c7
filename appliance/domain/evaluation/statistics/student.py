"""The paired t test of a mean difference, and TOST: two one-sided tests for "no more than a margin apart".

Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15:657. By clusters the variance is that of the
clusters' residual sums (Cameron and Miller 2015, Journal of Human Resources 50:317), with one degree less than there
are clusters. Where each item is a unit of its own, this is the ordinary paired t test.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

from appliance.domain.evaluation.statistics.distributions import student_tail
from appliance.domain.evaluation.statistics.numbers import UNIT, find_last, fixed, settle, to_decimal
from appliance.domain.evaluation.statistics.units import Units

MOST_STEPS = 200
"""The bounds are looked for among so many standard errors around the mean, and doubled until they are found."""


@dataclass(frozen=True)
class MeanDifference:
    """`variance`: of the mean. `degrees`: of freedom; 0 where there is one unit only, of which nothing follows."""

    mean: Fraction
    variance: Fraction
    degrees: int

    @fixed
    def greater(self, bound: Fraction) -> Fraction:
        """The p-value of "the mean is more than this"."""
        if self.degrees < 1:
            return Fraction(1)
        if self.variance == 0:
            return Fraction(1) if self.mean <= bound else Fraction(0)
        return settle(student_tail(to_decimal(self.mean - bound) / to_decimal(self.variance).sqrt(), self.degrees))

    def less(self, bound: Fraction) -> Fraction:
        return self.mirrored.greater(-bound)

    def equivalent(self, margin: Fraction) -> Fraction:
        """TOST: the larger of the p-values of "more than -margin" and "less than margin"."""
        return max(self.greater(-margin), self.less(margin))

    @property
    def mirrored(self) -> MeanDifference:
        return MeanDifference(-self.mean, self.variance, self.degrees)

    def lower(self, level: Fraction) -> Fraction | None:
        """The largest bound in steps of 1e-9 that the mean is above, at one-sided `level`."""
        if self.degrees < 1:
            return None
        mean, step = floor(self.mean * UNIT), ceil(Fraction(_root(self.variance)) * UNIT) + 1
        reach = step * MOST_STEPS
        while self.greater(Fraction(mean - reach, UNIT)) > level:
            reach *= 2
        return Fraction(
            find_last(lambda units: self.greater(Fraction(units, UNIT)) <= level, mean - reach, mean + step), UNIT
        )

    def upper(self, level: Fraction) -> Fraction | None:
        found = self.mirrored.lower(level)
        return None if found is None else -found


@fixed
def _root(value: Fraction) -> Decimal:
    return to_decimal(value).sqrt()


def measure_mean(units: Units, scale: int = 1) -> MeanDifference:
    """variance = G / (G - 1) * sum over units of (sum - mean * size)^2 / items^2. `scale`: what counts as 1."""
    mean, count, items = units.mean, len(units.sums), units.items
    if count < 2:
        return MeanDifference(mean / scale, Fraction(0), 0)
    # In whole numbers: each residual times the number of items.
    total = sum(units.sums)
    squares = sum((value * items - total * size) ** 2 for value, size in zip(units.sums, units.sizes, strict=True))
    variance = Fraction(squares * count, (count - 1) * items**4 * scale**2)
    return MeanDifference(mean / scale, variance, count - 1)
