"""The sign-flip permutation test of paired differences: if the two models were alike, each unit's sign were a coin's.

Fisher (1935), The Design of Experiments, section 21. p = (1 + as extreme) / (1 + resamples): Phipson and Smyth (2010),
Statistical Applications in Genetics and Molecular Biology 9:39, which never is too small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import compress

from appliance.domain.evaluation.statistics.generator import draw_bits


def greater(sums: Sequence[int], key: bytes, resamples: int) -> Fraction:
    """How likely a total as high as this is by signs alone, one-sided.

    `sums`: the units' differences, each less what is not to be exceeded. Units of 0 change nothing and are left out.
    Exact where all signs are at most as many as the resamples.
    """
    moving = [value for value in sums if value]
    total = sum(moving)
    if 2 ** len(moving) <= resamples:
        return _enumerate(moving, total)
    # With the units whose bit is 1 kept and the others flipped, the total is 2 kept - total.
    hits = sum(sum(compress(moving, draw_bits(key, number, len(moving)))) >= total for number in range(resamples))
    return Fraction(1 + hits, 1 + resamples)


def _enumerate(moving: Sequence[int], total: int) -> Fraction:
    kept = Counter({0: 1})
    for value in moving:
        after = Counter(kept)
        for sum_so_far, ways in kept.items():
            after[sum_so_far + value] += ways
        kept = after
    return Fraction(sum(ways for sum_of_kept, ways in kept.items() if sum_of_kept >= total), 2 ** len(moving))
