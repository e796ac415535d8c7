"""Tango's score test and interval of the difference of two paired proportions.

Tango (1998), Statistics in Medicine 17:891, equations 24 to 26. With `better` and `worse` of n items, and the
difference d under the hypothesis:

    T(d) = (better - worse - n d) / sqrt(n (2 q + d (1 - d)))
    q    = (sqrt(B^2 - 4 A C) - B) / (2 A),   A = 2n,  B = -better - worse + (2n - better + worse) d,
                                              C = -worse d (1 - d)

q is the chance of "worse" that fits best where the difference is d. At d = 0, T is McNemar's statistic.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from appliance.domain.evaluation.statistics.distributions import normal_quantile, normal_tail
from appliance.domain.evaluation.statistics.numbers import UNIT, find_last, fixed, settle, to_decimal


@dataclass(frozen=True)
class Proportions:
    """Of `items` pairs, those that only the first has right (`better`) and those that only the second has (`worse`)."""

    items: int
    better: int
    worse: int

    def __post_init__(self) -> None:
        if min(self.better, self.worse) < 0 or not 1 <= self.items >= self.better + self.worse:
            raise ValueError(f"proportions: expected counts within the items, at least one, got {self}")

    @property
    def difference(self) -> Fraction:
        return Fraction(self.better - self.worse, self.items)

    @fixed
    def statistic(self, difference: Fraction) -> Decimal | None:
        """T where the truth is this difference, -1 to 1; None where no spread is left: 0 / 0, or more than any."""
        items, better, worse = self.items, self.better, self.worse
        d = to_decimal(difference)
        half = -(better + worse) + (2 * items - better + worse) * d
        root = (half * half + 8 * items * worse * d * (1 - d)).sqrt()
        spread = items * ((root - half) / (2 * items) + d * (1 - d))
        if spread <= _NOTHING:
            return None
        return (better - worse - items * d) / spread.sqrt()

    @fixed
    def greater(self, difference: Fraction) -> Fraction:
        """The p-value of "the difference is more than this"."""
        found = self.statistic(difference)
        if found is None:
            return Fraction(1) if self.difference <= difference else Fraction(0)
        return settle(normal_tail(found))

    def lower(self, level: Fraction) -> Fraction:
        """The interval's lower end at one-sided `level`, in steps of 1e-9, never above the exact one."""
        quantile = normal_quantile(1 - level)
        return Fraction(find_last(lambda units: self._above(Fraction(units, UNIT), quantile), -UNIT, UNIT), UNIT)

    def upper(self, level: Fraction) -> Fraction:
        return -Proportions(self.items, self.worse, self.better).lower(level)

    @fixed
    def _above(self, difference: Fraction, quantile: Decimal) -> bool:
        found = self.statistic(difference)
        return self.difference > difference if found is None else settle(found) >= Fraction(quantile)


_NOTHING = Decimal("1E-40")
