"""Holm's correction: of several claims, the chance that even one is made wrongly stays below alpha.

Holm (1979), Scandinavian Journal of Statistics 6:65.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def adjust(values: Sequence[Fraction]) -> list[Fraction]:
    """Each p-value as what is compared with alpha: the i-th smallest times (m - i + 1), never below one before it."""
    adjusted, before = [Fraction(1)] * len(values), Fraction(0)
    for place, factor in rank(values):
        before = max(before, min(Fraction(1), values[place] * factor))
        adjusted[place] = before
    return adjusted


def rank(values: Sequence[Fraction]) -> list[tuple[int, int]]:
    """(place, factor) from the smallest p-value on; of equal ones the first place first."""
    ordered = sorted(range(len(values)), key=lambda place: (values[place], place))
    return [(place, len(values) - number) for number, place in enumerate(ordered)]
