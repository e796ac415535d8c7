"""The service's own keys and secrets: files in <home>/keys that no other account can read, or keys of a signer.

A signer's URI is `file:NAME` for the PKCS#8 PEM file `NAME.pem` in this folder. With a passphrase, the file is
`NAME.pem.age`, which age encrypts.
"""

from __future__ import annotations

import os
import re
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from appliance.errors import BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.digest import kind_of
from appliance.formats.log.note import is_post_quantum, vkey_of
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, Signer, generate_ed25519
from appliance.formats.signatures.ml_dsa import MlDsaSigner, generate_ml_dsa
from appliance.store.files import disk

LOG_KEY, ADAPTER_KEY, POST_QUANTUM_ADAPTER_KEY = "file:log", "file:adapter", "file:adapter-post-quantum"
MAX_KEY_BYTES = 16_384
MAX_LOG_KEYS = 100
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


KeyKind = Literal["Ed25519", "P-256", "ML-DSA-65"]
KINDS: dict[str, KeyKind] = {LOG_KEY: "Ed25519", ADAPTER_KEY: "P-256", POST_QUANTUM_ADAPTER_KEY: "ML-DSA-65"}
"""Kinds of the service's keys. Adapters have one of P-256, since the public model_signing command refuses Ed25519."""


class KeyStore(ABC):
    """A store of the keys that sign: a folder of files, or a token."""

    @abstractmethod
    def open_signer(self, uri: str) -> Signer:
        """Return the signer of a URI; NotFound is raised if there is none."""

    @abstractmethod
    def create_key(self, uri: str, kind: KeyKind) -> Signer:
        """Create a key. Conflict is raised if there is one of this name: keys are never overwritten."""

    @abstractmethod
    def add_key(self, uri: str, signer: HeldSigner) -> None:
        """Add a key that was made elsewhere; adding the same key again has no effect.

        Raises:
            Conflict: another key has this name.
        """

    def ensure_key(self, uri: str) -> Signer:
        """Return a key of the service; create it if there is none.

        Raises:
            Unavailable: this Python or token cannot compute ML-DSA-65.
        """
        try:
            return self.open_signer(uri)
        except NotFound:
            return self.create_key(uri, KINDS[uri])

    def make_keys(self) -> None:
        """Create the first log key and the adapters' key, unless they exist."""
        for uri in (LOG_KEY, ADAPTER_KEY):
            self.ensure_key(uri)

    def log_signers(self, origin: str) -> dict[str, Signer]:
        """Return all log keys that are held here by their vkeys, oldest first, including those to rotate to."""
        signers: dict[str, Signer] = {}
        for number in range(1, MAX_LOG_KEYS):
            try:
                signer = self.open_signer(_log_key(number))
            except NotFound:
                continue  # a retired key may have been destroyed
            signers[vkey_of(origin, signer)] = signer
        return signers

    def next_log_key(self, origin: str, used: Collection[str], *, post_quantum: bool = False) -> str:
        """Return the vkey to which the log can rotate: an unused key of the kind that exists, or a new one.

        Raises:
            Conflict: there are already `MAX_LOG_KEYS` keys.
            Unavailable: the key is to be ML-DSA-65, which this Python or token cannot compute.
        """
        for vkey in self.log_signers(origin):
            if vkey not in used and is_post_quantum(vkey) == post_quantum:
                return vkey
        for number in range(len(used) + 1, MAX_LOG_KEYS):
            with suppress(Conflict):
                return vkey_of(origin, self.create_key(_log_key(number), "ML-DSA-65" if post_quantum else "Ed25519"))
        raise Conflict(f"log keys: expected fewer than {MAX_LOG_KEYS}, got as many")


class Keyring(KeyStore):
    """The keys of one home, or of a signer. The folder is created with the first key."""

    def __init__(self, folder: Path, passphrase: bytes | None = None) -> None:
        """Open the folder. With a passphrase, the files of keys are encrypted (age, scrypt) and opened once."""
        self.folder = folder
        self._passphrase = None if passphrase is None else passphrase.decode("utf-8", "surrogateescape")
        self._opened: dict[str, HeldSigner] = {}

    def create_key(self, uri: str, kind: KeyKind) -> Signer:
        """Create a key in a file of its own."""
        signer = _GENERATE[kind]()
        self.add_key(uri, signer)
        return signer

    def open_signer(self, uri: str) -> HeldSigner:
        """Return the signer of a URI.

        Raises:
            NotFound: there is none.
            Tampered: the file is accessible to other accounts.
            BadInput: the file is not a supported key, or the passphrase is another one.
        """
        if uri in self._opened:
            return self._opened[uri]
        data = self._read(self._file_of(uri), f"key {uri}")
        if self._passphrase is None:
            return _parse_key(data, uri)
        self._opened[uri] = _parse_key(_decrypt(data, self._passphrase, f"key {uri}"), uri)
        return self._opened[uri]

    def _file_of(self, uri: str) -> str:
        return f"{name_of(uri)}.pem" if self._passphrase is None else f"{name_of(uri)}.pem.age"

    def keep_secret(self, name: str, data: bytes) -> None:
        """Store a secret that is not a signer, such as a dataset's key; storing the same bytes again has no effect.

        Raises:
            Conflict: another secret has this name.
        """
        try:
            current = self.read_secret(name)
        except NotFound:
            self._write(f"{_check_name(name)}.secret", data)
            return
        if current != data:
            raise Conflict(f"secret {name}: expected a new name, got one that another secret has")

    def destroy_secret(self, name: str) -> None:
        """Remove a secret that is no longer needed; a missing one is ignored."""
        with disk.disk_errors(f"secret {name}"), suppress(FileNotFoundError):
            (self.folder / f"{_check_name(name)}.secret").unlink()
            disk.sync_folder(self.folder)

    def read_secret(self, name: str) -> bytes:
        return self._read(f"{_check_name(name)}.secret", f"secret {name}")

    def add_key(self, uri: str, signer: HeldSigner) -> None:
        """Write a key to its file; adding the same key again has no effect.

        Raises:
            Conflict: another key has this name.
        """
        name = self._file_of(uri)
        if os.path.lexists(self.folder / name):
            # Keys are never overwritten: a log that one of them signed may have to be continued.
            if self.open_signer(uri).spki != signer.spki:
                raise Conflict(f"key {uri}: expected none yet, got one")
            return
        data = signer.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._write(name, data if self._passphrase is None else _encrypt(data, self._passphrase))

    def destroy_key(self, uri: str) -> None:
        """Remove the file of a key that is kept elsewhere; a missing one is ignored."""
        with disk.disk_errors(f"key {uri}"), suppress(FileNotFoundError):
            (self.folder / self._file_of(uri)).unlink()
            disk.sync_folder(self.folder)

    def list_keys(self) -> list[str]:
        """Return the URIs of the keys with a file, by name."""
        with disk.disk_errors("keys"):
            names = self.folder.glob("*.pem" if self._passphrase is None else "*.pem.age")
            return sorted(f"file:{path.name.partition('.')[0]}" for path in names)

    def _write(self, name: str, data: bytes) -> None:
        with disk.disk_errors(f"keys, {name}"):
            disk.make_folder(self.folder)
            self._check_folder()
            disk.write_file(self.folder / name, data, 0o600)

    def _read(self, name: str, what: str) -> bytes:
        with disk.disk_errors(what):
            self._check_folder()
            with disk.open_folder(self.folder) as folder, disk.open_plain(folder, name, what) as file:
                _check_private(os.fstat(file), what)
                return disk.read_all(file, MAX_KEY_BYTES, what)

    def _check_folder(self) -> None:
        try:
            found = os.stat(self.folder, follow_symlinks=False)
        except FileNotFoundError:
            raise NotFound(f"keys, {self.folder}: expected a folder with the service's keys, got none") from None
        if not stat.S_ISDIR(found.st_mode):
            raise Tampered(f"keys, {self.folder}: expected a folder, got {kind_of(found.st_mode)}")
        _check_private(found, f"keys, {self.folder}")


def _generate_p256() -> EcdsaSigner:
    return EcdsaSigner(generate_private_key(SECP256R1()))


HeldSigner = Ed25519Signer | EcdsaSigner | MlDsaSigner
"""A signer whose private key is in memory."""
_GENERATE: dict[KeyKind, Callable[[], HeldSigner]] = {
    "Ed25519": generate_ed25519,
    "P-256": _generate_p256,
    "ML-DSA-65": generate_ml_dsa,
}


def _parse_key(data: bytes, uri: str) -> HeldSigner:
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(f"key {uri}: expected an unencrypted PKCS#8 PEM file, got one that does not parse") from None
    if isinstance(key, Ed25519PrivateKey):
        return Ed25519Signer(key)
    if isinstance(key, EllipticCurvePrivateKey):
        return EcdsaSigner(key)
    if isinstance(key, MLDSA65PrivateKey):
        return MlDsaSigner(key)
    raise BadInput(f"key {uri}: expected Ed25519, ECDSA or ML-DSA-65, got {type(key).__name__}")


_EXCESSIVE = "Excessive work"
"""Words of age's refusal of a file whose scrypt would take too long. Age measures the machine for a millisecond, so
that a busy machine can seem too slow."""
_TRIALS = 20
"""Most trials to open a file that age refuses so, `_PAUSE_S` seconds apart."""
_PAUSE_S = 0.25


def _encrypt(data: bytes, passphrase: str) -> bytes:
    from pyrage import passphrase as age

    encrypted: bytes = age.encrypt(data, passphrase)
    return encrypted


def _decrypt(data: bytes, passphrase: str, what: str) -> bytes:
    from pyrage import DecryptError
    from pyrage import passphrase as age

    for trial in range(1, _TRIALS + 1):
        try:
            return bytes(age.decrypt(data, passphrase))
        except DecryptError as error:
            if _EXCESSIVE not in str(error) or trial == _TRIALS:
                raise BadInput(f"{what}: expected a file that the passphrase opens, got: {error}") from None
            time.sleep(_PAUSE_S)
    raise AssertionError("the last trial returns or raises")


def _check_private(found: os.stat_result, what: str) -> None:
    """Check that the file belongs to this account, is readable by no other account, and has a single name."""
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise Tampered(f"{what}, mode: expected no rights for group and others, got {mode:04o}")
    if found.st_uid != os.geteuid():
        raise Tampered(f"{what}, owner: expected the service's account {os.geteuid()}, got {found.st_uid}")
    if stat.S_ISREG(found.st_mode) and found.st_nlink != 1:
        raise Tampered(f"{what}: expected a file of one name, got one that is linked elsewhere")


def _log_key(number: int) -> str:
    return LOG_KEY if number == 1 else f"{LOG_KEY}-{number}"


def name_of(uri: str) -> str:
    """Return the name of the key in a URI `file:NAME`.

    Raises:
        BadInput: the URI has another scheme or name.
    """
    scheme, _, name = uri.partition(":")
    if scheme != "file":
        raise BadInput(f"key {uri}: expected file:NAME, got the scheme {scheme!r}")
    return _check_name(name)


def _check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise BadInput(f"key or secret, name: expected letters, digits and hyphens, got {name!r}")
    return name


MAX_CERTIFICATE_BYTES = 1 << 20
"""Maximum bytes of a file of certificates."""


def read_end(path: Path, *, is_ca: bool = False) -> datetime:
    """Return the earliest expiry of the certificates in a file, or the latest in a file of CAs, each of which admits
    hosts.
    """
    data = disk.read_file(path, MAX_CERTIFICATE_BYTES, "certificate")
    try:
        ends = [one.not_valid_after_utc for one in x509.load_pem_x509_certificates(data)]
    except ValueError as error:
        raise BadInput(f"certificate, {path}: expected PEM, got: {error}") from None
    return max(ends) if is_ca else min(ends)
