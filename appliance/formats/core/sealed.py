"""Authenticated messages between two programs that share a key, and keystreams and commitments from secrets.

Messages are sealed with AES-256-GCM; the nonce is the message's number in its direction. A message that was changed,
omitted, repeated, reflected or taken from another connection cannot be opened.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import BadInput, Tampered

OVERHEAD_BYTES = 16
_NUMBER = struct.Struct(">4xQ")


def derive_key(secret: bytes, *context: bytes) -> bytes:
    """Derive a 32-byte key for a context: HMAC-SHA256 over the length-prefixed parts of the context."""
    return hmac.digest(secret, b"".join(struct.pack(">I", len(part)) + part for part in context), hashlib.sha256)


class ConnectionCipher:
    """The cipher of one direction of one connection, under a key that only this direction uses."""

    def __init__(self, key: bytes) -> None:
        self._cipher, self._number = AESGCM(key), 0

    def encrypt_next(self, data: bytes) -> bytes:
        """Encrypt the next message."""
        return self._cipher.encrypt(self._next(), data, None)

    def decrypt_next(self, data: bytes) -> bytes:
        """Decrypt the next message.

        Raises:
            Tampered: the data is not the next message as it was sealed.
        """
        try:
            return self._cipher.decrypt(self._next(), data, None)
        except InvalidTag:
            raise Tampered("sealed message: expected the next one under its key, got other bytes") from None

    def _next(self) -> bytes:
        nonce = _NUMBER.pack(self._number)
        self._number += 1
        return nonce


SECRET_BYTES = 32


class Keystream:
    """A deterministic pseudorandom stream for one purpose: AES-256-CTR under an HKDF-SHA256 key (RFC 5869)."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        if len(secret) != SECRET_BYTES:
            raise BadInput(f"secret: expected {SECRET_BYTES} bytes, got {len(secret)}")
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret)
        self._cipher = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        return self._cipher.update(bytes(count))


def commit_secret(secret: bytes, purpose: str) -> str:
    """Compute a digest that commits to the secret and hides it, since a secret is 32 random bytes."""
    return f"sha256:{hashlib.sha256(purpose.encode() + bytes(1) + secret).hexdigest()}"
