"""The line with the places in the code of an exception: its limits, and other texts."""

from __future__ import annotations

import pytest

from appliance.formats.core.stack import MOST_CHARACTERS, MOST_FRAMES, encode_stack, parse_stack


def descend(deep: int) -> None:
    if deep:
        descend(deep - 1)
    raise LookupError


def test_the_innermost_frames_stay() -> None:
    with pytest.raises(LookupError) as raised:
        descend(90)
    (found,) = parse_stack(encode_stack(raised.value))
    assert found.name == "LookupError" and len(found.frames) == MOST_FRAMES
    assert all(frame.endswith(" descend") for frame in found.frames)


def test_a_long_chain_and_a_large_group_end_at_the_limit() -> None:
    error = ValueError()
    for _ in range(2_000):
        error.__context__, error = error, ValueError()
    chained = ExceptionGroup("", [ExceptionGroup("", [error] * 9)] * 900)
    text = encode_stack(chained)
    assert len(text) <= MOST_CHARACTERS and parse_stack(text)[0].name == "ExceptionGroup"
    assert len(parse_stack(text)) > 100


def test_an_exception_that_is_its_own_context_ends() -> None:
    first, second = ValueError(), KeyError()
    first.__context__, second.__context__ = second, first
    assert [one.name for one in parse_stack(encode_stack(first))] == ["KeyError", "ValueError"]


def test_a_class_with_another_name_is_one_word() -> None:
    strange = type("a b; c: d", (Exception,), {"__module__": "m"})
    assert [one.name for one in parse_stack(encode_stack(strange()))] == ["m.a_b__c__d"]


@pytest.mark.parametrize("text", ["", "a b", "KeyError: a text", "KeyError x.py:1", "KeyError x.py:1 f;", "a.py:x f"])
def test_another_text_has_no_exception(text: str) -> None:
    assert parse_stack(text) == []
