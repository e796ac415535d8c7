"""Messages between two programs that have one key: AES-256-GCM, each under the next number of its direction.

A message that was changed, left out, repeated, sent back or taken from another connection does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.errors import Tampered

OVERHEAD_BYTES = 16
_NUMBER = struct.Struct(">4xQ")


def derive_key(secret: bytes, *context: bytes) -> bytes:
    """A key of 32 bytes for this context: HMAC-SHA256 over its parts, each with its length."""
    return hmac.digest(secret, b"".join(struct.pack(">I", len(part)) + part for part in context), hashlib.sha256)


class Seal:
    """One direction of one connection, under a key that no other one has."""

    def __init__(self, key: bytes) -> None:
        self._cipher, self._number = AESGCM(key), 0

    def close(self, data: bytes) -> bytes:
        return self._cipher.encrypt(self._next(), data, None)

    def open(self, data: bytes) -> bytes:
        """Tampered for anything but the next message, as it was sealed."""
        try:
            return self._cipher.decrypt(self._next(), data, None)
        except InvalidTag:
            raise Tampered("sealed message: expected the next one under its key, got other bytes") from None

    def _next(self) -> bytes:
        nonce = _NUMBER.pack(self._number)
        self._number += 1
        return nonce
