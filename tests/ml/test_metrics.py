"""Accuracy and macro-F1, against values worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from appliance.errors import BadInput
from appliance.ml.metrics import accuracy, encode_metric, macro_f1, summarize


def test_metrics_of_a_small_table() -> None:
    """a: precision 1/2, recall 1; b: 1, 1/2; c: never answered, 0; d: answered, never expected, 0."""
    expected, answered = ["a", "b", "b", "c"], ["a", "b", "a", "d"]
    assert accuracy(expected, answered) == Fraction(1, 2)
    assert macro_f1(expected, answered) == (Fraction(2, 3) + Fraction(2, 3) + 0 + 0) / 4
    assert summarize(expected, answered) == {"accuracy": "0.500000", "macro_f1": "0.333333", "rows": 4}


def test_numbers_have_six_places() -> None:
    assert [encode_metric(Fraction(*value)) for value in ((0, 1), (1, 1), (13, 16), (2, 3), (1, 2_000_000))] == [
        *("0.000000", "1.000000", "0.812500", "0.666667", "0.000000")
    ]


@pytest.mark.parametrize(("expected", "answered"), [([], []), (["a"], [])])
def test_nothing_to_measure_is_an_error(expected: list[str], answered: list[str]) -> None:
    with pytest.raises(BadInput, match="metrics"):
        accuracy(expected, answered)
