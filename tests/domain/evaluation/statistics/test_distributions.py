"""Tails and quantiles, against scipy's; and that they are the same whatever the caller's decimal context is."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from appliance.domain.evaluation.statistics.distributions import (
    TINY,
    binomial_tail,
    normal_quantile,
    normal_tail,
    student_tail,
)
from appliance.domain.evaluation.statistics.numbers import find_last, settle, write_down, write_near, write_up

EXAMPLES = settings(deadline=None, max_examples=100)


@EXAMPLES
@given(st.floats(-11, 11))
def test_the_normal_tail_is_scipys(x: float) -> None:
    assert float(normal_tail(Decimal(x))) == pytest.approx(stats.norm.sf(x), rel=1e-12)


@pytest.mark.thorough
@EXAMPLES
@given(st.fractions(Fraction(1, 10**12), 1 - Fraction(1, 10**12)))
def test_the_normal_quantile_is_scipys_and_undoes_the_tail(p: Fraction) -> None:
    found = normal_quantile(p)
    assert float(found) == pytest.approx(stats.norm.ppf(float(p)), rel=1e-3 if p > 1 - 1e-9 else 1e-6, abs=1e-9)
    assert float(1 - Fraction(normal_tail(found)) - p) == pytest.approx(0, abs=1e-18)


def test_the_normal_distributions_known_digits() -> None:
    # Abramowitz and Stegun, table 26.5, and the usual 1.96 with more places.
    assert str(normal_quantile(Fraction(39, 40)))[:18] == "1.9599639845400542"
    assert str(normal_tail(Decimal(1)))[:17] == "0.158655253931457"
    assert normal_quantile(Fraction(1, 2)) == 0
    assert normal_tail(Decimal(13)) == TINY
    assert Decimal(1) - normal_tail(Decimal(-13)) < Decimal("1E-20")


@EXAMPLES
@given(st.floats(-40, 40), st.sampled_from([1, 2, 3, 4, 5, 10, 31, 499, 10_000]))
def test_students_tail_is_scipys(t: float, degrees: int) -> None:
    # scipy returns 0.5 for small t, which differs by up to 1.4e-9.
    assert float(student_tail(Decimal(t), degrees)) == pytest.approx(stats.t.sf(t, degrees), rel=1e-8, abs=1e-30)


@EXAMPLES
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(1, 99))
def test_the_binomial_tail_is_scipys(counts: tuple[int, int], percent: int) -> None:
    successes, trials = counts
    expected = stats.binom.sf(successes - 1, trials, percent / 100)
    assert float(binomial_tail(successes, trials, Fraction(percent, 100))) == pytest.approx(
        expected, rel=1e-8, abs=1e-19
    )


def test_a_callers_decimal_context_changes_no_digit() -> None:
    def compute() -> tuple[Decimal, Decimal, Decimal]:
        normal_quantile.cache_clear()
        return normal_quantile(Fraction(39, 40)), student_tail(Decimal(2), 7), normal_tail(Decimal("1.25"))

    plain = compute()
    with localcontext() as context:
        context.prec, context.rounding = 5, ROUND_UP
        assert compute() == plain


@given(st.fractions(-1000, 1000))
def test_bounds_are_written_outwards_and_estimates_to_the_nearest(value: Fraction) -> None:
    low, near, high = (Fraction(write(value)) for write in (write_down, write_near, write_up))
    assert low <= value <= high
    assert high - low <= Fraction(1, 10**9) and abs(near - value) <= Fraction(1, 2 * 10**9)
    assert write_near(Fraction(-1, 10**10)) == "0.000000000", "there is one zero"


@given(st.fractions(0, 1), st.integers(1, 10**9 - 1))
def test_a_written_p_value_is_below_alpha_where_the_p_value_is(p: Fraction, alpha: int) -> None:
    bound = Fraction(alpha, 10**9)
    assert (Fraction(write_up(p)) <= bound) == (p <= bound)


def test_what_is_settled_has_twenty_places_half_to_even() -> None:
    assert settle(Decimal("0.123456789012345678905")) == Fraction("0.12345678901234567890")
    assert settle(Decimal("0.123456789012345678915")) == Fraction("0.12345678901234567892")


@given(st.integers(-50, 50), st.integers(-50, 50))
def test_the_last_place_is_found(threshold: int, other: int) -> None:
    low, high = min(threshold, other) - 1, max(threshold, other) + 1
    assert find_last(lambda value: value <= threshold, low, high) == threshold


@pytest.mark.parametrize("p", [Fraction(0), Fraction(1), Fraction(-1), Fraction(3, 2)])
def test_no_quantile_of_what_is_no_probability(p: Fraction) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        normal_quantile(p)
    with pytest.raises(ValueError, match="between 0 and 1"):
        binomial_tail(1, 2, p)
    with pytest.raises(ValueError, match="degree"):
        student_tail(Decimal(1), 0)
