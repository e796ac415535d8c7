"""Labels that are nearly the same: one of them is a slip, which a model would learn as a kind of its own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

SHORTEST = 5
"""One edit makes another word of a shorter label: `card` and `cash` are two, `billing` and `biling` one."""


def alike(labels: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs that differ by case or spaces alone, or by one edit: a character more, less or another, or two swapped.

    Numbers do not count as an edit: `level 1` and `level 2` are two labels.
    """
    plain = [(label, "".join(label.casefold().split())) for label in sorted(set(labels))]
    return [(a, b) for (a, one), (b, other) in combinations(plain, 2) if _are_alike(one, other)]


def _are_alike(one: str, other: str) -> bool:
    if one == other:
        return True
    if min(len(one), len(other)) < SHORTEST or abs(len(one) - len(other)) > 1:
        return False
    return _one_edit(one, other)


def _one_edit(a: str, b: str) -> bool:
    start = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    if rest_a[:1].isdigit() or rest_b[:1].isdigit():
        return False
    if rest_a[2:] == rest_b[2:] and rest_a[:2] == rest_b[:2][::-1] and len(rest_a) > 1:
        return True
    return rest_b in (rest_a[1:],) or rest_a == rest_b[1:] or rest_a[1:] == rest_b[1:]
