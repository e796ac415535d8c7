"""What is drawn, flipped and counted as one: an item, or the items of a cluster, which belong together.

Clauses of one contract are no independent witnesses: taken as such, their interval would be too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Units:
    """For each unit the sum of its items' differences, and how many items they are. In the items' order, a cluster
    where its first item is."""

    sums: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def items(self) -> int:
        return sum(self.sizes)

    @property
    def mean(self) -> Fraction:
        """Of the items, not of the units."""
        return Fraction(sum(self.sums), self.items)

    @property
    def clustered(self) -> bool:
        return len(self.sizes) != self.items


def group_units(differences: Sequence[int], clusters: Sequence[str | None]) -> Units:
    """An item without a cluster is a unit by itself."""
    if len(differences) != len(clusters):
        raise ValueError(f"units: expected {len(differences)} clusters, got {len(clusters)}")
    sums: dict[str | int, int] = {}
    sizes: dict[str | int, int] = {}
    for place, (difference, cluster) in enumerate(zip(differences, clusters, strict=True)):
        name = place if cluster is None else cluster
        sums[name] = sums.get(name, 0) + difference
        sizes[name] = sizes.get(name, 0) + 1
    return Units(tuple(sums.values()), tuple(sizes.values()))
