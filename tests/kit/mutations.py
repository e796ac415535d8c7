"""Bytes and JSON values that are nearly good: what a parser's tests throw at it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

INTERESTING = (
    st.sampled_from(
        [b"", b"\0", b"\n", b"\n\n", b'"', b"\\", b"{", b"}", b"[", b",", b"+", b"=", b" ", b"-", b"9" * 30]
    )
    | st.sampled_from([b"\xff", b"\xc3\xa9", b"\xe2\x80\x94", b"\xed\xa0\x80", b"\\u0041", b"1e9", b"-0", b"../"])
    | st.sampled_from([b"null", b"true", b"sha256:"])
    | st.binary(max_size=8)
)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with up to three pieces cut out, put in or exchanged."""
    data = good
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(start + draw(st.integers(0, 20)), len(data))))
        data = data[:start] + draw(INTERESTING) + data[stop:]
    return data


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def reshaped(draw: st.DrawFn, value: Any) -> Any:
    """Draw a good JSON value with one part exchanged for another value."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: draw(reshaped(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(reshaped(value[place])), *value[place + 1 :]]
    return draw(JSON)
