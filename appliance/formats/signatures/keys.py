"""Public keys, signers, and the file that keeps a person's private key.

A public key is its SubjectPublicKeyInfo in DER; its id is the SHA-256 of exactly these bytes. Three kinds are known:
Ed25519 (64-byte signatures), ECDSA P-256 with SHA-256 and ECDSA P-384 with SHA-384 (DER signatures).
"""

from __future__ import annotations

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
from appliance.formats.signatures.edwards import is_prime_order

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
# A SubjectPublicKeyInfo of a known kind is this prefix and a key of fixed length: DER leaves no other spelling.
_SPKI_PREFIXES = {
    "Ed25519": (bytes.fromhex("302a300506032b6570032100"), 32),
    "P-256": (bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"), 64),
    "P-384": (bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"), 96),
}
_PEM_FIRST, _PEM_LAST = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"

PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


class Signer(Protocol):
    """Something that signs for one public key: a key in memory, in a file, later in a token."""

    @property
    def spki(self) -> bytes: ...

    @property
    def keyid(self) -> str: ...

    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Ed25519Signer:
    private: Ed25519PrivateKey = field(repr=False)
    spki: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Once: the log's key signs at every commit.
        object.__setattr__(self, "spki", _encode_spki(self.private.public_key()))

    @property
    def keyid(self) -> str:
        return digest_bytes(self.spki)

    def sign(self, data: bytes) -> bytes:
        """64 bytes, RFC 8032."""
        return self.private.sign(data)


@dataclass(frozen=True, slots=True)
class EcdsaSigner:
    """P-256 or P-384."""

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
        """A DER signature over SHA-256 (P-256) or SHA-384 (P-384) of the data."""
        return self.private.sign(data, ECDSA(_hash_for(self.private.public_key())))


def generate_ed25519() -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.generate())


def ed25519_signer(seed: bytes) -> Ed25519Signer:
    """Of a private key's 32 raw bytes."""
    return Ed25519Signer(Ed25519PrivateKey.from_private_bytes(seed))


def keyid_of(spki: bytes) -> str:
    """The key's id; bytes that are no known public key have none."""
    parse_spki(spki)
    return digest_bytes(spki)


@lru_cache(maxsize=4096)  # The order of a point takes some milliseconds.
def parse_spki(spki: bytes) -> PublicKey:
    """One of the three known kinds, in the one DER encoding that its id is made of."""
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
    """The SPKI of 32 raw key bytes, RFC 8410; whether they are a key `parse_spki` says."""
    return _SPKI_PREFIXES["Ed25519"][0] + public


def p256_spki(x: bytes, y: bytes) -> bytes:
    """The SPKI of a point of P-256, uncompressed, from its coordinates of 32 bytes each; BadInput where it is none."""
    spki = _SPKI_PREFIXES["P-256"][0] + x + y
    parse_spki(spki)
    return spki


def ed25519_raw(spki: bytes) -> bytes:
    """The 32 raw key bytes; BadInput for a key of another kind."""
    if is_ecdsa(spki):
        raise BadInput("public key, kind: expected Ed25519, got ECDSA")
    return spki[-32:]


def is_ecdsa(spki: bytes) -> bool:
    """P-256 or P-384, as opposed to Ed25519."""
    return isinstance(parse_spki(spki), EllipticCurvePublicKey)


def verify_signature(spki: bytes, data: bytes, sig: bytes) -> None:
    """By the key's own kind; an ECDSA signature is DER, over the hash that belongs to the curve."""
    key = parse_spki(spki)
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(sig, data)
        else:
            key.verify(sig, data, ECDSA(_hash_for(key)))
    except (InvalidSignature, ValueError):
        raise Tampered(f"signature, key {digest_bytes(spki)}: expected a valid one, got an invalid one") from None


def load_spki_pem(pem: bytes) -> bytes:
    """The SPKI in DER of one PEM block, as `encode_spki_pem` writes it, or with CRLF, or with no last line end."""
    text = pem.decode("ascii", "replace").replace("\r\n", "\n").rstrip("\n")
    first, *lines, last = text.split("\n") if text.count("\n") > 1 else ("", "")
    if (first, last) != (_PEM_FIRST, _PEM_LAST):
        got = show(first) if first.startswith("-----BEGIN ") else "none"  # other text may be a secret
        raise BadInput(f"public key file: expected one PEM block PUBLIC KEY and nothing else, got {got}")
    spki = parse_base64("".join(lines), "public key file")
    if encode_spki_pem(spki).decode("ascii") != f"{text}\n":
        raise BadInput("public key file: expected base64 in lines of 64 characters, got lines of different lengths")
    return spki


def encode_spki_pem(spki: bytes) -> bytes:
    return parse_spki(spki).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def encode_key_file(private: Ed25519PrivateKey, passphrase: bytes, *, salt: bytes, nonce: bytes) -> bytes:
    """A person's key under a passphrase: scrypt, then ChaCha20-Poly1305 with every other member as associated data.

    `salt` (32 bytes) and `nonce` (12 bytes) are random and used once.
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
    """Raises NotAuthenticated for a wrong passphrase or a changed file: the cipher cannot tell them apart."""
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
    """The public key that a key file names, without the passphrase: a claim, until the file is opened."""
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
    # The work factor is fixed: a file that asks for another could ask for all memory.
    for name, constant in (("name", "scrypt"), ("n", _SCRYPT_N), ("r", _SCRYPT_R), ("p", _SCRYPT_P)):
        parse_constant(kdf[name], f"key file, kdf {name}", constant)
    spki = parse_base64(value["publicKey"], "key file, publicKey")
    if is_ecdsa(spki):
        raise BadInput("key file, publicKey: expected Ed25519, got ECDSA")
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
