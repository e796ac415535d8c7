"""ML-DSA-65 (FIPS 204): the post-quantum signatures beside Ed25519 on checkpoints and beside ECDSA on adapters.

The profile is pure ML-DSA with an empty context. A public key is its SubjectPublicKeyInfo by RFC 9881; a private key
is its 32-byte seed. Signatures are hedged with random bytes, so that two signatures of the same data differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import cryptography
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from appliance.errors import BadInput, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

NAME = "ML-DSA-65"
PUBLIC_BYTES = 1_952
SIGNATURE_BYTES = 3_309
SEED_BYTES = 32
_SPKI_PREFIX = bytes.fromhex("308207b2300b0609608648016503040312038207a100")
"""Everything before the raw key; the OID is 2.16.840.1.101.3.4.3.18, without parameters."""


@dataclass(frozen=True, slots=True)
class MlDsaSigner:
    """A signer with an ML-DSA-65 key in memory."""

    private: MLDSA65PrivateKey = field(repr=False)
    spki: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spki", ml_dsa_spki(self.private.public_key().public_bytes_raw()))

    @property
    def keyid(self) -> str:
        return digest_bytes(self.spki)

    def sign(self, data: bytes) -> bytes:
        """Return the 3,309-byte signature of the data, with an empty context (FIPS 204 section 5.2)."""
        return self.private.sign(data)


def generate_ml_dsa() -> MlDsaSigner:
    """Generate a new ML-DSA-65 key.

    Raises:
        Unavailable: this Python cannot compute ML-DSA.
    """
    check_ml_dsa()
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    return MlDsaSigner(MLDSA65PrivateKey.generate())


def ml_dsa_signer(seed: bytes) -> MlDsaSigner:
    """Return the signer of a private key's 32-byte seed.

    Raises:
        Unavailable: this Python cannot compute ML-DSA.
    """
    check_ml_dsa()
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    return MlDsaSigner(MLDSA65PrivateKey.from_seed_bytes(seed))


def is_ml_dsa(spki: bytes) -> bool:
    """Return True if the bytes are the SPKI of an ML-DSA-65 key. Any 1,952 bytes are a key."""
    return spki.startswith(_SPKI_PREFIX) and len(spki) == len(_SPKI_PREFIX) + PUBLIC_BYTES


def ml_dsa_spki(public: bytes) -> bytes:
    """Return the SPKI of 1,952 raw key bytes.

    Raises:
        BadInput: there are fewer or more.
    """
    if len(public) != PUBLIC_BYTES:
        raise BadInput(f"public key, {NAME}: expected {PUBLIC_BYTES} bytes, got {len(public)}")
    return _SPKI_PREFIX + public


def ml_dsa_raw(spki: bytes) -> bytes:
    """Return the 1,952 raw bytes of an ML-DSA-65 key.

    Raises:
        BadInput: the key is of another kind.
    """
    if not is_ml_dsa(spki):
        raise BadInput(f"public key, kind: expected {NAME}, got another one")
    return spki[len(_SPKI_PREFIX) :]


def verify_ml_dsa(spki: bytes, data: bytes, sig: bytes) -> None:
    """Verify a signature with an empty context (FIPS 204 section 5.3).

    Raises:
        Tampered: the signature is invalid.
        BadInput: the key is of another kind.
        Unavailable: this Python cannot compute ML-DSA.
    """
    raw = ml_dsa_raw(spki)
    check_ml_dsa()
    try:
        _load_public(raw).verify(sig, data)
    except (InvalidSignature, ValueError):
        raise Tampered(f"signature, key {digest_bytes(spki)}: expected a valid one, got an invalid one") from None


@lru_cache(maxsize=64)
def _load_public(raw: bytes) -> MLDSA65PublicKey:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

    return MLDSA65PublicKey.from_public_bytes(raw)


def check_ml_dsa() -> None:
    """Check that this Python can compute ML-DSA.

    Raises:
        Unavailable: its cryptography is too old, or was built with a library that lacks ML-DSA.
    """
    if not _has_ml_dsa():
        raise Unavailable(
            f"{NAME}: its signatures cannot be checked or made here, since cryptography {cryptography.__version__} "
            "does not have it; install cryptography 50 or later"
        )


@lru_cache(maxsize=1)
def _has_ml_dsa() -> bool:
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

        MLDSA65PrivateKey.from_seed_bytes(bytes(SEED_BYTES))
    except (ImportError, UnsupportedAlgorithm):
        return False
    return True
