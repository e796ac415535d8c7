"""Public keys, signers, and the encrypted file of a person's private key.

A public key is its SubjectPublicKeyInfo in DER (RFC 5280 section 4.1.2.7); its id is the SHA-256 of exactly these
bytes. Three kinds are supported for people: Ed25519 (RFC 8032, 64-byte signatures), ECDSA P-256 with SHA-256 and ECDSA
P-384 with SHA-384 (FIPS 186-5, DER signatures). Checkpoints and adapters can also have signatures by ML-DSA-65
(`appliance.formats.signatures.ml_dsa`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from appliance.errors import BadInput, NotAuthenticated, Tampered
from appliance.formats.core.canonical import encode_canonical, parse_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.fields import encode_base64, parse_base64, parse_constant, parse_object, show
from appliance.formats.signatures.ml_dsa import is_ml_dsa, verify_ml_dsa

PRIME = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, PRIME) % PRIME
_SQRT_MINUS_ONE = pow(2, (PRIME - 1) // 4, PRIME)

Point = tuple[int, int, int, int]
"""A point of edwards25519 in extended coordinates (X, Y, Z, T): x = X/Z, y = Y/Z, xy = T/Z (RFC 8032 section 5.1.4)."""
_IDENTITY: Point = (0, 1, 1, 0)


def is_prime_order(encoded: bytes) -> bool:
    """Return True if the bytes are the canonical encoding of a point of prime order on edwards25519."""
    point = _decompress(encoded)
    return point is not None and not _is_identity(point) and _is_identity(_multiply(ORDER, point))


def _decompress(encoded: bytes) -> Point | None:
    """Decode a point (RFC 8032 section 5.1.3); return None if the bytes are not the canonical encoding of one."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if len(encoded) != 32 or y >= PRIME:
        return None
    numerator, denominator = y * y - 1, _D * y * y + 1
    square = numerator * pow(denominator, -1, PRIME) % PRIME
    x = pow(square, (PRIME + 3) // 8, PRIME)
    if x * x % PRIME != square:
        x = x * _SQRT_MINUS_ONE % PRIME
    if x * x % PRIME != square or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = PRIME - x
    return x, y, 1, x * y % PRIME


def _multiply(scalar: int, point: Point) -> Point:
    product = _IDENTITY
    while scalar:
        if scalar & 1:
            product = _add(product, point)
        point, scalar = _add(point, point), scalar >> 1
    return product


def _add(first: Point, second: Point) -> Point:
    """Add two points (RFC 8032 section 5.1.4); the formula is complete, so it doubles as well."""
    x1, y1, z1, t1 = first
    x2, y2, z2, t2 = second
    a, b = (y1 - x1) * (y2 - x2) % PRIME, (y1 + x1) * (y2 + x2) % PRIME
    c, d = 2 * t1 * t2 * _D % PRIME, 2 * z1 * z2 % PRIME
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % PRIME, g * h % PRIME, f * g % PRIME, e * h % PRIME


def _is_identity(point: Point) -> bool:
    x, y, z, _ = point
    return x % PRIME == 0 and (y - z) % PRIME == 0


KEY_FILE_TYPE = "urn:appliance:key-file:v1"
SALT_BYTES = 32
NONCE_BYTES = 12
_SEALED_BYTES = 32 + 16
_SCRYPT_N = 2**16
_SCRYPT_R = 8
_SCRYPT_P = 1
_KEY_FILE_MEMBERS = frozenset({"_type", "cipher", "ciphertext", "kdf", "nonce", "publicKey"})
_KDF_MEMBERS = frozenset({"n", "name", "p", "r", "salt"})
_CIPHER = "chacha20-poly1305"
# The SPKI of a supported key is this prefix and a key of fixed length; DER allows no other encoding.
_SPKI_PREFIXES = {
    "Ed25519": (bytes.fromhex("302a300506032b6570032100"), 32),
    "P-256": (bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"), 64),
    "P-384": (bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"), 96),
}
_PEM_FIRST, _PEM_LAST = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


class Signer(Protocol):
    """An object that signs with the private key of one public key, which may be in memory, in a file or in a token."""

    @property
    def spki(self) -> bytes: ...

    @property
    def keyid(self) -> str: ...

    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True)
class RemoteSigner:
    """A signer whose private key is elsewhere: in a token, or in the signer process."""

    spki: bytes
    sign: Callable[[bytes], bytes] = field(repr=False)
    """Function that has its argument signed and returns the signature."""

    @property
    def keyid(self) -> str:
        return digest_bytes(self.spki)


@dataclass(frozen=True, slots=True)
class Ed25519Signer:
    """A signer with an Ed25519 key in memory."""

    private: Ed25519PrivateKey = field(repr=False)
    spki: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Computed once, since the log's key signs at every commit.
        object.__setattr__(self, "spki", _encode_spki(self.private.public_key()))

    @property
    def keyid(self) -> str:
        return digest_bytes(self.spki)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of the data (RFC 8032 section 5.1.6)."""
        return self.private.sign(data)


@dataclass(frozen=True, slots=True)
class EcdsaSigner:
    """A signer with a P-256 or P-384 key in memory."""

    private: EllipticCurvePrivateKey = field(repr=False)

    def __post_init__(self) -> None:
        _check_curve(self.private.public_key())

    @property
    def spki(self) -> bytes:
        return _encode_spki(self.private.public_key())

    @property
    def keyid(self) -> str:
        return digest_bytes(self.spki)

    def sign(self, data: bytes) -> bytes:
        """Return a DER signature over SHA-256 (P-256) or SHA-384 (P-384) of the data."""
        return self.private.sign(data, ECDSA(_hash_for(self.private.public_key())))


def generate_ed25519() -> Ed25519Signer:
    """Generate a new Ed25519 key."""
    return Ed25519Signer(Ed25519PrivateKey.generate())


def ed25519_signer(seed: bytes) -> Ed25519Signer:
    """Return the signer of a private key's 32 raw bytes."""
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(seed))


def keyid_of(spki: bytes) -> str:
    """Return the id of a public key.

    Raises:
        BadInput: the bytes are not a supported public key.
    """
    parse_spki(spki)
    return digest_bytes(spki)


@lru_cache(maxsize=4096)  # Checking the order of a point takes milliseconds.
def parse_spki(spki: bytes) -> PublicKey:
    """Parse a public key of one of the three kinds that people can have from its canonical DER encoding."""
    if not any(spki.startswith(start) and len(spki) == len(start) + n for start, n in _SPKI_PREFIXES.values()):
        raise BadInput(f"public key: expected the SPKI of {', '.join(_SPKI_PREFIXES)} in DER, got {show(spki.hex())}")
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise BadInput("public key: expected a point on its curve, got none") from None
    if isinstance(key, Ed25519PublicKey):
        if not is_prime_order(spki[-32:]):
            got = spki[-32:].hex()
            raise BadInput(f"public key, Ed25519: expected a point of prime order in its one encoding, got {got}")
    elif not isinstance(key, EllipticCurvePublicKey):
        raise BadInput(f"public key, kind: expected {', '.join(_SPKI_PREFIXES)}, got {type(key).__name__}")
    return key


def ed25519_spki(public: bytes) -> bytes:
    """Return the SPKI (RFC 8410) of 32 raw key bytes, unchecked; `parse_spki` checks it."""
    return _SPKI_PREFIXES["Ed25519"][0] + public


def p256_spki(x: bytes, y: bytes) -> bytes:
    """Return the SPKI of an uncompressed P-256 point from its two 32-byte coordinates.

    Raises:
        BadInput: the point is not on the curve.
    """
    spki = _SPKI_PREFIXES["P-256"][0] + x + y
    parse_spki(spki)
    return spki


def ed25519_raw(spki: bytes) -> bytes:
    """Return the 32 raw bytes of an Ed25519 key.

    Raises:
        BadInput: the key is of another kind.
    """
    if not isinstance(parse_spki(spki), Ed25519PublicKey):
        raise BadInput("public key, kind: expected Ed25519, got ECDSA")
    return spki[-32:]


def is_ecdsa(spki: bytes) -> bool:
    """Return True if the key is P-256 or P-384, False if it is Ed25519 or ML-DSA-65."""
    return not is_ml_dsa(spki) and isinstance(parse_spki(spki), EllipticCurvePublicKey)


def verify_signature(spki: bytes, data: bytes, sig: bytes) -> None:
    """Verify a signature by the algorithm of the key; ECDSA signatures are DER, over the hash of the curve.

    Raises:
        Tampered: the signature is invalid.
        BadInput: the key is not supported.
        Unavailable: the key is ML-DSA-65, which this Python cannot compute.
    """
    if is_ml_dsa(spki):
        verify_ml_dsa(spki, data, sig)
        return
    key = parse_spki(spki)
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(sig, data)
        else:
            key.verify(sig, data, ECDSA(_hash_for(key)))
    except (InvalidSignature, ValueError):
        raise Tampered(f"signature, key {digest_bytes(spki)}: expected a valid one, got an invalid one") from None


def load_spki_pem(pem: bytes) -> bytes:
    """Return the SPKI in DER of a person's key in one PEM block; CRLF or no last line end is accepted.

    Raises:
        BadInput: the file is anything else.
    """
    text = pem.decode("ascii", "replace").replace("\r\n", "\n").rstrip("\n")
    first, *lines, last = text.split("\n") if text.count("\n") > 1 else ("", "")
    if (first, last) != (_PEM_FIRST, _PEM_LAST):
        got = (
            show(first) if first.startswith("-----BEGIN ") else "none"
        )  # the message omits other text, which may be a secret
        raise BadInput(f"public key file: expected one PEM block PUBLIC KEY and nothing else, got {got}")
    spki = parse_base64("".join(lines), "public key file")
    parse_spki(spki)
    if encode_spki_pem(spki).decode("ascii") != f"{text}\n":
        raise BadInput("public key file: expected base64 in lines of 64 characters, got lines of different lengths")
    return spki


def encode_spki_pem(spki: bytes) -> bytes:
    """Encode a public key, which may be ML-DSA-65, as a PEM block."""
    if not is_ml_dsa(spki):
        parse_spki(spki)
    text = encode_base64(spki)
    lines = (text[start : start + 64] for start in range(0, len(text), 64))
    return "\n".join((_PEM_FIRST, *lines, _PEM_LAST, "")).encode("ascii")


def encode_key_file(private: Ed25519PrivateKey, passphrase: bytes, *, salt: bytes, nonce: bytes) -> bytes:
    """Encrypt a person's private key under a passphrase: scrypt (RFC 7914), then ChaCha20-Poly1305 (RFC 8439).

    All other fields of the file are the associated data. `salt` (32 bytes) and `nonce` (12 bytes) are random and used
    once.

    Raises:
        BadInput: salt or nonce has another length, or the passphrase is empty.
    """
    if len(salt) != SALT_BYTES or len(nonce) != NONCE_BYTES:
        expected = f"expected {SALT_BYTES} and {NONCE_BYTES} bytes"
        raise BadInput(f"key file, salt and nonce: {expected}, got {len(salt)} and {len(nonce)}")
    header = {
        "_type": KEY_FILE_TYPE,
        "cipher": _CIPHER,
        "kdf": {"n": _SCRYPT_N, "name": "scrypt", "p": _SCRYPT_P, "r": _SCRYPT_R, "salt": encode_base64(salt)},
        "nonce": encode_base64(nonce),
        "publicKey": encode_base64(_encode_spki(private.public_key())),
    }
    seed = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    cipher = ChaCha20Poly1305(_derive_key(passphrase, salt))
    ciphertext = cipher.encrypt(nonce, seed, encode_canonical(header))
    return encode_canonical(header | {"ciphertext": encode_base64(ciphertext)}) + b"\n"


def parse_key_file(data: bytes, passphrase: bytes) -> Ed25519Signer:
    """Decrypt a key file and return its signer.

    Raises:
        NotAuthenticated: the passphrase is wrong or the file was changed; the cipher cannot distinguish the two.
        Tampered: the public key in the file is not that of the private key.
        BadInput: the file is malformed.
    """
    locked = _parse_locked(data)
    cipher = ChaCha20Poly1305(_derive_key(passphrase, locked.salt))
    try:
        seed = cipher.decrypt(locked.nonce, locked.ciphertext, locked.associated)
    except InvalidTag:
        raise NotAuthenticated("key file: expected its passphrase, got a wrong one, or the file was changed") from None
    signer = ed25519_signer(seed)
    if signer.spki != locked.spki:
        got = digest_bytes(locked.spki)
        raise Tampered(f"key file, publicKey: expected that of the private key, {signer.keyid}, got {got}")
    return signer


def parse_key_file_spki(data: bytes) -> bytes:
    """Return the public key in a key file without the passphrase; it is unverified until the file is decrypted."""
    return _parse_locked(data).spki


@dataclass(frozen=True, slots=True)
class _Locked:
    salt: bytes
    nonce: bytes
    ciphertext: bytes
    spki: bytes
    associated: bytes


def _parse_locked(data: bytes) -> _Locked:
    if not data.endswith(b"\n"):
        raise BadInput("key file, end: expected a newline, got none")
    value = parse_object(parse_canonical(data[:-1]), "key file", _KEY_FILE_MEMBERS)
    parse_constant(value["_type"], "key file, _type", KEY_FILE_TYPE)
    parse_constant(value["cipher"], "key file, cipher", _CIPHER)
    kdf = parse_object(value["kdf"], "key file, kdf", _KDF_MEMBERS)
    # The work factor is fixed, since a file with another one could exhaust the memory.
    for name, constant in (("name", "scrypt"), ("n", _SCRYPT_N), ("r", _SCRYPT_R), ("p", _SCRYPT_P)):
        parse_constant(kdf[name], f"key file, kdf {name}", constant)
    spki = parse_base64(value["publicKey"], "key file, publicKey")
    ed25519_raw(spki)
    return _Locked(
        salt=parse_base64(kdf["salt"], "key file, salt", size=SALT_BYTES),
        nonce=parse_base64(value["nonce"], "key file, nonce", size=NONCE_BYTES),
        ciphertext=parse_base64(value["ciphertext"], "key file, ciphertext", size=_SEALED_BYTES),
        spki=spki,
        associated=encode_canonical({name: value[name] for name in _KEY_FILE_MEMBERS - {"ciphertext"}}),
    )


def _derive_key(passphrase: bytes, salt: bytes) -> bytes:
    if not passphrase:
        raise BadInput("passphrase: expected at least one byte, got none")
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(passphrase)


def _encode_spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _hash_for(key: EllipticCurvePublicKey) -> SHA256 | SHA384:
    return SHA256() if isinstance(key.curve, SECP256R1) else SHA384()


def _check_curve(key: EllipticCurvePublicKey) -> None:
    if not isinstance(key.curve, SECP256R1 | SECP384R1):
        raise BadInput(f"public key, curve: expected P-256 or P-384, got {key.curve.name}")
