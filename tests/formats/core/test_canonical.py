"""Canonical JSON is RFC 8785 without fractions, and its parser takes nothing that it would not write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadInput
from appliance.formats.core.canonical import MAX_DEPTH, MAX_INTEGER, encode_canonical, parse_canonical, parse_json

RFC = json.loads((Path(__file__).resolve().parents[2] / "vectors/rfc8785.json").read_text())
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("case", RFC["cases"], ids=lambda case: case["name"])
def test_published_examples_encode_to_the_published_bytes(case: dict[str, str]) -> None:
    expected = bytes.fromhex(case["canonical"])
    assert encode_canonical(json.loads(case["json"])) == expected
    assert encode_canonical(parse_canonical(expected)) == expected


@pytest.mark.parametrize("text", RFC["refused"])
def test_fractions_exponents_and_large_integers_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_canonical(text.encode())


@settings(deadline=None)
@given(VALUES)
def test_every_value_comes_back_from_its_encoding(value: Any) -> None:
    assert parse_canonical(encode_canonical(value)) == value


@settings(deadline=None)
@given(st.dictionaries(TEXT, st.none(), min_size=2))
def test_keys_stand_in_the_order_of_their_utf_16_units(value: dict[str, None]) -> None:
    keys = list(json.loads(encode_canonical(value)))
    assert keys == sorted(value, key=lambda key: key.encode("utf-16-be"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" {}",
        b"{}\n",
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'["\\u0041"]',
        b'["\\/"]',
        b'["\\u000A"]',
        b'["\\ud800"]',
        b'["\xed\xa0\x80"]',
        b'["\xc0\x80"]',
        b"[\xff]",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"[1,]",
        b"[01]",
        b"[+1]",
        b"[1.0]",
        b"[1e0]",
        b"[-0]",
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"['a']",
        b"{}{}",
        b'["\x00"]',
        b"[9007199254740992]",
        b"[" + b"9" * 5000 + b"]",
        b"[" * 100_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    ],
)
def test_other_spellings_of_json_are_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_canonical(data)


def test_nesting_is_taken_up_to_its_limit() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert encode_canonical(parse_canonical(deepest)) == deepest


@pytest.mark.parametrize(
    "value",
    [1.5, float("nan"), MAX_INTEGER + 1, -MAX_INTEGER - 1, "\ud800", {"\udc00": 1}, {1: 2}, {None: 2}, b"x", {1, 2}],
)
def test_what_has_no_canonical_form_is_not_encoded(value: Any) -> None:
    with pytest.raises(BadInput):
        encode_canonical([value])


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(BadInput, match="nesting"):
        encode_canonical(value)


def test_a_key_that_stands_twice_is_named() -> None:
    with pytest.raises(BadInput, match="expected every key once, got 'a' twice"):
        parse_canonical(b'{"a":1,"a":1}')


def test_the_message_names_the_first_byte_that_differs() -> None:
    with pytest.raises(BadInput, match=r"byte 5: expected b'1}', got b' 1}'"):
        parse_canonical(b'{"a": 1}')


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity"])
def test_json_has_no_infinite_numbers(number: str) -> None:
    with pytest.raises(BadInput, match="row: expected JSON, got"):
        parse_json(f'{{"a": {number}}}'.encode(), "row")
