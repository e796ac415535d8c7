"""Accuracy and macro-F1, against values worked out by hand."""

from __future__ import annotations

import re
import string
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import BadInput
from appliance.ml.evaluation.metrics import (
    accuracy,
    encode_metric,
    macro_f1,
    normalise,
    rouge_l,
    split_words,
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("会议在周五。", ["会", "议", "在", "周", "五"]),
        ("第3会議室のWi-Fi", ["第", "3", "会", "議", "室", "の", "wi", "fi"]),
        ("カード、ｶﾅ", ["カ", "ー", "ド", "ｶ", "ﾅ"]),
        ("ที่นี่ 10 บาท", ["ที่", "นี่", "10", "บ", "า", "ท"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),
        ("Cafe\u0301 au_lait", ["cafe\u0301", "au", "lait"]),
        ("회의는 금요일", ["회의는", "금요일"]),
        ("مَرْحَبًا بك", ["مَرْحَبًا", "بك"]),
        ("\u0301 a", ["a"]),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_a_summary_without_spaces_is_compared_character_by_character() -> None:
    assert rouge_l("会议在周五", "会议在周四") == Fraction(4, 5)
    assert rouge_l("बिल", "बल") == 0, "another word, since its vowel is"


@given(st.text(alphabet=st.characters(max_codepoint=0x24F)))
def test_words_of_latin_texts_are_runs_of_letters_and_digits(text: str) -> None:
    # The lower case of one capital, the dotted I of Turkish, has a combining mark.
    text = text.replace("\u0130", "")
    assert split_words(text) == re.findall(r"[^\W_]+", text.lower())


def test_answers_are_compared_as_squad_compares_them() -> None:
    assert normalise("The  Eiffel Tower, (Paris)!") == "eiffel tower paris"
    assert token_f1("the Eiffel Tower", "Eiffel tower in Paris") == Fraction(2 * 2, 2 + 4)
    assert token_f1("tower tower", "tower") == Fraction(2, 3), "a word counts as often as it stands in both"
    assert (token_f1("the", "a"), token_f1("x", "")) == (1, 0)
    assert summarize_answers(["The cat.", "ten dogs"], ["cat", "two dogs"]) == {
        "exact_match": "0.500000",
        "token_f1": "0.750000",
    }


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("会议在周五。", "会 议 在 周 五"),
        ("会议 meeting在周五", "会 议 meeting 在 周 五"),
        ("「東京」タワー", "東 京 タ ワ ー"),
        ("ที่นี่", "ที่ นี่"),
        ("«Le procès»…", "le procès"),
        ("cafe\u0301 noir", "cafe\u0301 noir"),
    ],
)
def test_answers_of_every_script_lose_their_punctuation_and_are_divided_into_words(text: str, normal: str) -> None:
    assert normalise(text) == normal
    assert normalise(normal) == normal


def test_an_answer_without_spaces_is_compared_character_by_character() -> None:
    assert token_f1("会议在周五", "会议在周四。") == Fraction(4, 5)
    assert summarize_answers(["会议在周五"], ["会议在周五。"])["exact_match"] == "1.000000"


@given(st.text(alphabet=st.characters(max_codepoint=0x7F)))
def test_an_answer_in_ascii_has_squads_own_normal_form(text: str) -> None:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    assert normalise(text) == " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def test_a_loss_is_a_mean_over_tokens_and_never_of_none() -> None:
    assert summarize_loss(6.0, 3) == {"loss": "2.000000", "perplexity": "7.389056", "trained_tokens": 3}
    with pytest.raises(BadInput, match="expected trained tokens in the held-out rows, got none"):
        summarize_loss(0.0, 0)


def test_the_majority_class_has_the_share_of_the_most_frequent_label() -> None:
    assert summarize_majority(["a", "b", "a", "c"]) == {"accuracy": "0.500000", "rows": 4}
    with pytest.raises(BadInput, match="at least one"):
        summarize_majority([])
