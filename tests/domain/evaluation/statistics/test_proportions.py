"""McNemar's exact test against statsmodels, Tango's score test against published numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as public_mcnemar

from appliance.domain.evaluation.statistics import proportions
from appliance.domain.evaluation.statistics.proportions import Proportions

EXAMPLES = settings(deadline=None, max_examples=60)
COUNTS = st.integers(1, 300).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(n), st.just(b), st.integers(0, n - b)))
)


@EXAMPLES
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_statsmodels(better: int, worse: int) -> None:
    public = public_mcnemar([[5, better], [worse, 5]], exact=True).pvalue
    two_sided = min(1, 2 * proportions.greater(max(better, worse), min(better, worse)))
    assert float(two_sided) == pytest.approx(public, rel=1e-9)
    one_sided = stats.binomtest(better, better + worse, alternative="greater").pvalue if better + worse else 1.0
    assert float(proportions.greater(better, worse)) == pytest.approx(one_sided, rel=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_both_tails_of_mcnemar_are_everything_and_the_middle_twice(better: int, worse: int) -> None:
    both = proportions.greater(better, worse) + proportions.greater(worse, better)
    assert both == 1 + Fraction(math.comb(better + worse, better), 2 ** (better + worse))


# (better, worse, items, confidence, lower, upper, places)
PUBLISHED = [
    # Tango 1998, section 6.2 (Karacan et al.): sleeping difficulties of 32 matched pairs.
    (9, 3, 32, "0.95", -0.027, 0.390, 3),
    # R, PropCIs::scoreci.mp(25, 28, 618, 0.90) and scoreci.mp(41, 48, 549, 0.90), as published with Lo et al. 2025.
    (28, 25, 618, "0.90", -0.0148, 0.0247, 4),
    (48, 41, 549, "0.90", -0.0157, 0.0414, 4),
]


@pytest.mark.parametrize(("better", "worse", "items", "confidence", "lower", "upper", "places"), PUBLISHED)
def test_tangos_interval_is_the_published_one(
    better: int, worse: int, items: int, confidence: str, lower: float, upper: float, places: int
) -> None:
    counts, level = Proportions(items, better, worse), (1 - Fraction(confidence)) / 2
    assert (round(float(counts.lower(level)), places), round(float(counts.upper(level)), places)) == (lower, upper)


def test_tangos_test_is_the_published_one() -> None:
    """Tango 1998, section 6.1 (Miyanaga): 44 pairs, none and one discordant, margin 0.1: Z 1.709, p 0.044."""
    counts = Proportions(44, 0, 1)
    statistic = counts.statistic(Fraction(-1, 10))
    assert statistic is not None and round(float(statistic), 3) == 1.709
    assert round(float(counts.greater(Fraction(-1, 10))), 3) == 0.044
    assert round(float(counts.lower(Fraction(1, 20))), 3) == -0.096


@EXAMPLES
@given(COUNTS, st.integers(-99, 99))
def test_tangos_statistic_uses_the_likeliest_counts(counts: tuple[int, int, int], percent: int) -> None:
    """Found again without the closed form: q by maximising the likelihood under the hypothesis."""
    items, better, worse = counts
    delta = percent / 100
    found = Proportions(items, better, worse).statistic(Fraction(percent, 100))

    def unlikely(q: float) -> float:
        cells = ((better, q + delta), (worse, q), (items - better - worse, 1 - 2 * q - delta))
        return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    span = (max(0.0, -delta), (1 - delta) / 2)
    q = optimize.minimize_scalar(unlikely, bounds=span, method="bounded", options={"xatol": 1e-12}).x
    spread = items * (2 * q + delta * (1 - delta))
    if found is None or spread < 1e-4:
        return
    expected = (better - worse - items * delta) / math.sqrt(spread)
    assert float(found) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@EXAMPLES
@given(COUNTS)
def test_at_no_difference_tangos_statistic_is_mcnemars(counts: tuple[int, int, int]) -> None:
    items, better, worse = counts
    found = Proportions(items, better, worse).statistic(Fraction(0))
    if better + worse:
        assert found is not None
        assert float(found) == pytest.approx((better - worse) / math.sqrt(better + worse), abs=1e-12)
    else:
        assert found is None


@EXAMPLES
@given(COUNTS, st.sampled_from([Fraction(1, 40), Fraction(1, 200), Fraction(1, 10)]))
def test_tangos_interval_holds_the_difference_and_agrees_with_the_test(
    counts: tuple[int, int, int], level: Fraction
) -> None:
    found = Proportions(*counts)
    lower, upper = found.lower(level), found.upper(level)
    assert -1 <= lower <= found.difference <= upper <= 1
    step = Fraction(1, 10**9)
    if lower > -1:
        assert found.greater(lower) <= level + Fraction(1, 10**8)
    if lower + step < 1 and found.difference > lower + 2 * step:
        assert found.greater(lower + step) >= level - Fraction(1, 10**8)
    mirrored = Proportions(counts[0], counts[2], counts[1])
    assert (mirrored.lower(level), mirrored.upper(level)) == (-upper, -lower)


def test_items_that_all_agree_show_a_margin_by_their_number_alone() -> None:
    assert float(Proportions(20, 0, 0).greater(Fraction(-1, 10))) == pytest.approx(0.0680, abs=1e-4)
    assert float(Proportions(200, 0, 0).greater(Fraction(-1, 10))) < 1e-5
    assert Proportions(20, 0, 0).greater(Fraction(0)) == 1
    assert Proportions(20, 20, 0).greater(Fraction(0)) < Fraction(1, 10_000)


@pytest.mark.parametrize("counts", [(0, 0, 0), (5, 3, 3), (5, -1, 0), (5, 0, -1)])
def test_impossible_counts_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected counts within the items"):
        Proportions(*counts)
