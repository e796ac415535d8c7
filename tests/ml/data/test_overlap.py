"""Rows that are also training rows: exact duplicates by text, near duplicates as an exact count finds them."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import pytest

from appliance.domain.evaluation.verdict import TrainingOverlap
from appliance.ml.data import findings
from appliance.ml.data.findings import NEAR, conceal_counts, count_overlap, count_split

WORDS = [f"word{number:03d}" for number in range(400)]


def _texts(seed: int, count: int, words: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def _grams(text: str) -> set[str]:
    plain = " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
    return {plain[at : at + 5] for at in range(max(1, len(plain) - 4))}


def _near(trained: list[str], evaluated: list[str]) -> int:
    """Every pair, compared by sets of texts."""
    parts = [_grams(text) for text in trained]
    own = [_grams(text) for text in evaluated if text.casefold() not in {one.casefold() for one in trained}]
    return sum(any(len(a & b) / len(a | b) >= NEAR for b in parts) for a in own)


def _changed(text: str, words: int, seed: int) -> str:
    draw, parts = random.Random(seed), text.split()
    for place in draw.sample(range(len(parts)), words):
        parts[place] = draw.choice(WORDS)
    return " ".join(parts)


def test_the_same_text_is_found_whatever_its_case_and_spacing() -> None:
    assert count_overlap(["The  Parties agree."], ["the parties agree.", "another text"]) == TrainingOverlap(1, 0)
    assert count_overlap(["the parties agree"], ["The parties agree!"]) == TrainingOverlap(0, 1), (
        "punctuation makes it near"
    )
    assert count_overlap([], ["a text"]) == TrainingOverlap(0, 0)


@pytest.mark.parametrize("text", ["a", "ab c", "日本語の条項", "½ of it", "!!!"])
def test_short_texts_and_other_alphabets_are_compared_like_others(text: str) -> None:
    assert count_overlap([text, "filler text of some length"], [text]) == TrainingOverlap(1, 0)
    assert count_overlap(["filler text of some length"], [text]) == TrainingOverlap(0, 0)


@pytest.mark.thorough
def test_near_texts_are_those_that_comparing_every_pair_finds() -> None:
    trained = _texts(1, 300)
    evaluated = [_changed(text, number % 12, number) for number, text in enumerate(trained[:200])] + _texts(2, 100)
    expected = _near(trained, evaluated)
    found = count_overlap(trained, evaluated)
    assert 20 < expected < 180, "some are near and some are not"
    assert found.duplicates == sum(number % 12 == 0 for number in range(200))
    assert abs(found.near_duplicates - expected) <= 2, "a candidate may be missed by the bands, never made up"
    assert found.near_duplicates <= expected
    assert count_overlap(list(reversed(trained)), evaluated) == found, "the order of the rows does not matter"


def test_many_texts_of_one_form_are_compared_with_the_likeliest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's rows are all candidates of each other."""
    compared = []
    exact = findings.jaccard
    monkeypatch.setattr(findings, "jaccard", lambda one, other: compared.append(1) or exact(one, other))
    form = "please tell me what the balance of the account with this number is today: "
    trained = [f"{form}{number:04d} {text}" for number, text in enumerate(_texts(3, 200, 6))]
    evaluated = [f"{form}{number:04d} {text}" for number, text in enumerate(_texts(4, 20, 6))]
    count_overlap(trained, evaluated)
    assert 0 < len(compared) <= 20 * findings.MOST_CANDIDATES


@pytest.mark.thorough
def test_the_candidates_of_a_text_are_limited_before_they_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows of one template, each text would otherwise have a share of all rows as candidates."""
    counts = []
    find = findings.find_candidates

    def count(signature: Any, bands: Any) -> Any:
        found = find(signature, bands)
        counts.append(len(found))
        return found

    monkeypatch.setattr(findings, "find_candidates", count)
    form = "the parties shall keep all of the information that they receive confidential for five years after its end "
    trained = [f"{form}{number:06d}" for number in range(4_000)] + [f"{form}{text}" for text in _texts(8, 20)]
    evaluated = [f"{form}{number:06d}" for number in range(4_000, 4_050)] + [f"{text} please" for text in trained[-20:]]
    assert count_overlap(trained, evaluated) == TrainingOverlap(0, 70), (
        "near duplicates are found in spite of the limit"
    )
    assert len(counts) == 70 and max(counts) <= findings.BANDS * findings.MOST_OF_BAND


@pytest.mark.thorough
def test_of_the_texts_that_are_trained_on_no_hashes_are_kept() -> None:
    draw = random.Random(5)
    texts = [draw.randbytes(10_000).hex() for _ in range(120)]
    tracemalloc.start()
    try:
        assert count_overlap(texts, [f"{texts[7]} more"]) == TrainingOverlap(0, 1)
        assert tracemalloc.get_traced_memory()[1] < 6 * sum(map(len, texts)), "they take eight bytes a character"
    finally:
        tracemalloc.stop()


def test_held_out_copies_with_another_word_are_counted() -> None:
    texts = _texts(6, 100)
    rows = [(text, "train") for text in texts] + [(f"{text} please", "held-out") for text in texts[:60]]
    rows += [(text, "held-out") for text in _texts(7, 40)]
    assert count_split(rows) == 60 and count_split(rows[:100]) == 0


def _verdicts(count: int, rows: int = 60, runs: int = 2000) -> list[TrainingOverlap]:
    """Return the verdicts on a blind set, trained on so many times, each with other training rows."""
    counted = TrainingOverlap(count, count)
    return [conceal_counts(counted, rows, b"the rows of the set", b"%d" % run) for run in range(runs)]


def test_one_right_guess_beside_known_rows_of_a_blind_set_shows_nothing() -> None:
    """An operator has four of 60 rows of a set, and trains on them and on a guess."""
    wrong, right = _verdicts(4), _verdicts(5)
    assert sum(one.duplicates == "many" for one in wrong) < 20 and sum(one.duplicates == "many" for one in right) < 30
    assert sum(one != other for one, other in zip(wrong, right, strict=True)) < 20
    for known in (18, 19, 20, 21):
        many = [sum(one.duplicates == "many" for one in _verdicts(count)) / 2000 for count in (known, known + 1)]
        assert 0.2 < many[0] <= many[1] < 0.85, "near the limit, a run with another training file has another limit"
        assert many[1] - many[0] < 0.2
    together = [one.duplicates == one.near_duplicates for one in _verdicts(20)]
    assert 0.4 < sum(together) / 2000 < 0.6, "the two limits are drawn by themselves"


@pytest.mark.parametrize("rows", [20, 39, 40, 300, 5000])
def test_a_blind_set_that_is_not_trained_on_has_few_and_one_that_is_has_many(rows: int) -> None:
    assert set(_verdicts(0, rows, 500)) == {TrainingOverlap("few", "few")}
    assert set(_verdicts(rows, rows, 500)) == {TrainingOverlap("many", "many")}


def test_the_verdict_on_a_blind_set_is_the_same_at_each_run_on_the_same_rows() -> None:
    assert _verdicts(20) == _verdicts(20)
