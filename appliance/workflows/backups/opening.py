"""The decryption and verification of a backup: signature, bytes, the log in the database, and the keyring."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.domain.core.records.site import LogKey
from appliance.errors import BadInput, Denied, Tampered
from appliance.formats.log.backup import DATABASE_PATH, Backup, BackupFile, Index, parse_index
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.trust import Trust
from appliance.store.files import disk
from appliance.store.files.backups import BackupFolder
from appliance.store.files.encryption import AgeIdentity, Write, decrypt
from appliance.store.ledger.copies import LogCopy, check_dump, read_sqlite
from appliance.workflows.backups.listing import read_backup
from appliance.workflows.backups.making import MAX_INDEX_BYTES, MAX_KEYRING_BYTES, work_folder

Fill = Callable[[Write], None]
"""A function that writes the content of a file by calling the given `Write`."""


def open_index(folder: BackupFolder, backup: Backup, identities: Sequence[AgeIdentity]) -> Index:
    """Decrypt the index of a backup.

    Raises:
        Denied: none of the identities opens the backup's data.
        Tampered: the index is altered, or names other objects than the manifest.
    """
    data = bytearray()

    def take(chunk: bytes) -> None:
        data.extend(chunk)
        if len(data) > MAX_INDEX_BYTES:
            raise Tampered(f"backup {backup.name}, index: expected at most {MAX_INDEX_BYTES} bytes, got more")

    try:
        folder.open(backup.by_name[backup.index], identities, take)
        index = parse_index(bytes(data))
    except Denied:
        known = ", ".join(backup.recipients)
        raise Denied(f"backup {backup.name}: expected the identity of one of {known}, got others") from None
    except BadInput as error:
        raise Tampered(f"backup {backup.name}: {error.message}") from None
    objects = backup.by_name
    for file in index.files:
        if file.object not in objects:
            raise Tampered(f"backup {backup.name}, {file.path}: expected an object of the manifest, got another one")
    return index


def copy_file(
    folder: BackupFolder,
    backup: Backup,
    file: BackupFile,
    identities: Sequence[AgeIdentity],
    write: Write,
) -> None:
    """Decrypt a file and compare its content with the index.

    Raises:
        Tampered: it differs.
    """
    found = folder.open(backup.by_name[file.object], identities, write)
    if (found.digest(), found.size) != (file.digest, file.size):
        raise Tampered(f"backup {backup.name}, {file.path}: expected {file.digest}, got {found.digest()}")


def open_keyring(folder: BackupFolder, backup: Backup, identities: Sequence[AgeIdentity]) -> dict[str, bytes]:
    """Decrypt the keyring with the identities of two administrators, and return its files by path.

    Raises:
        Denied: no pair of these identities opens it.
        Tampered: its bytes are altered.
    """
    for pair in backup.keyring:
        outer, inner = bytearray(), bytearray()
        with suppress(Denied):
            folder.open(backup.by_name[pair.object], identities, _limited(outer))
            _decrypt_bytes(bytes(outer), identities, inner)
            return _unpack_secrets(bytes(inner))
    known = " or ".join(f"{pair.outer} with {pair.inner}" for pair in backup.keyring)
    raise Denied(f"keyring of backup {backup.name}: expected the identities of two administrators, {known}; got others")


def _limited(target: bytearray) -> Write:
    """Return a `Write` that appends to `target`, up to the size of an encrypted keyring."""

    def take(chunk: bytes) -> None:
        target.extend(chunk)
        if len(target) > 2 * MAX_KEYRING_BYTES:
            raise Tampered(f"keyring: expected at most {MAX_KEYRING_BYTES} bytes, got more")

    return take


def _decrypt_bytes(data: bytes, identities: Sequence[AgeIdentity], target: bytearray) -> None:
    with disk.memory_file(data, "keyring") as file:
        decrypt(file, _limited(target), identities, "keyring")


def _unpack_secrets(data: bytes) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                steps, file = member.name.split("/"), archive.extractfile(member)
                if file is None or len(steps) != 2 or not all(steps) or ".." in steps or "." in steps:
                    raise Tampered(f"keyring: expected plain files, got {member.name!r:.80}")
                found[member.name] = file.read()
    except tarfile.TarError as error:
        raise Tampered(f"keyring: expected a tar, got {error}") from None
    return found


def check_database(backup: Backup, path: Path, trust: Trust) -> LogCopy | None:
    """Verify the log in the database's copy, and compare it with the manifest.

    The log of a PostgreSQL dump is compared with the signed checkpoint; it is replayed only in a database.

    Raises:
        Tampered: the copy has another log.
    """
    signed = open_checkpoint(backup.checkpoint.encode(), backup.log_key)
    if backup.database == "postgresql":
        check_dump(path, signed)
        return None
    copied = read_sqlite(path, trust)
    compare_log(backup, copied)
    return copied


def compare_log(backup: Backup, copied: LogCopy) -> None:
    if copied.checkpoint != backup.checkpoint.encode() or copied.state.site.log_key != backup.log_key:
        raise Tampered(f"backup {backup.name}, database: expected the checkpoint of the manifest, got another one")


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="appliance-verify-") as work:
        yield Path(work)


@dataclass(frozen=True)
class BackupVerification:
    """The result of a verification. `opened`: the data was decrypted. `keyring`: the keyring was decrypted, too."""

    backup: Backup
    opened: bool
    keyring: bool


def verify(
    folder: BackupFolder,
    name: str,
    log_keys: tuple[LogKey, ...],
    trust: Trust,
    identities: Sequence[AgeIdentity],
    home: Path | None = None,
) -> BackupVerification:
    """Verify a backup's signature and bytes. With identities also decrypt it, and verify its files and its log.

    The database is decrypted in a private folder of the home, or in a temporary one without a home, and then removed.

    Raises:
        Tampered: something differs.
        Denied: the identities do not open the backup's data.
    """
    backup = read_backup(folder, name, log_keys)
    if not identities:
        for stored in backup.objects:
            folder.check(stored)
        return BackupVerification(backup, opened=False, keyring=False)
    index, opened = open_index(folder, backup, identities), {backup.index}
    with _temporary_folder() if home is None else work_folder(home) as work:
        database = work / DATABASE_PATH
        for file in index.files:
            opened.add(file.object)
            if file.path == DATABASE_PATH:
                write_file(database, file, partial(copy_file, folder, backup, file, identities))
            else:
                copy_file(folder, backup, file, identities, lambda _: None)
        check_database(backup, database, trust)
    for stored in backup.objects:
        if stored.name not in opened:
            folder.check(stored)
    try:
        open_keyring(folder, backup, identities)
    except Denied:
        return BackupVerification(backup, opened=True, keyring=False)
    return BackupVerification(backup, opened=True, keyring=True)


def write_file(path: Path, file: BackupFile, fill: Fill) -> None:
    """Create a file durably, with the mode of `file` and the content that `fill` writes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fill(lambda data: disk.write_all(descriptor, data))
        os.fchmod(descriptor, file.mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
