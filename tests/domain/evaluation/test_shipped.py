"""The shipped sets: their digests, their balance, and their generator."""

from __future__ import annotations

import json
from collections import Counter

from appliance.domain.data.kinds import SHIPPED
from appliance.domain.evaluation.shipped import sets
from appliance.domain.evaluation.shipped.sets import load_general, load_refusal
from scripts import shipped_sets

DIGESTS = {
    "general": "sha256:d8b29ff32cbaab199ead223726b8158581b0f630609f800ea014356ce9381e99",
    "refusal": "sha256:d0fe404c93375a28e213b64fd2d3f7cce29500c0df8897bb9f4255067d2fa84c",
}


def test_digests_of_the_sets_are_pinned() -> None:
    assert {name: sets.digest_set(name) for name in SHIPPED} == DIGESTS


def test_general_has_200_questions_of_four_kinds_whose_right_choices_are_in_each_place_equally_often() -> None:
    rows = load_general().rows
    assert Counter(row.kind for row in rows) == dict.fromkeys(("arithmetic", "instruction", "knowledge", "reading"), 50)
    assert Counter(row.right for row in rows) == dict.fromkeys(range(4), 50)
    for kind in {row.kind for row in rows}:
        counts = Counter(row.right for row in rows if row.kind == kind)
        assert min(counts.values()) >= 5, f"{kind}: no place can be ruled out"
    assert len({row.prompt for row in rows}) == len(rows)


def test_the_generator_gives_the_file_again() -> None:
    data = shipped_sets.FILE.read_bytes()
    assert shipped_sets.build(json.loads(data)) == data


def test_what_the_arithmetic_says_is_right_is_right() -> None:
    signs = {"+": int.__add__, "-": int.__sub__, "times": int.__mul__, "divided": int.__floordiv__}
    checked = 0
    for row in load_general().rows:
        if row.kind != "arithmetic" or not row.prompt.startswith("What is "):
            continue
        words = row.prompt.removeprefix("What is ").partition("?")[0].split()
        first, sign, second = int(words[0]), words[1], int(words[-1])
        right = f"= {signs[sign](first, second)}"
        assert [choice.endswith(right) for choice in row.choices] == [n == row.right for n in range(4)], row.prompt
        checked += 1
    assert checked == 40


def test_refusal_has_100_pairs_and_beginnings_of_which_none_begins_another() -> None:
    given = load_refusal()
    assert len(given.pairs) == 100
    texts = [text for pair in given.pairs for text in (pair.refuse, pair.answer)]
    assert len(set(texts)) == 200
    beginnings = [*given.refusals, *given.answers]
    for one in beginnings:
        assert [other for other in beginnings if other.startswith(one)] == [one]


def test_rows_are_named_by_digests_of_their_own() -> None:
    named = [digest for name in SHIPPED for digest in sets.list_shipped_rows(name)]
    assert len(set(named)) == len(named) == 300
    assert {name: len(sets.list_shipped_rows(name)) for name in SHIPPED} == {"general": 200, "refusal": 100}
