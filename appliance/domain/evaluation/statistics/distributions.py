"""Tails of the normal, Student and binomial distributions, and the normal quantile, in decimals of 60 digits.

Every sum has positive terms alone, so digits are lost only where a tail is 1 less the rest: at 12 standard deviations
23 of them.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import comb

from appliance.domain.evaluation.statistics.numbers import fixed, settle, to_decimal

FAR = 12
"""So many standard deviations out, a tail of the normal distribution is written as TINY, which is above it."""
TINY = Decimal("1E-30")
_ENOUGH = Decimal("1E-58")
_HALF = Decimal("0.5")


@fixed
def normal_tail(x: Decimal) -> Decimal:
    """P(Z > x) = 1/2 - phi(x) (x + x^3/3 + x^5/(3*5) + ...), Abramowitz and Stegun 26.2.11."""
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
    """x with P(Z <= x) = p to 20 places, at most FAR, by Newton's method.

    From 0 on, the steps come from one side and never pass x.
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
    """P(T > t) of Student's distribution with a whole number of degrees, by its finite sums.

    Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even), with theta = arctan(t / sqrt(degrees)).
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
    cosine = square.sqrt()
    angle = _arctan(sine / cosine)
    if degrees > 1:
        angle += sine * _sum(cosine, square, 2, degrees)
    return angle * 2 / _pi()


def _sum(term: Decimal, square: Decimal, first: int, degrees: int) -> Decimal:
    """term (1 + first/(first+1) square + ...), as far as the power degrees - 2 of the cosine."""
    total = term
    for factor in range(first, degrees - 2, 2):
        term = term * square * factor / (factor + 1)
        total += term
        if term < _ENOUGH:
            break
    return total


def _arctan(x: Decimal) -> Decimal:
    """Halved six times by arctan x = 2 arctan(x / (1 + sqrt(1 + x^2))), then Taylor's series."""
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
    """Machin: pi/4 = 4 arctan(1/5) - arctan(1/239)."""
    return 4 * (4 * _arctan(Decimal(1) / 5) - _arctan(Decimal(1) / 239))


@fixed
def binomial_tail(successes: int, trials: int, chance: Fraction) -> Fraction:
    """P(X >= successes) of `trials` with this chance each, summed from the smallest count on."""
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
