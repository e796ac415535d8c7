"""Tests of paired proportions, and the smallest effects that a number of items can show.

McNemar's exact test: McNemar (1947), Psychometrika 12:153, exact by the binomial distribution.

Tango's score test and interval: Tango (1998), Statistics in Medicine 17:891, equations 24 to 26. With `better` and
`worse` of n items, and the difference d under the hypothesis:

    T(d) = (better - worse - n d) / sqrt(n (2 q + d (1 - d)))
    q    = (sqrt(B^2 - 4 A C) - B) / (2 A),   A = 2n,  B = -better - worse + (2n - better + worse) d,
                                              C = -worse d (1 - d)

q is the maximum likelihood estimate of the chance of "worse" where the difference is d. At d = 0, T is McNemar's
statistic.

Power: Connor (1987), Biometrics 43:207, for paired proportions, and the usual normal formula for means. Both are
approximations for planning; no decision depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from appliance.domain.evaluation.statistics.distributions import normal_quantile, normal_tail
from appliance.domain.evaluation.statistics.numbers import UNIT, find_last, fixed, settle, to_decimal, write_near


def greater(better: int, worse: int) -> Fraction:
    """Return the one-sided p-value of McNemar's exact test for "the first model is better".

    It is P(X >= better) of a binomial distribution with better + worse trials and chance 1/2.
    """
    trials = better + worse
    term, total = 1, 0
    # Counting down, each binomial coefficient follows from the previous one.
    for count in range(trials, better - 1, -1):
        total += term
        term = term * count // (trials - count + 1)
    return Fraction(total, 2**trials)


@dataclass(frozen=True)
class Proportions:
    """Counts of paired right and wrong answers.

    Of `items` pairs, `better` are right for the first model only, and `worse` for the second model only.
    """

    items: int
    better: int
    worse: int

    def __post_init__(self) -> None:
        if min(self.better, self.worse) < 0 or not 1 <= self.items >= self.better + self.worse:
            raise ValueError(f"proportions: expected counts within the items, at least one, got {self}")

    @property
    def difference(self) -> Fraction:
        """Return the share right of the first model minus that of the second."""
        return Fraction(self.better - self.worse, self.items)

    @fixed
    def statistic(self, difference: Fraction) -> Decimal | None:
        """Return Tango's T under the hypothesis that the true difference is `difference`, from -1 to 1.

        None where the variance under the hypothesis is 0, so that T is undefined or infinite.
        """
        items, better, worse = self.items, self.better, self.worse
        d = to_decimal(difference)
        half = -(better + worse) + (2 * items - better + worse) * d
        root = (half * half + 8 * items * worse * d * (1 - d)).sqrt()
        spread = items * ((root - half) / (2 * items) + d * (1 - d))
        if spread <= _NO_VARIANCE:
            return None
        return (better - worse - items * d) / spread.sqrt()

    @fixed
    def greater(self, difference: Fraction) -> Fraction:
        """Return the one-sided p-value of "the true difference is greater than `difference`"."""
        found = self.statistic(difference)
        if found is None:
            return Fraction(1) if self.difference <= difference else Fraction(0)
        return settle(normal_tail(found))

    def lower(self, level: Fraction) -> Fraction:
        """Return the lower end of Tango's interval at one-sided `level`, in steps of 1e-9 and rounded down."""
        quantile = normal_quantile(1 - level)
        return Fraction(find_last(lambda units: self._above(Fraction(units, UNIT), quantile), -UNIT, UNIT), UNIT)

    def upper(self, level: Fraction) -> Fraction:
        """Return the upper end of Tango's interval at one-sided `level`, in steps of 1e-9 and rounded up."""
        return -Proportions(self.items, self.worse, self.better).lower(level)

    @fixed
    def _above(self, difference: Fraction, quantile: Decimal) -> bool:
        """Return True if the test shows, at this quantile, that the true difference is greater than `difference`."""
        found = self.statistic(difference)
        return self.difference > difference if found is None else settle(found) >= Fraction(quantile)


_NO_VARIANCE = Decimal("1E-40")


STEP = 1_000_000
"""Steps in 1 of a computed effect: effects are computed to 1e-6."""


@dataclass(frozen=True)
class EffectAssumptions:
    """The assumptions from which a smallest effect is computed.

    `alpha` is one-sided, after every correction. `spread`: for paired proportions the share of items on which the two
    models differ, for scores the standard deviation of the differences.
    """

    items: int
    alpha: Fraction
    power: Fraction
    spread: Fraction

    def __post_init__(self) -> None:
        if self.items < 1 or not 0 < self.alpha < 1 or not 0 < self.power < 1 or self.spread <= 0:
            raise ValueError(f"basis: expected items, and alpha and power between 0 and 1, got {self}")

    def describe(self, spread: str) -> str:
        """Return for example `500 items, one-sided alpha 0.025, power 0.8, 0.1 of the items answered differently`."""
        numbers = (write_near(value).rstrip("0").rstrip(".") for value in (self.alpha, self.power, self.spread))
        return "{} items, one-sided alpha {}, power {}, {} {}".format(self.items, *numbers, spread)


@fixed
def smallest_effect(basis: EffectAssumptions) -> Fraction | None:
    """Return the smallest difference d of paired proportions that is shown with this power; None where there is none.

    n d^2 >= (z_alpha sqrt(s) + z_power sqrt(s - d^2))^2, with d at most the spread s (Connor 1987).
    """
    alpha, power = normal_quantile(1 - basis.alpha), normal_quantile(basis.power)
    spread = to_decimal(basis.spread)

    def is_shown(units: int) -> bool:
        effect = to_decimal(Fraction(units, STEP))
        left = spread - effect * effect
        needed = alpha * spread.sqrt() + power * max(left, Decimal(0)).sqrt()
        return effect * to_decimal(basis.items).sqrt() >= needed

    return _find_first(is_shown, int(min(basis.spread, Fraction(1)) * STEP))


@fixed
def smallest_margin(basis: EffectAssumptions) -> Fraction | None:
    """Return the smallest margin m within which "no worse" is shown with this power if both models are equally good.

    n m^2 >= (z_alpha + z_power)^2 s. None where no margin up to 1 is shown.
    """
    quantiles = normal_quantile(1 - basis.alpha) + normal_quantile(basis.power)
    needed = quantiles * quantiles * to_decimal(basis.spread)
    return _find_first(lambda units: basis.items * to_decimal(Fraction(units, STEP) ** 2) >= needed, STEP)


@fixed
def smallest_difference(basis: EffectAssumptions) -> Fraction | None:
    """Return the smallest difference of mean scores that is shown with this power, in the unit of the spread s.

    It is (z_alpha + z_power) s / sqrt(n).
    """
    quantiles = normal_quantile(1 - basis.alpha) + normal_quantile(basis.power)
    return settle(quantiles * to_decimal(basis.spread) / to_decimal(basis.items).sqrt())


def _find_first(holds: Callable[[int], bool], high: int) -> Fraction | None:
    """Return the first effect, in steps from 1 to `high`, for which `holds` is true; None if there is none.

    `holds` must be true for all steps after it.
    """
    found = find_last(lambda units: units == 0 or not holds(units), 0, high) + 1
    return Fraction(found, STEP) if found <= high else None
