"""Random bytes that follow from a secret: HKDF-SHA256 (RFC 5869) for a key of each purpose, AES-256 in counter mode.

docs/formats/private-training.md says what is drawn from them.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import BadInput

SECRET_BYTES = 32


class Keystream:
    """The bytes of one purpose, from the first one on."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        if len(secret) != SECRET_BYTES:
            raise BadInput(f"secret: expected {SECRET_BYTES} bytes, got {len(secret)}")
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret)
        self._cipher = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._cipher.update(bytes(count))


def commit_secret(secret: bytes, purpose: str) -> str:
    """A digest that binds the secret. It hides it, since a secret is 32 random bytes."""
    return f"sha256:{hashlib.sha256(purpose.encode() + bytes(1) + secret).hexdigest()}"
