"""The generator that resampling draws from: SHAKE-256 (FIPS 202) of seed, purpose and the resample's number.

Each resample has a stream of its own, so any of them can be drawn again alone, by any program in any language.
"""

from __future__ import annotations

import hashlib
import struct

_DOMAIN = b"appliance/resample/v1"
_WORDS = 2**32
_BITS = tuple(bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256))


def stream_key(seed: int, purpose: str) -> bytes:
    """domain ‖ 0x00 ‖ seed in decimal digits ‖ 0x00 ‖ purpose ‖ 0x00: what comes before the resample's number."""
    return b"\0".join((_DOMAIN, str(seed).encode("ascii"), purpose.encode("utf-8"), b""))


def draw_indices(key: bytes, resample: int, count: int, bound: int) -> list[int]:
    """`count` integers from 0 to bound - 1, each as likely.

    The stream is read as words of four bytes, little-endian. A word at or above the largest multiple of `bound` that
    is at most 2^32 is passed over; of the others, the remainder by `bound` is taken.
    """
    usable, words = _WORDS - _WORDS % bound, count + 16
    while True:
        stream = _stream(key, resample, 4 * words)
        found = [word % bound for word in struct.unpack(f"<{words}I", stream) if word < usable]
        if len(found) >= count:
            return found[:count]
        words *= 2


def draw_bits(key: bytes, resample: int, count: int) -> bytes:
    """`count` or a few more bytes of 0 or 1: the stream's bits, the lowest of each byte first."""
    return b"".join(map(_BITS.__getitem__, _stream(key, resample, (count + 7) // 8)))


def _stream(key: bytes, resample: int, size: int) -> bytes:
    return hashlib.shake_256(key + resample.to_bytes(8, "big")).digest(size)
