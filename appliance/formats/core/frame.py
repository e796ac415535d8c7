"""Frames between the service and its workers: u32 length ‖ JSON header ‖ u64 length ‖ blob, all big-endian.

Frames are neither signed nor stored, so the header may have fractions; NaN and infinities are refused because JSON has
no such values. A reader does not trust the writer: it checks each length against a limit before it allocates memory.
"""

from __future__ import annotations

import io
import json
from typing import Any, BinaryIO

from appliance.errors import BadInput, TooLarge, Unavailable
from appliance.formats.core.canonical import parse_json

MAX_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


def write_frame(stream: BinaryIO, header: dict[str, Any], blob: bytes | bytearray | memoryview = b"") -> None:
    """Write and flush one frame.

    Raises:
        Unavailable: the reader has closed the stream.
        BadInput: the header is not a JSON object.
        TooLarge: the header is longer than its length field can express.
    """
    data = _encode_header(header)
    body = memoryview(blob).cast("B")
    try:
        _write_all(stream, memoryview(len(data).to_bytes(4, "big") + data + body.nbytes.to_bytes(8, "big")))
        _write_all(stream, body)
        stream.flush()
    except (OSError, ValueError):
        # ValueError: the stream was closed on this side.
        raise Unavailable("frame: expected the other side to read it, got a closed stream") from None


def read_frame(
    stream: BinaryIO, max_header: int = MAX_HEADER_BYTES, max_blob: int = 0
) -> tuple[dict[str, Any], bytes] | None:
    """Read the next frame; return None if the stream ends before its first byte.

    Both limits are in bytes.

    Raises:
        BadInput: the header is malformed, or the stream ends within the frame (code `truncated-frame`).
        TooLarge: a length exceeds its limit.
        Unavailable: the stream is closed or broken.
    """
    size = _read_exactly(stream, 4, "header length", at_start=True)
    if size is None:
        return None
    header = _parse_header(_read_sized(stream, size, max_header, "header"))
    return header, _read_sized(stream, _read_exactly(stream, 8, "blob length"), max_blob, "blob")


class FrameBuffer:
    """A buffer that collects bytes as they arrive and returns complete frames, for readers that must not block."""

    def __init__(self, max_header: int = MAX_HEADER_BYTES, max_blob: int = 0) -> None:
        self._max_header, self._max_blob = max_header, max_blob
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Append bytes that arrived."""
        self._data += data

    def take(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the next frame, or None if more bytes are needed.

        Raises:
            BadInput, TooLarge: as `read_frame`; the buffer cannot be used afterwards.
        """
        data = self._data
        if len(data) < 4:
            return None
        blob = 4 + _check_length(data[:4], self._max_header, "header") + 8
        if len(data) < blob:
            return None
        end = blob + _check_length(data[blob - 8 : blob], self._max_blob, "blob")
        if len(data) < end:
            return None
        frame = _parse_header(bytes(data[4 : blob - 8])), bytes(data[blob:end])
        del data[:end]
        return frame

    def end(self) -> None:
        """Check that the bytes do not end within a frame.

        Raises:
            BadInput: they do (code `truncated-frame`).
        """
        read_frame(io.BytesIO(self._data), self._max_header, self._max_blob)


def _read_sized(stream: BinaryIO, size: bytes | None, limit: int, what: str) -> bytes:
    return _read_exactly(stream, _check_length(size or b"", limit, what), what) or b""


def _check_length(size: bytes | bytearray, limit: int, what: str) -> int:
    length = int.from_bytes(size, "big")
    if length > limit:
        raise TooLarge(f"frame, {what}: expected at most {limit} bytes, got {length}")
    return length


def _read_exactly(stream: BinaryIO, length: int, what: str, *, at_start: bool = False) -> bytes | None:
    """Read exactly `length` bytes in chunks, so that a false length allocates no memory.

    With `at_start`, return None if the stream ends before the first byte.
    """
    data = bytearray()
    try:
        while len(data) < length:
            chunk = stream.read(min(length - len(data), _CHUNK_BYTES))
            if not chunk:
                break
            data += chunk
    except (OSError, ValueError):
        raise Unavailable(f"frame, {what}: expected bytes, got a closed or broken stream") from None
    if len(data) < length:
        if at_start and not data:
            return None
        raise BadInput(f"frame, {what}: expected {length} bytes, got {len(data)} and the end", code="truncated-frame")
    return bytes(data)


def _encode_header(header: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        data = text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"frame, header: expected a JSON object, got {type(error).__name__}") from None
    if len(data) >= 1 << 32:
        raise TooLarge(f"frame, header: expected less than {1 << 32} bytes, got {len(data)}")
    return data


def _parse_header(data: bytes) -> dict[str, Any]:
    value = parse_json(data, "frame, header", most=len(data))
    if not isinstance(value, dict):
        raise BadInput(f"frame, header: expected an object, got {type(value).__name__}")
    try:
        # json accepts a lone surrogate, which cannot be printed later.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput("frame, header: expected Unicode, got a lone surrogate") from None
    return value


def _write_all(stream: BinaryIO, data: memoryview) -> None:
    while data:
        written = stream.write(data)
        if not written:
            raise OSError("a stream that takes nothing")
        data = data[written:]
