"""The backups of a folder: their signed manifests, their ages, and the removal of one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from appliance.api.operations import BackupRow
from appliance.domain.core.records.site import LogKey
from appliance.domain.queries.measures import BackupAges
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.backup import Backup, open_backup, parse_backup_name, time_of_name
from appliance.formats.log.checkpoint import claimed_size, open_checkpoint
from appliance.formats.log.note import is_post_quantum
from appliance.formats.log.trust import Trust
from appliance.store.database.engine import using_engine
from appliance.store.files.backups import MAX_BACKUPS, BackupFolder
from appliance.store.ledger.checks import summarise_database
from appliance.workflows.core import retry
from appliance.workflows.core.context import LedgerContext

WATCH_S = 600.0
"""Seconds between two measurements of the ages of the backups."""
MAX_TRIES = 16
"""Most manifests that are read to find the newest one with a valid signature."""


def given_keys(trust: Trust, log_key: str | None = None) -> tuple[LogKey, ...]:
    """Return the key that verifies the backups of a log: the given one, else that of the trust file.

    With a given key the trust file's key is not valid: it was replaced, perhaps because others have it.
    """
    return (LogKey(vkey=log_key or trust.log_key, since=0),)


def read_log_keys(database_url: str) -> tuple[LogKey, ...]:
    """Return the keys of the log in a database, from its projections.

    Raises:
        NotFound: The database has no log.
    """
    with using_engine(database_url, read_only=True) as engine:
        state = summarise_database(engine).state
    if state is None:
        raise NotFound("log: expected one in the database, got none; give the trust file: --trust FILE")
    return state.site.log_keys


@dataclass(frozen=True)
class ListedBackup:
    """A backup of a folder. `problem` says why its manifest is not valid; then `backup` is None."""

    name: str
    backup: Backup | None
    problem: str = ""

    @property
    def entries(self) -> int:
        """Return the size of the copied log."""
        return 0 if self.backup is None else claimed_size(self.backup.checkpoint.encode())


def list_backups(folder: BackupFolder, log_keys: tuple[LogKey, ...]) -> list[ListedBackup]:
    """Return the backups of a folder, oldest first, with the signature of each manifest verified."""
    found = []
    for name in folder.names():
        try:
            found.append(ListedBackup(name, read_backup(folder, name, log_keys)))
        except ApplianceError as error:
            found.append(ListedBackup(name, None, error.message))
    return found


def read_backup(folder: BackupFolder, name: str, log_keys: tuple[LogKey, ...]) -> Backup:
    """Return a manifest after verifying its signature and its name.

    The signing key must be the one that the log had at the size of the copy, and must not have been replaced before
    the time of the backup. So a manifest that somebody signed with a stolen, replaced key is refused.

    Raises:
        BadInput: the name is not one of a backup.
        NotFound: there is no such backup.
        Tampered: the manifest is not signed by that key, or is that of another backup.
    """
    parse_backup_name(name)
    try:
        backup = open_backup(folder.read(name), [key.vkey for key in log_keys])
        size = open_checkpoint(backup.checkpoint.encode(), backup.log_key).size
    except BadInput as error:
        raise Tampered(f"backup {name}: expected a manifest, got another file: {error.message}") from None
    if backup.name != name:
        raise Tampered(f"backup {name}: expected the manifest of this name, got that of {backup.name}")
    *_, key = (one for one in log_keys if not is_post_quantum(one.vkey) and (one.since < size or one is log_keys[0]))
    if backup.log_key != key.vkey or (key.until is not None and backup.time >= key.until):
        raise Tampered(
            f"backup {name}: expected a signature by the log's key at {size} entries and at {backup.time}, got one by "
            "a key that was replaced"
        )
    return backup


def remove(folder: BackupFolder, name: str, *, newest: bool = False) -> None:
    """Remove a backup and the objects that no other backup names. `newest`: allow it for the newest backup, too.

    Raises:
        NotFound: there is no such backup.
        Conflict: it is the newest one, and `newest` is False.
    """
    with folder.writing():
        if not newest and folder.names()[-1:] == [name]:
            message = f"backup {name}: expected one that is not the newest in {folder.path}, got the newest"
            raise Conflict(f"{message}; make another one first, or add --newest")
        folder.remove(name)


def list_rows(context: LedgerContext) -> list[BackupRow]:
    """Return the backups in the folder of the settings, oldest first; none if the settings name no folder.

    Raises:
        NotFound: The folder is missing, for example because its disk is not mounted.
    """
    if context.backup_folder is None:
        return []
    folder, keys = BackupFolder(context.backup_folder), context.ledger.state.site.log_keys
    return [_find_row(folder, name, keys) for name in folder.names()]


def _find_row(folder: BackupFolder, name: str, log_keys: tuple[LogKey, ...]) -> BackupRow:
    try:
        return _read_row(folder.path, name, folder.stamp(name), log_keys)
    except ApplianceError as error:
        return BackupRow(name=name, folder=str(folder.path), entries=0, problem=error.message)


@lru_cache(maxsize=MAX_BACKUPS)
def _read_row(path: Path, name: str, stamp: tuple[int, ...], log_keys: tuple[LogKey, ...]) -> BackupRow:
    """Return the row of a manifest with this stamp. It is kept, since reading every manifest takes seconds."""
    backup = read_backup(BackupFolder(path), name, log_keys)
    return BackupRow(name=name, folder=str(path), entries=claimed_size(backup.checkpoint.encode()), problem=None)


def measure(folder: BackupFolder, log_keys: tuple[LogKey, ...], ages: BackupAges, now: str) -> BackupAges:
    """Return the ages of the backups in a folder. Only the newest signed manifest is read.

    Somebody else may write into the folder, so at most `MAX_TRIES` manifests are read.
    """
    try:
        names = folder.names()
    except ApplianceError as error:
        return ages._replace(error=error.message)
    newest = None
    for name in reversed(names[-MAX_TRIES:]):
        try:
            newest = read_backup(folder, name, log_keys).time
            break
        except ApplianceError:
            continue
    expired = [name for name in names if ages.is_expired(time_of_name(name), now)]
    return ages._replace(newest=newest, expired=tuple(expired), error="")


def start_watch(context: LedgerContext, ages: BackupAges) -> None:
    """Start the thread that measures the ages of the backups, since a folder on another machine may be slow."""
    retry.start(context, "ages of the backups", WATCH_S, partial(_watch, context, ages), at_once=True)


def _watch(context: LedgerContext, ages: BackupAges) -> None:
    assert context.backup_folder is not None
    folder = BackupFolder(context.backup_folder)
    context.backups = measure(folder, context.ledger.state.site.log_keys, ages, encode_time(context.clock()))
