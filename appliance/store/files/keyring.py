"""The service's own keys and secrets: files below <home>/keys that no other account can read. Signers are named by URI.

A signer's URI is `file:NAME`, a PKCS#8 PEM file `NAME.pem` in the folder; other schemes are for keys that are kept
elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.errors import BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.digest import kind_of
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.keys import EcdsaSigner, Ed25519Signer, Signer
from appliance.store.files import disk

LOG_KEY, ADAPTER_KEY = "file:log", "file:adapter"
MAX_KEY_BYTES = 16_384
MAX_LOG_KEYS = 100
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


class Keyring:
    """The keys of one home. The folder is made when the first key is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create_log_key(self, uri: str = LOG_KEY) -> Ed25519Signer:
        """Signs the log's checkpoints. Conflict when there is one of this name: a key is never overwritten."""
        key = Ed25519PrivateKey.generate()
        self._create_key(uri, key)
        return Ed25519Signer(key)

    def log_signers(self, origin: str) -> dict[str, Signer]:
        """Every key of the log that is held here, by its vkey, oldest first: the first, and those to rotate to."""
        signers: dict[str, Signer] = {}
        for number in range(1, MAX_LOG_KEYS):
            try:
                signer = self.open_signer(_log_key(number))
            except NotFound:
                continue  # one that no longer signs may have been destroyed
            signers[vkey_of(origin, signer)] = signer
        return signers

    def next_log_key(self, origin: str, used: Collection[str]) -> str:
        """The vkey that the log can rotate to: one that waits for that already, or a new one. Conflict where the names
        are used up."""
        for vkey in self.log_signers(origin):
            if vkey not in used:
                return vkey
        for number in range(len(used) + 1, MAX_LOG_KEYS):
            with suppress(Conflict):
                return vkey_of(origin, self.create_log_key(_log_key(number)))
        raise Conflict(f"log keys: expected fewer than {MAX_LOG_KEYS}, got as many")

    def create_adapter_key(self) -> EcdsaSigner:
        """Signs adapters (ECDSA P-256, since the public model_signing command refuses Ed25519)."""
        key = generate_private_key(SECP256R1())
        self._create_key(ADAPTER_KEY, key)
        return EcdsaSigner(key)

    def open_signer(self, uri: str) -> Signer:
        """The signer of a URI; NotFound, or Tampered when the file is not the service's alone."""
        data = self._read(f"{_name_of(uri)}.pem", f"key {uri}")
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise BadInput(f"key {uri}: expected an unencrypted PKCS#8 PEM file, got one that does not parse") from None
        if isinstance(key, Ed25519PrivateKey):
            return Ed25519Signer(key)
        if isinstance(key, EllipticCurvePrivateKey):
            return EcdsaSigner(key)
        raise BadInput(f"key {uri}: expected Ed25519 or ECDSA, got {type(key).__name__}")

    def keep_secret(self, name: str, data: bytes) -> None:
        """Stores a secret that is no signer (a dataset's key), durably; the same again is nothing, another Conflict."""
        try:
            standing = self.read_secret(name)
        except NotFound:
            self._write(f"{_check_name(name)}.secret", data)
            return
        if standing != data:
            raise Conflict(f"secret {name}: expected a new name, got one that another secret has")

    def destroy_secret(self, name: str) -> None:
        """Removes a secret that nothing needs any more; one that is not there is nothing."""
        with disk.disk_errors(f"secret {name}"), suppress(FileNotFoundError):
            (self._folder / f"{_check_name(name)}.secret").unlink()
            disk.sync_folder(self._folder)

    def read_secret(self, name: str) -> bytes:
        return self._read(f"{_check_name(name)}.secret", f"secret {name}")

    def _create_key(self, uri: str, key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> None:
        name = f"{_name_of(uri)}.pem"
        if os.path.lexists(self._folder / name):
            # No key is ever overwritten: what it signed may have to be continued one day.
            raise Conflict(f"key {uri}: expected none yet, got one")
        self._write(name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def _write(self, name: str, data: bytes) -> None:
        with disk.disk_errors(f"keys, {name}"):
            disk.make_folder(self._folder)
            self._check_folder()
            disk.write_file(self._folder / name, data, 0o600)

    def _read(self, name: str, what: str) -> bytes:
        with disk.disk_errors(what):
            self._check_folder()
            with disk.open_folder(self._folder) as folder, disk.open_plain(folder, name, what) as file:
                _check_private(os.fstat(file), what)
                return disk.read_all(file, MAX_KEY_BYTES, what)

    def _check_folder(self) -> None:
        try:
            found = os.stat(self._folder, follow_symlinks=False)
        except FileNotFoundError:
            raise NotFound(f"keys, {self._folder}: expected a folder with the service's keys, got none") from None
        if not stat.S_ISDIR(found.st_mode):
            raise Tampered(f"keys, {self._folder}: expected a folder, got {kind_of(found.st_mode)}")
        _check_private(found, f"keys, {self._folder}")


def _check_private(found: os.stat_result, what: str) -> None:
    """Owned by this account, readable by no other, with one name only."""
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise Tampered(f"{what}, mode: expected no rights for group and others, got {mode:04o}")
    if found.st_uid != os.geteuid():
        raise Tampered(f"{what}, owner: expected the service's account {os.geteuid()}, got {found.st_uid}")
    if stat.S_ISREG(found.st_mode) and found.st_nlink != 1:
        raise Tampered(f"{what}: expected a file of one name, got one that is linked elsewhere")


def _log_key(number: int) -> str:
    return LOG_KEY if number == 1 else f"{LOG_KEY}-{number}"


def _name_of(uri: str) -> str:
    scheme, _, name = uri.partition(":")
    if scheme != "file":
        raise BadInput(f"key {uri}: expected file:NAME, got the scheme {scheme!r}")
    return _check_name(name)


def _check_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise BadInput(f"key or secret, name: expected letters, digits and hyphens, got {name!r}")
    return name
