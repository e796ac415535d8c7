"""Accuracy and macro-F1, against values worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from appliance.errors import BadInput
from appliance.ml.evaluation.metrics import (
    accuracy,
    encode_metric,
    macro_f1,
    normalise,
    rouge_l,
    summarize,
    summarize_answers,
    summarize_loss,
    summarize_majority,
    summarize_summaries,
    token_f1,
)


def test_metrics_of_a_small_table() -> None:
    """a: precision 1/2, recall 1; b: 1, 1/2; c: never answered, 0; d: answered, never expected, 0."""
    expected, answered = ["a", "b", "b", "c"], ["a", "b", "a", "d"]
    assert accuracy(expected, answered) == Fraction(1, 2)
    assert macro_f1(expected, answered) == (Fraction(2, 3) + Fraction(2, 3) + 0 + 0) / 4
    assert summarize(expected, answered) == {"accuracy": "0.500000", "macro_f1": "0.333333"}


def test_numbers_have_six_places() -> None:
    assert [encode_metric(Fraction(*value)) for value in ((0, 1), (1, 1), (13, 16), (2, 3), (1, 2_000_000))] == [
        *("0.000000", "1.000000", "0.812500", "0.666667", "0.000000")
    ]


@pytest.mark.parametrize(("expected", "answered"), [([], []), (["a"], [])])
def test_nothing_to_measure_is_an_error(expected: list[str], answered: list[str]) -> None:
    with pytest.raises(BadInput, match="metrics"):
        accuracy(expected, answered)


def test_rouge_l_is_that_of_the_reference_implementation() -> None:
    """The example of Google's rouge_score: 5 words in order, of 9 expected and 8 written."""
    expected, written = "The quick brown fox jumps over the lazy dog", "the quick brown dog jumps on the log."
    assert rouge_l(expected, written) == Fraction(2 * 5, 9 + 8)
    assert summarize_summaries([expected, expected], [written, ""]) == {"rouge_l": "0.294118"}
    assert rouge_l("a b c d", "d c b a") == Fraction(2, 8), "order counts"
    assert rouge_l("Größe der Straße", "große Straße") == Fraction(2, 5), "any alphabet"


def test_answers_are_compared_as_squad_compares_them() -> None:
    assert normalise("The  Eiffel Tower, (Paris)!") == "eiffel tower paris"
    assert token_f1("the Eiffel Tower", "Eiffel tower in Paris") == Fraction(2 * 2, 2 + 4)
    assert token_f1("tower tower", "tower") == Fraction(2, 3), "a word counts as often as it stands in both"
    assert (token_f1("the", "a"), token_f1("x", "")) == (1, 0)
    assert summarize_answers(["The cat.", "ten dogs"], ["cat", "two dogs"]) == {
        "exact_match": "0.500000",
        "token_f1": "0.750000",
    }


def test_a_loss_is_a_mean_over_tokens_and_never_of_none() -> None:
    assert summarize_loss(6.0, 3) == {"loss": "2.000000", "perplexity": "7.389056", "trained_tokens": 3}
    with pytest.raises(BadInput, match="expected trained tokens in the held-out rows, got none"):
        summarize_loss(0.0, 0)


def test_the_majority_class_has_the_share_of_the_most_frequent_label() -> None:
    assert summarize_majority(["a", "b", "a", "c"]) == {"accuracy": "0.500000", "rows": 4}
    with pytest.raises(BadInput, match="at least one"):
        summarize_majority([])
