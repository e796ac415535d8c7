"""The opening of a signer: its keys, its record and its operations."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import Conflict, NotFound
from appliance.signer.operations import Operations
from appliance.signer.record import SignerRecord
from appliance.signer.token import Token
from appliance.store.files import disk
from appliance.store.files.keyring import ADAPTER_KEY, KINDS, LOG_KEY, Keyring, KeyStore
from appliance.store.files.lock import FolderLock, lock_folder

_FIND_KEYS = "if the keys are in a token, name it with --pkcs11, else copy them into the signer's folder"
"""Action after a key was not found, for messages."""


def open_keys(folder: Path, passphrase: bytes | None, token: str | None = None) -> KeyStore:
    """Return the store of the signer's keys: files in its folder, or a token that the URI names.

    The passphrase encrypts the files, or is the token's PIN.
    """
    return Keyring(folder / "keys", passphrase) if token is None else Token(token, passphrase or b"")


def open_record(folder: Path, database: str | None) -> SignerRecord:
    """Return the record of what was signed: in the signer's folder, or in the database that several signers share."""
    return SignerRecord.in_folder(folder) if database is None else SignerRecord(database)


def lock_signer(folder: Path) -> FolderLock:
    """Take the lock that a signer holds while it serves.

    Raises:
        Conflict: a signer serves from this folder.
    """
    try:
        return lock_folder(folder / "lock", "stop that signer first")
    except Conflict as error:
        raise Conflict(f"signer, {error.message}", code=error.code) from None


def make_signer(folder: Path, passphrase: bytes | None, database: str | None, token: str | None = None) -> Operations:
    """Make the folder, the record and the keys of a signer. What an interrupted call has made is used.

    The record has the log key's id as soon as the key is made. Then no other log key is made for it.

    Raises:
        Conflict: the record and the log's key do not belong together. The key may have signed what the record lacks.
        NotFound: the record belongs to keys that are not here.
    """
    with disk.disk_errors(f"signer, {folder}"):
        disk.make_folder(folder)
    record, keys = open_record(folder, database), open_keys(folder, passphrase, token)
    record.create()
    if record.read() is None:
        if not _has_log_key(keys, record) and not record.add_log_key(keys.create_key(LOG_KEY, KINDS[LOG_KEY]).keyid):
            raise Conflict(
                "signer, record: expected no log key yet, got that of another host; copy the keys of its signer"
            )
        keys.make_keys()
    return _open(folder, keys, record)


def open_signer(folder: Path, passphrase: bytes | None, database: str | None, token: str | None = None) -> Operations:
    """Open a signer, whose keys are decrypted once.

    Raises:
        NotFound: there is none, or its keys are elsewhere.
        Conflict: the record and the log's key do not belong together.
        BadInput: the passphrase is wrong.
        Unavailable: the record cannot be read.
    """
    return _open(folder, open_keys(folder, passphrase, token), open_record(folder, database))


def _open(folder: Path, keys: KeyStore, record: SignerRecord) -> Operations:
    if not _has_log_key(keys, record):
        raise NotFound(
            f"signer, {folder}: expected a log key and a record; make the signer with: appliance signer init"
        )
    operations = Operations(keys, record)
    is_new = operations.find_log() is None
    try:
        keys.open_signer(ADAPTER_KEY)
    except NotFound as error:
        action = "make it with: appliance signer init" if is_new else _FIND_KEYS
        raise NotFound(f"{error.message}; {action}") from None
    return operations


def _has_log_key(keys: KeyStore, record: SignerRecord) -> bool:
    """Return True if the record belongs to the log key, and False if there is no key and no id in the record."""
    expected = record.read_log_key()
    try:
        got = keys.open_signer(LOG_KEY).keyid
    except NotFound as error:
        if expected is None:
            return False
        raise NotFound(
            f"{error.message}; the signer's record belongs to the log key {expected}; {_FIND_KEYS}"
        ) from None
    if expected is None:
        raise Conflict(
            f"signer, record: expected the id of the log's key {got}, got none; if the key has signed, begin a new "
            "record of its log with: appliance signer adopt; if an interrupted init left it, remove it and repeat that"
        )
    if got != expected:
        raise Conflict(
            f"signer, log key: expected {expected}, as in the signer's record, got {got}; name the folder or the token "
            "that has the record's keys, or the record of these keys"
        )
    return True
