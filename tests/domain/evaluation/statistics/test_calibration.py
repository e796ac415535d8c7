"""Calibration error and Brier score, against plain numpy; their intervals, against scipy."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from appliance.domain.evaluation.statistics.calibration import (
    BINS,
    WHOLE,
    bin_of,
    bootstrap_brier,
    bootstrap_error,
    brier,
    count_bins,
    expected_error,
)
from appliance.domain.evaluation.statistics.resampling import draw_indices, stream_key

KEY = stream_key(1, "calibration")
ANSWERS = st.lists(st.tuples(st.integers(0, WHOLE), st.booleans()), min_size=1, max_size=60)
RNG = np.random.default_rng(9)
DRAWN = [(int(c), bool(RNG.random() < c / WHOLE - 0.3)) for c in RNG.integers(300_000, WHOLE, size=120)]


def plain_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, in floats."""
    edges = np.linspace(0, 1, BINS + 1)
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high) if low else confidence <= high
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@settings(deadline=None)
@given(ANSWERS)
def test_error_and_brier_score_are_those_of_the_formulas(answers: list[tuple[int, bool]]) -> None:
    confidence = np.array([c / WHOLE for c, _ in answers])
    right = np.array([r for _, r in answers], dtype=float)
    assert float(expected_error(answers)) == pytest.approx(plain_error(confidence, right), abs=1e-9)
    mean = sum(brier(*answer) for answer in answers) / len(answers) / WHOLE
    assert mean == pytest.approx(((confidence - right) ** 2).mean(), abs=1e-6)


def test_a_bin_has_its_upper_edge() -> None:
    assert [bin_of(value) for value in (0, 1, 100_000, 100_001, 900_000, 900_001, WHOLE)] == [0, 0, 0, 1, 8, 9, 9]
    assert sum(found.items for found in count_bins(DRAWN)) == len(DRAWN)


@pytest.mark.parametrize("clusters", [[None] * 120, [str(n % 31) for n in range(120)]], ids=["items", "clusters"])
def test_the_errors_resamples_are_the_errors_of_the_answers_drawn(clusters: list[str | None]) -> None:
    """The packed sums give what a resample written out gives."""
    names = [name if name is not None else str(place) for place, name in enumerate(clusters)]
    groups = [[a for a, own in zip(DRAWN, names, strict=True) if own == name] for name in dict.fromkeys(names)]
    written = []
    for number in range(30):
        drawn = [answer for place in draw_indices(KEY, number, len(groups), len(groups)) for answer in groups[place]]
        written.append(expected_error(drawn))
    found = bootstrap_error(DRAWN, clusters, KEY, 30)
    assert found.replicates == tuple(sorted(written)) and found.estimate == expected_error(DRAWN)


def test_the_intervals_are_scipys() -> None:
    confidence = np.array([c / WHOLE for c, _ in DRAWN])
    right = np.array([r for _, r in DRAWN], dtype=float)
    level = Fraction(1, 40)
    for ours, statistic, scale in (
        (bootstrap_error(DRAWN, [None] * 120, KEY, 999), plain_error, 1),
        (bootstrap_brier(DRAWN, [None] * 120, KEY, 999), lambda c, r: ((c - r) ** 2).mean(), WHOLE),
    ):
        public = stats.bootstrap(
            (confidence, right),
            statistic,
            paired=True,
            vectorized=False,
            n_resamples=999,
            random_state=np.random.default_rng(1),
        ).confidence_interval
        lower, upper = ours.lower(level), ours.upper(level)
        assert lower is not None and upper is not None
        width = public.high - public.low
        assert float(lower) / scale == pytest.approx(public.low, abs=width / 6)
        assert float(upper) / scale == pytest.approx(public.high, abs=width / 6)


def test_a_model_that_is_sure_and_right_has_neither_error() -> None:
    sure = [(WHOLE, True)] * 40
    assert expected_error(sure) == 0 and brier(WHOLE, True) == 0 and brier(WHOLE, False) == WHOLE
    drawn = bootstrap_error(sure, [None] * 40, KEY, 99)
    assert drawn.lower(Fraction(1, 20)) == drawn.upper(Fraction(1, 20)) == 0
