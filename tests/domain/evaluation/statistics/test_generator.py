"""The random generator agrees with its page and has no bias."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from scipy import stats

from appliance.domain.evaluation.statistics.resampling import draw_bits, draw_indices, stream_key

PAGE = Path(__file__).resolve().parents[4] / "docs" / "formats" / "evaluation.md"
KEY = stream_key(7, "better-than-base/bootstrap")


def test_the_stream_is_shake256_of_domain_seed_purpose_and_number() -> None:
    assert KEY == b"appliance/resample/v1\x007\x00better-than-base/bootstrap\x00"
    stream = hashlib.shake_256(KEY + bytes(7) + b"\x03").digest(4096)
    assert list(draw_bits(KEY, 3, 16)) == [stream[place // 8] >> place % 8 & 1 for place in range(16)]
    expected = []
    for (word,) in struct.iter_unpack("<I", stream):
        if word < 2**32 - 2**32 % 1000:
            expected.append(word % 1000)
    assert draw_indices(KEY, 3, 500, 1000) == expected[:500]


def test_words_beyond_the_last_multiple_are_passed_over() -> None:
    """With a bound just above 2^31 nearly half of all words are: the stream is read on until there are enough."""
    bound = 2**31 + 1
    found = draw_indices(KEY, 0, 300, bound)
    words = struct.unpack("<2000I", hashlib.shake_256(KEY + bytes(8)).digest(8000))
    assert found == [word for word in words if word < bound][:300]


def test_more_draws_begin_with_the_same() -> None:
    assert draw_indices(KEY, 5, 400, 77)[:20] == draw_indices(KEY, 5, 20, 77)


@pytest.mark.parametrize("bound", [2, 77, 1000])
def test_every_index_is_as_likely(bound: int) -> None:
    counts = [0] * bound
    for number in range(50):
        for index in draw_indices(KEY, number, 2000, bound):
            counts[index] += 1
    assert stats.chisquare(counts).pvalue > 1e-4


def test_every_bit_is_a_fair_coin() -> None:
    ones = sum(sum(draw_bits(KEY, number, 8000)) for number in range(50))
    assert stats.binomtest(ones, 400_000).pvalue > 1e-4


def test_another_seed_purpose_or_number_is_another_stream() -> None:
    keys = [stream_key(7, "a"), stream_key(71, "a"), stream_key(7, "1\0a"), stream_key(7, "b")]
    drawn = [tuple(draw_indices(key, number, 20, 1000)) for key in keys for number in (0, 1)]
    assert len(set(drawn)) == len(drawn)


def test_the_pages_example_is_drawn() -> None:
    example = json.loads(PAGE.read_text().partition("```json generator\n")[2].partition("```")[0])
    key = stream_key(example["seed"], example["purpose"])
    assert draw_indices(key, example["resample"], len(example["indices"]), example["bound"]) == example["indices"]
    assert list(draw_bits(key, example["resample"], len(example["bits"])))[: len(example["bits"])] == example["bits"]
