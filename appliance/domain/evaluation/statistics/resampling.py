"""Resampling: a reproducible random generator, the sign-flip permutation test and the BCa bootstrap.

The generator is SHAKE-256 (FIPS 202) of seed, purpose and the resample's number. Each resample has its own stream, so
that any program in any language can repeat any of them.

Permutation test: Fisher (1935), The Design of Experiments, section 21. p = (1 + as extreme) / (1 + resamples), which is
never too small: Phipson and Smyth (2010), Statistical Applications in Genetics and Molecular Biology 9:39. Bootstrap:
Efron (1987), JASA 82:171; Efron and Tibshirani (1993), chapter 14. Its p-value is the level at which the tested value
is the bound.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import compress
from math import ceil, floor
from operator import itemgetter

from appliance.domain.evaluation.statistics.distributions import Units, normal_quantile, normal_tail
from appliance.domain.evaluation.statistics.numbers import fixed, settle, to_decimal

_DOMAIN = b"appliance/resample/v1"
_WORDS = 2**32
_BITS = tuple(bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256))


def stream_key(seed: int, purpose: str) -> bytes:
    """Return the prefix of a resample's hash input, before the resample's number.

    It is domain ‖ 0x00 ‖ seed in decimal digits ‖ 0x00 ‖ purpose ‖ 0x00.
    """
    return b"\0".join((_DOMAIN, str(seed).encode("ascii"), purpose.encode("utf-8"), b""))


def draw_indices(key: bytes, resample: int, count: int, bound: int) -> list[int]:
    """Draw `count` integers from 0 to bound - 1, each equally likely.

    The stream is read as little-endian words of four bytes. Words at or above the largest multiple of `bound` that is
    at most 2^32 are skipped; an index is the remainder of a word by `bound`.
    """
    usable, words = _WORDS - _WORDS % bound, count + 16
    while True:
        stream = _stream(key, resample, 4 * words)
        found = [word % bound for word in struct.unpack(f"<{words}I", stream) if word < usable]
        if len(found) >= count:
            return found[:count]
        words *= 2


def draw_bits(key: bytes, resample: int, count: int) -> bytes:
    """Draw at least `count` bits, as bytes of 0 or 1.

    They are whole bytes of the stream, the lowest bit of each byte first.
    """
    return b"".join(map(_BITS.__getitem__, _stream(key, resample, (count + 7) // 8)))


def _stream(key: bytes, resample: int, size: int) -> bytes:
    return hashlib.shake_256(key + resample.to_bytes(8, "big")).digest(size)


def greater(sums: Sequence[int], key: bytes, resamples: int) -> Fraction:
    """Return the one-sided p-value of the sign-flip permutation test for "the mean difference is greater".

    Under the hypothesis each unit's sign is equally likely plus or minus. `sums` are the units' differences, each minus
    the bound that is to be exceeded. Units of 0 are left out, since their sign changes nothing. The p-value is exact if
    there are at most `resamples` combinations of signs.
    """
    moving = [value for value in sums if value]
    total = sum(moving)
    if 2 ** len(moving) <= resamples:
        return _enumerate(moving, total)
    # Units whose bit is 1 keep their sign, others flip it. So the new total is 2 * (sum of unflipped units) - total.
    hits = sum(sum(compress(moving, draw_bits(key, number, len(moving)))) >= total for number in range(resamples))
    return Fraction(1 + hits, 1 + resamples)


def _enumerate(moving: Sequence[int], total: int) -> Fraction:
    """Return the exact share of sign combinations whose total is at least `total`."""
    ways_by_sum = Counter({0: 1})
    for value in moving:
        extended = Counter(ways_by_sum)
        for sum_so_far, ways in ways_by_sum.items():
            extended[sum_so_far + value] += ways
        ways_by_sum = extended
    return Fraction(
        sum(ways for sum_of_unflipped, ways in ways_by_sum.items() if sum_of_unflipped >= total), 2 ** len(moving)
    )


@dataclass(frozen=True)
class Bootstrap:
    """A BCa bootstrap of a statistic.

    `replicates` are the statistic of each resample, sorted from the lowest on. `bias` is z0, and `acceleration` is a in
    Efron (1987).
    """

    estimate: Fraction
    replicates: tuple[Fraction, ...] = field(repr=False)
    bias: Decimal
    acceleration: Decimal

    @fixed
    def lower(self, level: Fraction) -> Fraction | None:
        """Return the lower bound at one-sided `level`; None where there are too few resamples for this level."""
        rank = floor(self._share(normal_quantile(level)) * (len(self.replicates) + 1))
        return self.replicates[rank - 1] if 1 <= rank <= len(self.replicates) else None

    @fixed
    def upper(self, level: Fraction) -> Fraction | None:
        """Return the upper bound at one-sided `level`; None where there are too few resamples for this level."""
        rank = ceil(self._share(-normal_quantile(level)) * (len(self.replicates) + 1))
        return self.replicates[rank - 1] if 1 <= rank <= len(self.replicates) else None

    @fixed
    def greater(self, bound: Fraction) -> Fraction:
        """Return the p-value of "the true value is greater than `bound`".

        It is the least level whose lower bound is above `bound`, and at least 1 / (resamples + 1).
        """
        least = Fraction(1, len(self.replicates) + 1)
        share = (sum(value <= bound for value in self.replicates) + 1) * least
        if share >= 1:
            return Fraction(1)
        shift = normal_quantile(share) - self.bias
        scale = 1 + self.acceleration * shift
        if scale <= 0:  # beyond the bounds of all levels
            return least if shift < 0 else Fraction(1)
        return max(least, settle(normal_tail(self.bias - shift / scale)))

    def _share(self, quantile: Decimal) -> Fraction:
        """Return the share of the replicates below the bound: Phi(z0 + (z0 + z) / (1 - a (z0 + z)))."""
        shift = self.bias + quantile
        scale = 1 - self.acceleration * shift
        if scale <= 0:
            return Fraction(0 if shift < 0 else 1)
        return settle(normal_tail(-self.bias - shift / scale))


def bootstrap_mean(units: Units, key: bytes, resamples: int) -> Bootstrap:
    """Return the bootstrap of the items' mean. Whole units are drawn, with all of their items."""
    replicates = draw_replicates(units, key, resamples, lambda total, size: Fraction(total, size))
    return correct(units.mean, replicates, _leave_one_out(units))


def draw_replicates(
    units: Units, key: bytes, resamples: int, statistic: Callable[[int, int], Fraction]
) -> list[Fraction]:
    """Return the statistic of each resample, given the sum of its items' differences and their number.

    A resample draws as many units as there are, with replacement.
    """
    count, items, found = len(units.sums), units.items, []
    for number in range(resamples):
        chosen = draw_indices(key, number, count, count)
        pick: Callable[[Sequence[int]], Iterable[int]] = itemgetter(*chosen) if count > 1 else tuple
        size = sum(pick(units.sizes)) if units.clustered else items
        found.append(statistic(sum(pick(units.sums)), size))
    return found


@fixed
def correct(estimate: Fraction, replicates: Iterable[Fraction], left_out: Sequence[Decimal]) -> Bootstrap:
    """Return the bootstrap with its bias and acceleration.

    The bias follows from the share of replicates below the estimate, of which equal ones count half. The acceleration
    follows from `left_out`, the statistic without each of the units, in any scale.
    """
    ordered = sorted(replicates)
    count = len(ordered)
    below = sum(value < estimate for value in ordered)
    equal = sum(value == estimate for value in ordered)
    share = min(max(Fraction(2 * below + equal, 2 * count), Fraction(1, 2 * count)), 1 - Fraction(1, 2 * count))
    return Bootstrap(estimate, tuple(ordered), normal_quantile(share), _accelerate(left_out))


def _accelerate(left_out: Sequence[Decimal]) -> Decimal:
    """Return the acceleration; 0 where the values are equal.

    It is the sum of cubes / (6 (sum of squares)^(3/2)) of mean minus value.
    """
    mean = sum(left_out, Decimal(0)) / len(left_out)
    deviations = [mean - value for value in left_out]
    squares = sum((value * value for value in deviations), Decimal(0))
    # Equal values that differ by rounding in their last digits do not count as varying.
    if squares <= mean * mean * Decimal("1E-80"):
        return Decimal(0)
    return sum((value * value * value for value in deviations), Decimal(0)) / (6 * squares * squares.sqrt())


@fixed
def _leave_one_out(units: Units) -> list[Decimal]:
    if len(units.sums) == 1:
        return [to_decimal(units.mean)]
    total, items = sum(units.sums), units.items
    return [Decimal(total - value) / (items - size) for value, size in zip(units.sums, units.sizes, strict=True)]
