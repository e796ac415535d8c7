"""Rows that are also trained on: the same ones are found by their text, nearly the same ones as an exact count says."""

from __future__ import annotations

import random
import tracemalloc
from itertools import pairwise

import pytest

from appliance.domain.evaluation.verdict import Overlap
from appliance.ml.data import overlap
from appliance.ml.data.overlap import NEAR, blur, count_overlap

WORDS = [f"word{number:03d}" for number in range(400)]


def _texts(seed: int, count: int, words: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def _grams(text: str) -> set[str]:
    plain = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    return {plain[at : at + 5] for at in range(max(1, len(plain) - 4))}


def _near(trained: list[str], judged: list[str]) -> int:
    """Every pair, compared by sets of texts."""
    parts = [_grams(text) for text in trained]
    own = [_grams(text) for text in judged if text.casefold() not in {one.casefold() for one in trained}]
    return sum(any(len(a & b) / len(a | b) >= NEAR for b in parts) for a in own)


def _changed(text: str, words: int, seed: int) -> str:
    draw, parts = random.Random(seed), text.split()
    for place in draw.sample(range(len(parts)), words):
        parts[place] = draw.choice(WORDS)
    return " ".join(parts)


def test_the_same_text_is_found_whatever_its_case_and_spacing() -> None:
    assert count_overlap(["The  Parties agree."], ["the parties agree.", "another text"]) == Overlap(1, 0)
    assert count_overlap(["the parties agree"], ["The parties agree!"]) == Overlap(0, 1), "punctuation makes it near"
    assert count_overlap([], ["a text"]) == Overlap(0, 0)


@pytest.mark.parametrize("text", ["a", "ab c", "日本語の条項", "½ of it", "!!!"])
def test_short_texts_and_other_alphabets_are_compared_like_others(text: str) -> None:
    assert count_overlap([text, "filler text of some length"], [text]) == Overlap(1, 0)
    assert count_overlap(["filler text of some length"], [text]) == Overlap(0, 0)


def test_near_texts_are_those_that_comparing_every_pair_finds() -> None:
    trained = _texts(1, 300)
    judged = [_changed(text, number % 12, number) for number, text in enumerate(trained[:200])] + _texts(2, 100)
    expected = _near(trained, judged)
    found = count_overlap(trained, judged)
    assert 20 < expected < 180, "some are near and some are not"
    assert found.duplicates == sum(number % 12 == 0 for number in range(200))
    assert abs(found.near_duplicates - expected) <= 2, "a candidate may be missed by the bands, never made up"
    assert found.near_duplicates <= expected
    assert count_overlap(list(reversed(trained)), judged) == found, "the order of the rows does not matter"


def test_many_texts_of_one_form_are_compared_with_the_likeliest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's rows are all candidates of each other."""
    compared = []
    exact = overlap.jaccard
    monkeypatch.setattr(overlap, "jaccard", lambda one, other: compared.append(1) or exact(one, other))
    form = "please tell me what the balance of the account with this number is today: "
    trained = [f"{form}{number:04d} {text}" for number, text in enumerate(_texts(3, 200, 6))]
    judged = [f"{form}{number:04d} {text}" for number, text in enumerate(_texts(4, 20, 6))]
    count_overlap(trained, judged)
    assert 0 < len(compared) <= 20 * overlap.MOST_CANDIDATES


def test_of_the_texts_that_are_trained_on_no_hashes_are_kept() -> None:
    draw = random.Random(5)
    texts = [draw.randbytes(10_000).hex() for _ in range(120)]
    tracemalloc.start()
    try:
        assert count_overlap(texts, [f"{texts[7]} more"]) == Overlap(0, 1)
        assert tracemalloc.get_traced_memory()[1] < 6 * sum(map(len, texts)), "they take eight bytes a character"
    finally:
        tracemalloc.stop()


def test_what_is_told_of_a_blind_set_changes_by_five_at_once() -> None:
    told = [blur(Overlap(count, count)) for count in range(12)]
    assert told == [Overlap(5 * (count // 5), 5 * (count // 5)) for count in range(12)]
    assert sum(one != other for one, other in pairwise(told)) == 2
