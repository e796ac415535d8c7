"""What a set of so many items can show at all, which is said before anything is judged on it.

Connor (1987), Biometrics 43:207 for paired proportions; the usual normal formula for means. Both are approximations:
they plan, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from appliance.domain.evaluation.statistics.distributions import normal_quantile
from appliance.domain.evaluation.statistics.numbers import find_last, fixed, settle, to_decimal, write_near

STEP = 1_000_000
"""Effects are looked for in steps of 1e-6."""


@dataclass(frozen=True)
class Basis:
    """What an effect is computed from. `alpha`: one-sided, after every correction. `spread`: of paired proportions the
    share of items on which the two differ; of scores the standard deviation of the differences."""

    items: int
    alpha: Fraction
    power: Fraction
    spread: Fraction

    def __post_init__(self) -> None:
        if self.items < 1 or not 0 < self.alpha < 1 or not 0 < self.power < 1 or self.spread <= 0:
            raise ValueError(f"basis: expected items, and alpha and power between 0 and 1, got {self}")

    def describe(self, spread: str) -> str:
        """`500 items, one-sided alpha 0.025, power 0.8, 0.1 of the items answered differently`."""
        numbers = (write_near(value).rstrip("0").rstrip(".") for value in (self.alpha, self.power, self.spread))
        return "{} items, one-sided alpha {}, power {}, {} {}".format(self.items, *numbers, spread)


@fixed
def smallest_effect(basis: Basis) -> Fraction | None:
    """The smallest difference d of paired proportions that is shown with this power; None where none is.

    n d^2 >= (z_alpha sqrt(s) + z_power sqrt(s - d^2))^2, and d is at most s.
    """
    alpha, power = normal_quantile(1 - basis.alpha), normal_quantile(basis.power)
    spread = to_decimal(basis.spread)

    def shown(units: int) -> bool:
        effect = to_decimal(Fraction(units, STEP))
        left = spread - effect * effect
        needed = alpha * spread.sqrt() + power * max(left, Decimal(0)).sqrt()
        return effect * to_decimal(basis.items).sqrt() >= needed

    return _first(shown, int(min(basis.spread, Fraction(1)) * STEP))


@fixed
def smallest_margin(basis: Basis) -> Fraction | None:
    """The smallest margin m within which "no worse" is shown with this power where the two are equally good:
    n m^2 >= (z_alpha + z_power)^2 s."""
    quantiles = normal_quantile(1 - basis.alpha) + normal_quantile(basis.power)
    needed = quantiles * quantiles * to_decimal(basis.spread)
    return _first(lambda units: basis.items * to_decimal(Fraction(units, STEP) ** 2) >= needed, STEP)


@fixed
def smallest_difference(basis: Basis) -> Fraction | None:
    """The smallest difference of mean scores: (z_alpha + z_power) s / sqrt(n), in the unit of s."""
    quantiles = normal_quantile(1 - basis.alpha) + normal_quantile(basis.power)
    return settle(quantiles * to_decimal(basis.spread) / to_decimal(basis.items).sqrt())


def _first(holds: Callable[[int], bool], high: int) -> Fraction | None:
    """The first step from 1 to `high` for which it holds, as it does for all after it."""
    found = find_last(lambda units: units == 0 or not holds(units), 0, high) + 1
    return Fraction(found, STEP) if found <= high else None
