"""Permutation, bootstrap and t test of mean differences, against scipy and statsmodels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from decimal import Decimal
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from appliance.domain.evaluation.statistics import resampling
from appliance.domain.evaluation.statistics.distributions import Units, group_units, measure_mean
from appliance.domain.evaluation.statistics.resampling import bootstrap_mean, draw_replicates, stream_key

EXAMPLES = settings(deadline=None, max_examples=40)
KEY = stream_key(1, "test")
DRAWN = np.random.default_rng(3)
SKEWED = [int(value * 1000) - 900 for value in DRAWN.exponential(size=80)]
CLUSTERS = [f"c{place % 17}" for place in range(80)]


def alone(values: list[int]) -> Units:
    return group_units(values, [None] * len(values))


@EXAMPLES
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=10))
def test_few_units_are_permuted_exactly(values: list[int]) -> None:
    signs = list(product((1, -1), repeat=len(values)))
    extreme = sum(sum(a * b for a, b in zip(sign, values, strict=True)) >= sum(values) for sign in signs)
    assert resampling.greater(values, KEY, 9_999) == Fraction(extreme, len(signs))


@pytest.mark.parametrize("shift", [-40, 0, 30])
def test_many_units_are_permuted_as_scipy_does(shift: int) -> None:
    values = [value + shift for value in SKEWED]
    found = float(resampling.greater(values, KEY, 9_999))
    public = stats.permutation_test(
        (np.array(values),),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        n_resamples=9_999,
        alternative="greater",
        vectorized=True,
        random_state=np.random.default_rng(5),
    ).pvalue
    assert found == pytest.approx(public, abs=0.02)


def test_a_permutations_p_value_is_never_zero() -> None:
    assert resampling.greater([5] * 400, KEY, 999) == Fraction(1, 1000)
    assert resampling.greater([0] * 400, KEY, 999) == 1


@pytest.mark.thorough
def test_the_permutation_test_errs_no_more_often_than_it_says() -> None:
    """Two models that are alike, 300 times: at 0.05 its result is "better" in at most about one of twenty."""
    rng = np.random.default_rng(11)
    hits = sum(
        resampling.greater([int(v) for v in rng.integers(-50, 51, size=30)], stream_key(n, "null"), 999)
        <= Fraction(1, 20)
        for n in range(300)
    )
    assert stats.binomtest(hits, 300, 0.05, alternative="greater").pvalue > 0.001


@pytest.mark.parametrize("clusters", [[None] * 80, CLUSTERS], ids=["items", "clusters"])
def test_bca_of_the_same_replicates_is_scipys(clusters: list[str | None]) -> None:
    """scipy is handed our replicates and corrects them itself. It interpolates among B - 1 gaps, where ours takes the
    replicate of rank a (B + 1), outwards: two ranks further out at most."""
    units = group_units(SKEWED, clusters)
    ours = bootstrap_mean(units, KEY, 1_999)
    sums, sizes = np.array(units.sums), np.array(units.sizes)

    class Held:
        bootstrap_distribution = np.array([float(value) for value in ours.replicates])

    public = stats.bootstrap(
        (sums, sizes),
        lambda s, n: np.sum(s) / np.sum(n),
        paired=True,
        vectorized=False,
        n_resamples=0,
        bootstrap_result=Held(),
        method="BCa",
        confidence_level=0.95,
    ).confidence_interval
    ordered = [float(value) for value in ours.replicates]
    lower, upper = ours.lower(Fraction(1, 40)), ours.upper(Fraction(1, 40))
    assert lower is not None and upper is not None
    assert float(lower) <= public.low <= ordered[bisect_right(ordered, float(lower)) + 1]
    assert ordered[bisect_left(ordered, float(upper)) - 2] <= public.high <= float(upper)


def test_bias_and_acceleration_are_those_of_the_formula() -> None:
    ours = bootstrap_mean(alone(SKEWED), KEY, 1_999)
    values = np.array(SKEWED, dtype=float)
    apart = values - values.mean()
    assert float(ours.acceleration) == pytest.approx((apart**3).sum() / (6 * (apart**2).sum() ** 1.5), rel=1e-9)
    below = sum(value < ours.estimate for value in ours.replicates) + 0.5 * sum(
        value == ours.estimate for value in ours.replicates
    )
    assert float(ours.bias) == pytest.approx(stats.norm.ppf(below / 1_999), abs=1e-9)


@pytest.mark.parametrize("bound", [-300, -100, -20, 0, 60])
@pytest.mark.parametrize("level", [Fraction(1, 20), Fraction(1, 40), Fraction(1, 200)])
def test_the_bootstraps_p_value_is_the_level_whose_bound_is_above(bound: int, level: Fraction) -> None:
    drawn = bootstrap_mean(group_units(SKEWED, CLUSTERS), KEY, 999)
    lower = drawn.lower(level)
    assert lower is not None
    assert (drawn.greater(Fraction(bound)) <= level) == (lower > bound)


def test_a_bound_that_resamples_cannot_give_is_none() -> None:
    drawn = bootstrap_mean(alone(SKEWED), KEY, 99)
    assert drawn.lower(Fraction(1, 10_000)) is None and drawn.upper(Fraction(1, 10_000)) is None
    assert drawn.greater(Fraction(-10_000)) == Fraction(1, 100), "never below 1 / (resamples + 1)"
    assert drawn.greater(Fraction(10_000)) == 1


def test_units_that_do_not_vary_have_themselves_as_bounds() -> None:
    for values in ([7] * 30, [7]):
        drawn = bootstrap_mean(alone(values), KEY, 99)
        assert (drawn.bias, drawn.acceleration) == (0, 0)
        assert drawn.lower(Fraction(1, 20)) == drawn.upper(Fraction(1, 20)) == 7


def test_a_resample_takes_whole_clusters() -> None:
    units = group_units([1, 10, 1, 10], ["a", "b", "a", "b"])
    assert units == Units((2, 20), (2, 2)) and units.mean == Fraction(11, 2)
    assert set(draw_replicates(units, KEY, 50, Fraction)) == {Fraction(1), Fraction(11, 2), Fraction(10)}


@EXAMPLES
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=40), st.integers(1, 500))
def test_the_t_test_and_tost_are_scipys_and_statsmodels(values: list[int], margin: int) -> None:
    if len(set(values)) == 1:
        values = [*values, values[0] + 1]
    found = measure_mean(alone(values))
    greater = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    assert float(found.greater(Fraction(-margin))) == pytest.approx(greater, rel=1e-6, abs=1e-15)
    tost = ttost_paired(np.array(values, dtype=float), np.zeros(len(values)), -margin, margin)[0]
    assert float(found.equivalent(Fraction(margin))) == pytest.approx(float(tost), rel=1e-6, abs=1e-15)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    lower, upper = found.lower(Fraction(1, 40)), found.upper(Fraction(1, 40))
    assert lower is not None and upper is not None
    assert (float(lower), float(upper)) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_by_clusters_the_variance_is_statsmodels() -> None:
    units = group_units(SKEWED, CLUSTERS)
    groups = np.array([int(name[1:]) for name in CLUSTERS])
    model = sm.OLS(np.array(SKEWED, dtype=float), np.ones(80)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    found = measure_mean(units)
    assert found.degrees == 16
    assert float(found.variance) == pytest.approx(model.bse[0] ** 2 * 17 / 16, rel=1e-9)
    scaled = measure_mean(units, 1000)
    assert scaled.mean == found.mean / 1000 and scaled.variance == found.variance / 10**6


def test_a_t_tests_bound_is_the_last_step_that_is_refused() -> None:
    found = measure_mean(alone(SKEWED), 1000)
    lower = found.lower(Fraction(1, 1000))
    assert lower is not None
    assert found.greater(lower) <= Fraction(1, 1000) < found.greater(lower + Fraction(1, 10**9))


def test_one_unit_shows_nothing_and_units_without_spread_show_their_value() -> None:
    one = measure_mean(group_units([5, 7], ["a", "a"]))
    assert (one.greater(Fraction(0)), one.lower(Fraction(1, 20)), one.degrees) == (1, None, 0)
    same = measure_mean(alone([5] * 30))
    assert same.greater(Fraction(4)) == 0 and same.greater(Fraction(5)) == 1
    lower = same.lower(Fraction(1, 20))
    assert lower is not None and Decimal("4.99999") < lower < 5


def test_a_cluster_for_each_item_is_needed() -> None:
    with pytest.raises(ValueError, match="expected 2 clusters, got 1"):
        group_units([1, 2], [None])
