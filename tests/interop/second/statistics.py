"""Statistics of docs/formats/evaluation.md for a second verifier, written from that page alone."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction
from functools import cache
from statistics import NormalDist

CONTEXT = Context(prec=70, rounding=ROUND_HALF_EVEN)
D = Decimal
NINE = 10**9


def decimal(value: Fraction | int) -> Decimal:
    return D(Fraction(value).numerator) / D(Fraction(value).denominator)


def at_20(value: Decimal) -> Fraction:
    return Fraction(value.quantize(D(1).scaleb(-20), ROUND_HALF_EVEN, CONTEXT))


@cache
def _pi() -> Decimal:
    with localcontext(CONTEXT):
        return 16 * _arctan(D(1) / 5) - 4 * _arctan(D(1) / 239)


def _arctan(x: Decimal) -> Decimal:
    """Of 0 to 1/4 by its series, of more by halving the angle."""
    if x > D("0.25"):
        return 2 * _arctan(x / (1 + (1 + x * x).sqrt()))
    total, power, k = x, x, 1
    while abs(power) > D("1e-72"):
        power, k = -power * x * x, k + 2
        total += power / k
    return total


@cache
def phi(x: Decimal) -> Decimal:
    with localcontext(CONTEXT):
        if abs(x) > 15:
            return D(x > 0)
        term, total, k = x, x, 1
        while abs(term) > D("1e-75"):
            k += 2
            term = term * x * x / k
            total += term
        return D("0.5") + total * (-x * x / 2).exp() / (2 * _pi()).sqrt()


@cache
def z(p: Fraction) -> Decimal:
    with localcontext(CONTEXT):
        x = D(NormalDist().inv_cdf(float(p)))
        for _ in range(4):
            density = (-x * x / 2).exp() / (2 * _pi()).sqrt()
            x -= (phi(x) - decimal(p)) / density
        return x


def t_tail(t: Decimal, df: int) -> Decimal:
    """P(T > t)."""
    with localcontext(CONTEXT):
        if t < 0:
            return 1 - t_tail(-t, df)
        theta = _arctan(t / D(df).sqrt())
        cos2 = D(df) / (D(df) + t * t)
        sin = (1 - cos2).sqrt()
        if df % 2:
            term, total = cos2.sqrt(), D(0)
            for k in range(1, df - 1, 2):
                total += term
                term = term * cos2 * (k + 1) / (k + 2)
            inside = 2 / _pi() * (theta + sin * total)
        else:
            term, total = D(1), D(0)
            for k in range(0, df, 2):
                total += term
                term = term * cos2 * (k + 1) / (k + 2)
            inside = sin * total
        return (1 - inside) / 2


def largest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number of billionths from `low` on that holds, if all below it do."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def mcnemar(b: int, c: int) -> Fraction:
    return Fraction(sum(math.comb(b + c, k) for k in range(b, b + c + 1)), 2 ** (b + c))


def _tango(b: int, c: int, n: int, d: Fraction) -> Decimal | None:
    """T(d), or none where the root's argument is 0."""
    with localcontext(CONTEXT):
        x = decimal(d)
        first, second, third = D(2 * n), -b - c + (2 * n - b + c) * x, -c * x * (1 - x)
        q = ((second * second - 4 * first * third).sqrt() - second) / (2 * first)
        under = n * (2 * q + x * (1 - x))
        return None if under <= D("1e-40") else (b - c - n * x) / under.sqrt()


def tango(b: int, c: int, n: int, m: Fraction) -> Fraction:
    found = _tango(b, c, n, m)
    if found is None:
        return Fraction(Fraction(b - c, n) <= m)
    with localcontext(CONTEXT):
        return at_20(1 - phi(found))


def tango_lower(b: int, c: int, n: int, level: Fraction) -> Fraction:
    quantile = z(1 - level)

    def holds(at: int) -> bool:
        d = Fraction(at, NINE)
        found = _tango(b, c, n, d)
        return Fraction(b - c, n) > d if found is None else found >= quantile

    return Fraction(largest(holds, -NINE, NINE), NINE)


class Stream:
    """A resample's random numbers."""

    def __init__(self, seed: int, purpose: str, number: int) -> None:
        key = b"appliance/resample/v1\0%d\0%s\0%s" % (seed, purpose.encode(), number.to_bytes(8, "big"))
        self._shake = hashlib.shake_256(key)

    def indices(self, count: int, n: int) -> list[int]:
        limit, many = (1 << 32) // n * n, count + 16
        while True:
            data = self._shake.digest(4 * many)
            found = [
                word for at in range(0, 4 * many, 4) if (word := int.from_bytes(data[at : at + 4], "little")) < limit
            ]
            if len(found) >= count:
                return [word % n for word in found[:count]]
            many *= 2

    def bits(self, count: int) -> int:
        """Return the first bits, the first one as the lowest."""
        return int.from_bytes(self._shake.digest(-(-count // 8)), "little")


class Units:
    """Gains of items, given in millionths and held in billionths, summed by unit."""

    def __init__(self, gains: Sequence[int], clusters: Sequence[str | None]) -> None:
        self.items = len(gains)
        at: dict[object, int] = {}
        self.sums: list[int] = []
        self.sizes: list[int] = []
        for number, (gain, cluster) in enumerate(zip(gains, clusters, strict=True)):
            unit = at.setdefault(number if cluster is None else cluster, len(self.sums))
            if unit == len(self.sums):
                self.sums.append(0)
                self.sizes.append(0)
            self.sums[unit] += gain * 1000
            self.sizes[unit] += 1
        self.mean = Fraction(sum(self.sums), self.items * NINE)

    @property
    def count(self) -> int:
        return len(self.sums)

    # Permutation.

    def permutation(self, m: Fraction, seed: int, purpose: str, resamples: int) -> Fraction:
        scale = NINE * m.denominator
        values = [one * m.denominator - size * int(m * scale) for one, size in zip(self.sums, self.sizes, strict=True)]
        values = [one for one in values if one]
        observed, total = sum(values), 0
        if 2 ** len(values) <= resamples:
            for signs in range(2 ** len(values)):
                total += sum(v if signs >> k & 1 else -v for k, v in enumerate(values)) >= observed
            return Fraction(total, 2 ** len(values))
        for number in range(resamples):
            bits = Stream(seed, purpose, number).bits(len(values))
            total += sum(v if bits >> k & 1 else -v for k, v in enumerate(values)) >= observed
        return Fraction(1 + total, 1 + resamples)

    # Bootstrap.

    def bootstrap(self, seed: int, purpose: str, resamples: int) -> Bca:
        replicates = []
        for number in range(resamples):
            drawn = Stream(seed, purpose, number).indices(self.count, self.count)
            replicates.append(Fraction(sum(self.sums[k] for k in drawn), NINE * sum(self.sizes[k] for k in drawn)))
        total = sum(self.sums)
        without = [
            Fraction(total - one, NINE * (self.items - size)) if self.items > size else Fraction(0)
            for one, size in zip(self.sums, self.sizes, strict=True)
        ]
        return Bca(sorted(replicates), self.mean, without)

    # Student's t.

    def _error(self) -> Fraction:
        found = sum(
            (Fraction(one, NINE) - self.mean * size) ** 2 for one, size in zip(self.sums, self.sizes, strict=True)
        )
        return Fraction(self.count, self.count - 1) * found / self.items**2

    def more(self, m: Fraction, variance: Fraction | None = None) -> Fraction:
        """Return the p-value of "more than m"."""
        if self.count < 2:
            return Fraction(1)
        variance = self._error() if variance is None else variance
        if variance == 0:
            return Fraction(0 if self.mean > m else 1)
        with localcontext(CONTEXT):
            return at_20(t_tail(decimal(self.mean - m) / decimal(variance).sqrt(), self.count - 1))

    def less(self, m: Fraction) -> Fraction:
        """Return the p-value of "less than m"."""
        return self._turned().more(-m)

    def _turned(self) -> Units:
        other = object.__new__(Units)
        other.items, other.sizes, other.sums, other.mean = (
            self.items,
            self.sizes,
            [-one for one in self.sums],
            -self.mean,
        )
        return other

    def t_lower(self, level: Fraction) -> Fraction | None:
        if self.count < 2:
            return None
        variance = self._error()
        with localcontext(CONTEXT):
            wide = int((decimal(variance).sqrt() * 10_000 + 2) * NINE)
        at = math.floor(self.mean * NINE)
        return Fraction(largest(lambda d: self.more(Fraction(d, NINE), variance) <= level, at - wide, at + 1), NINE)

    def t_upper(self, level: Fraction) -> Fraction | None:
        found = self._turned().t_lower(level)
        return None if found is None else -found


class Bca:
    def __init__(self, replicates: list[Fraction], estimate: Fraction, without: list[Fraction]) -> None:
        self.replicates = replicates
        size = len(replicates)
        below = bisect_left(replicates, estimate)
        equal = bisect_right(replicates, estimate) - below
        share = (Fraction(below) + Fraction(equal, 2)) / size
        self.z0 = z(min(max(share, Fraction(1, 2 * size)), 1 - Fraction(1, 2 * size)))
        mean = sum(without, Fraction(0)) / len(without)
        parts = [mean - one for one in without]
        squares = sum((one * one for one in parts), Fraction(0))
        with localcontext(CONTEXT):
            if squares <= mean * mean / 10**80:
                self.a = D(0)
            else:
                cubes = sum((one**3 for one in parts), Fraction(0))
                self.a = decimal(cubes) / (6 * decimal(squares) * decimal(squares).sqrt())

    def _share(self, quantile: Decimal) -> Decimal:
        with localcontext(CONTEXT):
            turned = self.z0 + quantile
            return phi(self.z0 + turned / (1 - self.a * turned))

    def ends(self, level: Fraction) -> tuple[Fraction | None, Fraction | None]:
        many = len(self.replicates)
        low = math.floor(at_20(self._share(z(level))) * (many + 1))
        high = math.ceil(at_20(self._share(z(1 - level))) * (many + 1))
        return self._at(low), self._at(high)

    def _at(self, rank: int) -> Fraction | None:
        return self.replicates[rank - 1] if 1 <= rank <= len(self.replicates) else None

    def p(self, m: Fraction) -> Fraction:
        many = len(self.replicates)
        g = Fraction(1 + bisect_right(self.replicates, m), many + 1)
        if g >= 1:
            return Fraction(1)
        least = Fraction(1, many + 1)
        with localcontext(CONTEXT):
            w = z(g) - self.z0
            under = 1 + self.a * w
            if under <= 0:
                return least if w < 0 else Fraction(1)
            return max(least, at_20(phi(w / under - self.z0)))


def binomial_above(right: int, n: int, chance: Fraction) -> Fraction:
    return sum((math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(right, n + 1)), Fraction(0))
