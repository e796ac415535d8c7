"""A frame is read whole or not at all; lengths from the other side are bounded."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadInput, TooLarge, Unavailable
from appliance.formats.core.frame import FrameBuffer, read_frame, write_frame

LIMIT = 1 << 20


def encode(header: dict[str, Any], blob: bytes = b"") -> bytes:
    stream = io.BytesIO()
    write_frame(stream, header, blob)
    return stream.getvalue()


def raw(header: bytes, blob: bytes = b"") -> io.BytesIO:
    return io.BytesIO(len(header).to_bytes(4, "big") + header + len(blob).to_bytes(8, "big") + blob)


def test_a_frame_has_this_layout() -> None:
    assert encode({"a": 1}, b"xyz") == b'\x00\x00\x00\x07{"a":1}\x00\x00\x00\x00\x00\x00\x00\x03xyz'


HEADERS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=5,
)


@pytest.mark.thorough
@settings(deadline=None)
@given(st.lists(st.tuples(HEADERS, st.binary(max_size=100)), max_size=4))
def test_frames_come_back_in_order_and_then_a_clean_end(frames: list[tuple[dict[str, Any], bytes]]) -> None:
    stream = io.BytesIO(b"".join(encode(header, blob) for header, blob in frames))
    for expected in frames:
        assert read_frame(stream, LIMIT, LIMIT) == expected
    assert read_frame(stream, LIMIT, LIMIT) is None


def test_a_pipe_that_gives_a_byte_at_a_time_gives_whole_frames() -> None:
    class Drip(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 1))

    assert read_frame(Drip(encode({"a": [1.5]}, b"blob")), LIMIT, LIMIT) == ({"a": [1.5]}, b"blob")


def test_a_large_blob_passes_through_a_real_pipe() -> None:
    read_end, write_end = os.pipe()
    blob = os.urandom(1 << 20)
    with open(read_end, "rb", buffering=0) as reader, open(write_end, "wb", buffering=0) as writer:
        thread = threading.Thread(target=write_frame, args=(writer, {"frame": "load"}, blob))
        thread.start()
        assert read_frame(reader, LIMIT, LIMIT) == ({"frame": "load"}, blob)  # type: ignore[arg-type]
        thread.join()


@pytest.mark.parametrize("step", [1, 3, 19, 1000])
def test_a_buffer_gives_each_frame_as_soon_as_it_is_whole(step: int) -> None:
    frames = [({"n": n}, bytes(n * 7)) for n in range(4)]
    data, buffer, got = b"".join(encode(*frame) for frame in frames), FrameBuffer(LIMIT, LIMIT), []
    for start in range(0, len(data), step):
        buffer.add(data[start : start + step])
        while (frame := buffer.take()) is not None:
            got.append(frame)
    assert got == frames
    buffer.end()


def test_a_buffer_that_ends_within_a_frame_is_truncated() -> None:
    data = encode({"a": 1}, b"xyz")
    for end in range(1, len(data)):
        buffer = FrameBuffer(LIMIT, LIMIT)
        buffer.add(data[:end])
        assert buffer.take() is None
        with pytest.raises(BadInput) as caught:
            buffer.end()
        assert caught.value.code == "truncated-frame"


@given(st.binary(max_size=40))
def test_a_buffer_takes_what_a_stream_gives(data: bytes) -> None:
    buffer = FrameBuffer(LIMIT, LIMIT)
    buffer.add(data)

    def take() -> Any:
        frame = buffer.take()
        if frame is None:
            buffer.end()
        return frame

    assert _said(take) == _said(lambda: read_frame(io.BytesIO(data), LIMIT, LIMIT))


def _said(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except BadInput:
        return "refused"


def test_every_shortened_frame_is_truncated_and_never_a_clean_end() -> None:
    data = encode({"a": 1}, b"blob")
    for length in range(1, len(data)):
        with pytest.raises(BadInput) as caught:
            read_frame(io.BytesIO(data[:length]), LIMIT, LIMIT)
        assert caught.value.code == "truncated-frame"


def test_lengths_over_the_limit_are_refused_before_a_byte_of_the_body() -> None:
    for data in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x02{}" + b"\xff" * 8):
        stream = io.BytesIO(data + b"body")
        with pytest.raises(TooLarge):
            read_frame(stream, LIMIT, LIMIT)
        assert stream.read() == b"body"


def test_a_length_alone_allocates_nothing() -> None:
    stream = io.BytesIO(b"\x00\x00\x00\x02{}" + (1 << 40).to_bytes(8, "big"))
    tracemalloc.start()
    try:
        with pytest.raises(BadInput):
            read_frame(stream, LIMIT, 1 << 41)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b"{",
        b"\xff",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":"\\ud800"}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000 + b"}",
    ],
)
def test_other_headers_are_refused(header: bytes) -> None:
    with pytest.raises(BadInput):
        read_frame(raw(header), LIMIT, LIMIT)


@pytest.mark.parametrize("header", [{"a": float("nan")}, {"a": float("inf")}, {"a": b"x"}, {"a": "\ud800"}, {"a": {1}}])
def test_headers_that_have_no_json_are_not_written(header: dict[str, Any]) -> None:
    stream = io.BytesIO()
    with pytest.raises(BadInput):
        write_frame(stream, header)
    assert stream.getvalue() == b""


def test_a_reader_that_has_gone_is_unavailable() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as writer, pytest.raises(Unavailable):
        write_frame(writer, {"a": 1})  # type: ignore[arg-type]
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(Unavailable):
        write_frame(closed, {"a": 1})
    with pytest.raises(Unavailable):
        read_frame(closed, LIMIT, LIMIT)


def test_a_writer_that_takes_nothing_is_unavailable_not_endless() -> None:
    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            return 0

    with pytest.raises(Unavailable):
        write_frame(Full(), {"a": 1})


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_frame_an_end_or_bad_input(data: bytes) -> None:
    stream = io.BytesIO(data)
    try:
        while read_frame(stream, LIMIT, LIMIT) is not None:
            pass
    except BadInput:
        pass
