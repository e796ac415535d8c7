"""items.jsonl has one encoding, one line per row, and exactly the rows of its set."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.evaluation.items import (
    ITEMS_FILE,
    Answer,
    EvaluationItem,
    check_rows,
    classify_length,
    encode_items,
    kinds_of,
    parse_items,
)
from appliance.errors import BadInput, Tampered, TooLarge
from appliance.formats.core.canonical import encode_canonical
from scripts.kit.item_groups import Group, digest, make_items
from tests.kit.mutations import mutated, reshaped

ITEMS = make_items([Group(2, True, False), Group(1, False, True, length="long")], cluster=2)
DATA = encode_items(ITEMS)
EXAMPLES = settings(deadline=None, max_examples=150)


def changed(line: int, **members: Any) -> bytes:
    lines = [json.loads(one) for one in DATA.splitlines()]
    lines[line] |= members
    return b"".join(encode_canonical(one) + b"\n" for one in lines)


def test_the_file_is_read_back_and_holds_no_text() -> None:
    assert parse_items(DATA) == ITEMS
    assert encode_items(reversed(ITEMS)) == DATA, "the order of the rows is their digests'"
    assert set(json.loads(DATA.splitlines()[0])) == {"adapter", "base", "cluster", "row", "slices"}


def test_an_answer_says_what_it_was_evaluated_by() -> None:
    assert kinds_of(ITEMS[0].base) == ("right", "confidence", "token_f1")


@EXAMPLES
@given(mutated(DATA))
def test_nearly_good_bytes_are_the_same_items_or_an_error_of_ours(data: bytes) -> None:
    try:
        items = parse_items(data)
    except BadInput:
        return
    assert encode_items(items) == data


@EXAMPLES
@given(reshaped(json.loads(DATA.splitlines()[0])))
def test_a_line_of_any_shape_is_an_item_or_an_error_of_ours(value: Any) -> None:
    data = encode_canonical(value) + b"\n"
    try:
        items = parse_items(data)
    except BadInput:
        return
    assert encode_items(items) == data


ANSWER = json.loads(DATA.splitlines()[0])["base"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "expected 1 to 100000 items, got 0"),
        (DATA[:-1], "a last one without its end"),
        (DATA + DATA, "row: expected one above"),
        (b"".join(reversed(DATA.splitlines(keepends=True))), "got a lower one"),
        (DATA.splitlines(keepends=True)[0] * 2, "got the same row"),
        (DATA.replace(b'"cluster"', b' "cluster"', 1), "line 1: expected canonical JSON"),
        (changed(0, row="AB"), "line 1: row: expected a keyed digest"),
        (changed(1, note="x"), "line 2: note: expected no field of this name"),
        (changed(0, base=ANSWER | {"confidence": 1_000_001}), "confidence: expected at most 1000000"),
        (changed(0, base=ANSWER | {"right": 1}), "right: expected true or false"),
        (changed(0, base=ANSWER | {"scores": {"token_f1": 10**12 + 1}}), "expected at most 1000000000000"),
        (changed(0, base=ANSWER | {"scores": {"Token F1": 1}}), "a score's name such as token_f1"),
        (changed(0, base=ANSWER | {"scores": {}}), "adapter: expected what base has (right, confidence)"),
        (
            changed(1, base=ANSWER | {"right": None}, adapter=ANSWER | {"right": None}),
            "line 2: expected right, confidence, token_f1 as in line 1, got confidence, token_f1",
        ),
    ],
)
def test_other_files_are_refused_by_line(data: bytes, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_items(data)
    assert words in caught.value.message and caught.value.message.startswith(ITEMS_FILE)


def test_more_than_the_most_items_are_refused_before_they_are_read() -> None:
    with pytest.raises(TooLarge, match="at most 100000 items"):
        parse_items(b"\n" * 100_001)


def test_a_row_that_is_there_twice_is_not_written() -> None:
    with pytest.raises(BadInput, match="the same row"):
        encode_items([*ITEMS, ITEMS[0]])


def test_dropped_and_strange_rows_are_found() -> None:
    rows = [item.row for item in ITEMS]
    check_rows(ITEMS, rows)
    with pytest.raises(Tampered, match="the 3 rows of the set, got 1 of them missing and 0 that"):
        check_rows(ITEMS[1:], rows)
    with pytest.raises(Tampered, match="got 1 of them missing and 1 that are not of the set"):
        check_rows(ITEMS, [*rows[1:], digest("another")])


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(0, "short"), (64, "short"), (65, "medium"), (256, "medium"), (1024, "long"), (1025, "longest")],
)
def test_the_bounds_of_length_classes(tokens: int, name: str) -> None:
    assert classify_length(tokens) == name


@EXAMPLES
@given(st.text(min_size=1, max_size=30), st.integers(-(10**12), 10**12))
def test_any_label_and_score_within_bounds_is_read_back(label: str, score: int) -> None:
    found = Answer(confidence=None, label=label, right=None, scores={"loss": score})
    item = EvaluationItem(adapter=found, base=found, cluster=None, row=digest("a"), slices=ITEMS[0].slices)
    try:
        data = encode_items([item])
    except BadInput:  # a lone surrogate is in no file
        return
    assert parse_items(data) == (item,)
