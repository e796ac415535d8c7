"""Holm's correction against statsmodels, and smallest effects against simulation and the literature."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from appliance.domain.evaluation.statistics import distributions, proportions
from appliance.domain.evaluation.statistics.proportions import (
    EffectAssumptions,
    Proportions,
    smallest_difference,
    smallest_effect,
    smallest_margin,
)

QUARTER, POWER = Fraction(1, 40), Fraction(8, 10)


@pytest.mark.thorough
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
def test_holm_is_statsmodels(thousandths: list[int]) -> None:
    values = [Fraction(value, 1000) for value in thousandths]
    public = multipletests([float(value) for value in values], method="holm")[1]
    assert [float(value) for value in distributions.adjust(values)] == pytest.approx(list(public))


def test_nothing_is_adjusted_to_nothing_and_equal_values_by_place() -> None:
    assert distributions.adjust([]) == []
    assert distributions.rank([Fraction(1, 2), Fraction(1, 2), Fraction(0)]) == [(2, 3), (0, 2), (1, 1)]


@pytest.mark.parametrize(("items", "points"), [(500, 4.0), (3080, 1.6)])
def test_the_smallest_effect_is_that_of_the_literature(items: int, points: float) -> None:
    found = smallest_effect(EffectAssumptions(items, QUARTER, POWER, Fraction(1, 10)))
    assert found is not None and round(float(found * 100), 1) == points


def test_the_smallest_effect_is_shown_with_the_power_that_was_asked_for() -> None:
    """1,500 sets of 500 items drawn: the exact test, which is a little careful, shows it in about 80 of 100."""
    effect = smallest_effect(EffectAssumptions(500, QUARTER, POWER, Fraction(1, 10)))
    assert effect is not None
    better, worse = (0.1 + float(effect)) / 2, (0.1 - float(effect)) / 2
    drawn = np.random.default_rng(2).multinomial(500, [better, worse, 1 - better - worse], size=1500)
    shown = np.mean([proportions.greater(int(b), int(c)) <= QUARTER for b, c, _ in drawn])
    assert 0.72 < shown < 0.84


def test_the_smallest_margin_is_shown_with_the_power_that_was_asked_for() -> None:
    margin = smallest_margin(EffectAssumptions(500, QUARTER, POWER, Fraction(1, 10)))
    assert margin is not None
    drawn = np.random.default_rng(4).multinomial(500, [0.05, 0.05, 0.9], size=600)
    shown = np.mean([Proportions(500, int(b), int(c)).greater(-margin) <= QUARTER for b, c, _ in drawn])
    assert 0.72 < shown < 0.87


def test_what_so_few_items_cannot_show_is_none() -> None:
    assert smallest_effect(EffectAssumptions(20, QUARTER, POWER, Fraction(1, 10))) is None
    assert smallest_margin(EffectAssumptions(1, QUARTER, POWER, Fraction(1, 2))) is None
    assert float(smallest_difference(EffectAssumptions(400, QUARTER, POWER, Fraction(1))) or 0) == pytest.approx(
        0.14008, abs=1e-5
    )


def test_the_basis_is_said_in_one_line() -> None:
    told = EffectAssumptions(500, QUARTER, POWER, Fraction(1, 10)).describe("of the items answered differently")
    assert told == "500 items, one-sided alpha 0.025, power 0.8, 0.1 of the items answered differently"


@pytest.mark.parametrize(
    "changes", [{"items": 0}, {"alpha": Fraction(0)}, {"power": Fraction(1)}, {"spread": Fraction(0)}]
)
def test_a_basis_that_is_none_is_refused(changes: dict[str, Fraction]) -> None:
    good = {"items": 500, "alpha": QUARTER, "power": POWER, "spread": Fraction(1, 10)}
    with pytest.raises(ValueError, match="expected items, and alpha and power"):
        EffectAssumptions(**(good | changes))  # type: ignore[arg-type]
