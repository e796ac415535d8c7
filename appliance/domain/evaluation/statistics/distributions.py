"""Tails and quantiles of distributions, the correction of Holm, and the t test of a mean difference.

All decimals have 60 digits. The series add positive terms only. Digits are lost only where a tail is 1 minus the rest:
23 digits at 12 standard deviations.

Holm's correction: Holm (1979), Scandinavian Journal of Statistics 6:65. Equivalence by two one-sided tests (TOST):
Schuirmann (1987), Journal of Pharmacokinetics and Biopharmaceutics 15:657. Variance with clusters: Cameron and Miller
(2015), Journal of Human Resources 50:317.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import ceil, comb, floor

from appliance.domain.evaluation.statistics.numbers import UNIT, find_last, fixed, settle, to_decimal

FAR = 12
"""Standard deviations beyond which a normal tail is given as TINY, an upper bound of it."""
TINY = Decimal("1E-30")
"""Upper bound of the normal tail beyond FAR."""
_ENOUGH = Decimal("1E-58")
_HALF = Decimal("0.5")


@fixed
def normal_tail(x: Decimal) -> Decimal:
    """Return P(Z > x) of the standard normal distribution.

    It is 1/2 - phi(x) (x + x^3/3 + x^5/(3*5) + ...), Abramowitz and Stegun 26.2.11.
    """
    if x > FAR:
        return TINY
    if x < -FAR:
        return 1 - TINY
    square, term, total, odd = x * x, x, x, 1
    while abs(term) > _ENOUGH:
        odd += 2
        term = term * square / odd
        total += term
    return _HALF - (-square / 2).exp() / (2 * _pi()).sqrt() * total


@lru_cache(maxsize=4096)
@fixed
def normal_quantile(p: Fraction) -> Decimal:
    """Return x with P(Z <= x) = p, to 20 places and at most FAR.

    Newton's method starts at 0 and approaches x from one side without passing it.

    Raises: ValueError unless 0 < p < 1.
    """
    if not 0 < p < 1:
        raise ValueError(f"normal quantile: expected a probability between 0 and 1, got {p}")
    if p < Fraction(1, 2):
        return -normal_quantile(1 - p)
    tail, x = to_decimal(1 - p), Decimal(0)
    while x < FAR:
        step = (normal_tail(x) - tail) * (2 * _pi()).sqrt() * (x * x / 2).exp()
        x += step
        if step < Decimal("1E-25"):
            return x.quantize(Decimal("1E-20"))
    return Decimal(FAR)


@fixed
def student_tail(t: Decimal, degrees: int) -> Decimal:
    """Return P(T > t) of Student's distribution with a whole number of degrees of freedom.

    Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even), with theta = arctan(t / sqrt(degrees)).

    Raises: ValueError for less than 1 degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"Student's distribution: expected 1 degree of freedom or more, got {degrees}")
    if t < 0:
        return 1 - student_tail(-t, degrees)
    whole = t * t + degrees
    sine, square = t / whole.sqrt(), degrees / whole
    inside = _odd(sine, square, degrees) if degrees % 2 else _sum(Decimal(1), square, 1, degrees) * sine
    return max((1 - inside) / 2, Decimal(0))


def _odd(sine: Decimal, square: Decimal, degrees: int) -> Decimal:
    """Return P(|T| < t) for odd degrees of freedom, Abramowitz and Stegun 26.7.3."""
    cosine = square.sqrt()
    angle = _arctan(sine / cosine)
    if degrees > 1:
        angle += sine * _sum(cosine, square, 2, degrees)
    return angle * 2 / _pi()


def _sum(term: Decimal, square: Decimal, first: int, degrees: int) -> Decimal:
    """Return the sum term (1 + first/(first+1) square + ...), up to the power degrees - 2 of the cosine."""
    total = term
    for factor in range(first, degrees - 2, 2):
        term = term * square * factor / (factor + 1)
        total += term
        if term < _ENOUGH:
            break
    return total


def _arctan(x: Decimal) -> Decimal:
    """Return arctan x.

    The angle is halved six times by arctan x = 2 arctan(x / (1 + sqrt(1 + x^2))); then Taylor's series is summed.
    """
    for _ in range(6):
        x = x / (1 + (1 + x * x).sqrt())
    power, total, odd = x, x, 1
    while abs(power) > _ENOUGH:
        odd += 2
        power = -power * x * x
        total += power / odd
    return total * 64


@lru_cache(maxsize=1)
@fixed
def _pi() -> Decimal:
    """Return pi by Machin's formula: pi/4 = 4 arctan(1/5) - arctan(1/239)."""
    return 4 * (4 * _arctan(Decimal(1) / 5) - _arctan(Decimal(1) / 239))


@fixed
def binomial_tail(successes: int, trials: int, chance: Fraction) -> Fraction:
    """Return P(X >= successes) of a binomial distribution with these trials and this chance of success.

    Raises: ValueError unless 0 < chance < 1.
    """
    if not 0 < chance < 1:
        raise ValueError(f"binomial distribution: expected a chance between 0 and 1, got {chance}")
    if successes <= 0:
        return Fraction(1)
    odds = to_decimal(chance / (1 - chance))
    term = Decimal(comb(trials, successes)) * to_decimal(chance) ** successes
    term *= to_decimal(1 - chance) ** (trials - successes)
    total = Decimal(0)
    for count in range(successes, trials + 1):
        total += term
        term = term * odds * (trials - count) / (count + 1)
    return min(settle(total), Fraction(1))


def adjust(values: Sequence[Fraction]) -> list[Fraction]:
    """Return the p-values adjusted by Holm's correction, in the order of `values`. Compare them with alpha.

    The i-th smallest of m p-values is multiplied by m - i + 1, is at most 1, and is never less than a smaller one's
    result.
    """
    adjusted, before = [Fraction(1)] * len(values), Fraction(0)
    for index, factor in rank(values):
        before = max(before, min(Fraction(1), values[index] * factor))
        adjusted[index] = before
    return adjusted


def rank(values: Sequence[Fraction]) -> list[tuple[int, int]]:
    """Return (index, Holm's factor) of each p-value, from the smallest on. Equal p-values keep their order."""
    ordered = sorted(range(len(values)), key=lambda index: (values[index], index))
    return [(index, len(values) - number) for number, index in enumerate(ordered)]


@dataclass(frozen=True)
class Units:
    """Sums of differences by unit, which is a cluster of items that belong together, or one item without a cluster.

    For each unit, `sums` has the sum of its items' differences and `sizes` the number of its items. Units are in the
    order of their first items. Items of one cluster are not independent; if they counted singly, the intervals would be
    too narrow.
    """

    sums: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def items(self) -> int:
        """Return the number of items in all units."""
        return sum(self.sizes)

    @property
    def mean(self) -> Fraction:
        """Return the mean difference of the items, not of the units."""
        return Fraction(sum(self.sums), self.items)

    @property
    def clustered(self) -> bool:
        """Return True if any unit has more than one item."""
        return len(self.sizes) != self.items


def group_units(differences: Sequence[int], clusters: Sequence[str | None]) -> Units:
    """Group the items' differences by cluster. An item without a cluster is a unit by itself.

    Raises: ValueError unless there are as many clusters as differences.
    """
    if len(differences) != len(clusters):
        raise ValueError(f"units: expected {len(differences)} clusters, got {len(clusters)}")
    sums: dict[str | int, int] = {}
    sizes: dict[str | int, int] = {}
    for index, (difference, cluster) in enumerate(zip(differences, clusters, strict=True)):
        name = index if cluster is None else cluster
        sums[name] = sums.get(name, 0) + difference
        sizes[name] = sizes.get(name, 0) + 1
    return Units(tuple(sums.values()), tuple(sizes.values()))


MOST_STEPS = 200
"""Standard errors around the mean within which a bound is searched first; the range is doubled until it has the bound.
"""


@dataclass(frozen=True)
class MeanDifference:
    """A mean difference with the variance of the mean and its degrees of freedom, for a paired t test.

    Without clusters it is the ordinary paired t test. With one unit only, `degrees` is 0 and no test is possible.
    """

    mean: Fraction
    variance: Fraction
    degrees: int

    @fixed
    def greater(self, bound: Fraction) -> Fraction:
        """Return the one-sided p-value of "the mean is greater than `bound`"."""
        if self.degrees < 1:
            return Fraction(1)
        if self.variance == 0:
            return Fraction(1) if self.mean <= bound else Fraction(0)
        return settle(student_tail(to_decimal(self.mean - bound) / to_decimal(self.variance).sqrt(), self.degrees))

    def less(self, bound: Fraction) -> Fraction:
        """Return the one-sided p-value of "the mean is less than `bound`"."""
        return self.mirrored.greater(-bound)

    def equivalent(self, margin: Fraction) -> Fraction:
        """Return the p-value of TOST: the larger of those of "more than -margin" and "less than margin"."""
        return max(self.greater(-margin), self.less(margin))

    @property
    def mirrored(self) -> MeanDifference:
        """Return the same difference with its sign changed."""
        return MeanDifference(-self.mean, self.variance, self.degrees)

    def lower(self, level: Fraction) -> Fraction | None:
        """Return the largest bound, in steps of 1e-9, that the mean exceeds at one-sided `level`.

        None for a single unit.
        """
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
        """Return the smallest bound, in steps of 1e-9, that the mean is below at one-sided `level`.

        None for a single unit.
        """
        found = self.mirrored.lower(level)
        return None if found is None else -found


@fixed
def _root(value: Fraction) -> Decimal:
    return to_decimal(value).sqrt()


def measure_mean(units: Units, scale: int = 1) -> MeanDifference:
    """Return the mean difference per item and its variance, divided by `scale` (the integer that stands for 1).

    variance = G / (G - 1) * sum over units of (sum - mean * size)^2 / items^2, with G units and G - 1 degrees of
    freedom (Cameron and Miller 2015).
    """
    mean, count, items = units.mean, len(units.sums), units.items
    if count < 2:
        return MeanDifference(mean / scale, Fraction(0), 0)
    # The residuals are multiplied by the number of items, so that they are integers.
    total = sum(units.sums)
    squares = sum((value * items - total * size) ** 2 for value, size in zip(units.sums, units.sizes, strict=True))
    variance = Fraction(squares * count, (count - 1) * items**4 * scale**2)
    return MeanDifference(mean / scale, variance, count - 1)
