"""McNemar's exact test: of the items that one of two models has right and the other wrong, who has more?

McNemar (1947), Psychometrika 12:153; exact by the binomial distribution.
"""

from __future__ import annotations

from fractions import Fraction


def greater(better: int, worse: int) -> Fraction:
    """P(X >= better) of better + worse flips of a fair coin, exactly: is the first model the better one?"""
    trials = better + worse
    term, total = 1, 0
    # From the last count down, so that each binomial coefficient follows from the one before.
    for count in range(trials, better - 1, -1):
        total += term
        term = term * count // (trials - count + 1)
    return Fraction(total, 2**trials)


def two_sided(better: int, worse: int) -> Fraction:
    """Twice the smaller tail, at most 1: do they differ?"""
    return min(Fraction(1), 2 * greater(max(better, worse), min(better, worse)))
