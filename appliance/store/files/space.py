"""The space on the home's disk: the free bytes that the ledger needs, and the reserve, a file that can be released.

Workers and uploads leave the needed bytes free. Other programs on the same disk do not. If they fill the disk, the
service releases its reserve, and the ledger continues in that space. Until the reserve is whole again, its missing
bytes count as used, so that only the ledger gets them.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from appliance.errors import ApplianceError
from appliance.formats.core.text import show_bytes
from appliance.store.files.disk import PARTIAL, sync_folder

log = logging.getLogger("appliance")

NEEDED_BYTES = 1 << 30
"""Bytes that the ledger needs free on its disk."""
_SHARE = 20
"""Divisor of the disk's size that gives the needed bytes, and the largest reserve, of a small disk."""
_LAST_SHARE = 16
"""Divisor of the reserve that gives the free bytes below which it is released."""
RESERVE = "reserve"
"""The name of the reserve in the home."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Space(NamedTuple):
    """The bytes of a disk: all, those that are free without what the reserve lacks, and those that the ledger needs."""

    total: int
    free: int
    needed: int


def measure_space(folder: Path, reserve: Reserve | None = None) -> Space:
    """Return the space of the folder's disk.

    Raises:
        OSError: The disk cannot be read.
    """
    total, free = _read_disk(folder)
    if reserve is not None and (missing := reserve.missing) and reserve.is_on_disk_of(folder):
        free = max(0, free - missing)
    return Space(total, free, min(NEEDED_BYTES, total // _SHARE))


def _read_disk(folder: Path) -> tuple[int, int]:
    stats = os.statvfs(folder)
    return stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize


def is_released(home: Path) -> bool:
    """Return True if the home's reserve was released, or could not be made: its file is empty."""
    try:
        return os.stat(home / RESERVE, follow_symlinks=False).st_size == 0
    except FileNotFoundError:
        return False


def is_disk_full(error: BaseException) -> bool:
    """Return True if a disk without space caused the error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, sqlite3.Error):
            return getattr(cause, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        cause = cause.__cause__
    return False


class Reserve:
    """The reserve of a home: a file whose bytes are allocated. An empty file was released, or could not be made.

    Only the process that holds the home's lock changes it.
    """

    def __init__(self, home: Path, most: int) -> None:
        """Accept the home and the largest size in bytes; 0 means no reserve."""
        self.path = home / RESERVE
        self._most = most
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Return the bytes of a whole reserve: whole MiB, and at most a twentieth of the disk."""
        total, _ = _read_disk(self.path.parent)
        return min(self._most, total // _SHARE) >> 20 << 20

    @property
    def missing(self) -> int:
        """Return the bytes that the reserve lacks."""
        return 0 if (stored := self._stored()) is None else max(0, self.size - stored)

    def is_on_disk_of(self, place: Path) -> bool:
        """Return True if the file or folder is on the disk of the reserve."""
        return os.stat(place).st_dev == os.stat(self.path.parent).st_dev

    def release(self) -> bool:
        """Give the reserve's space back durably. Return True if it had any; a failure is logged."""
        with self._lock:
            return self._release()

    def release_for(self, error: ApplianceError) -> bool:
        """Release the reserve if a disk without space caused the error.

        Return True if the failed append can be repeated: the reserve had space, and no commit is unknown.
        """
        return is_disk_full(error) and self.release() and error.code != "commit-unknown"

    def maintain(self) -> None:
        """Release the reserve on a disk that is nearly full, and make it whole once there is room for it again.

        A failure is logged, since the disk's own alarms report a disk that cannot be used.
        """
        try:
            with self._lock:
                self._maintain()
        except OSError as error:
            log.critical("ALARM: the disk reserve %s cannot be used: %s", self.path, error.strerror or error)

    def _maintain(self) -> None:
        size, stored = self.size, self._stored()
        _, free = _read_disk(self.path.parent)
        if size == 0:
            self._remove()
        elif stored is not None and stored > size:
            self._cut(size)
        elif stored and free < size // _LAST_SHARE:
            self._release()
        elif stored != size:
            if free >= size + measure_space(self.path.parent).needed:
                self._make(size)
            elif stored is None:
                self._cut(0)

    def _stored(self) -> int | None:
        """Return the bytes of the file, or None if there is none."""
        try:
            return os.stat(self.path, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def _release(self) -> bool:
        try:
            if not (stored := self._stored()):
                return False
            self._cut(0)
        except OSError as error:
            log.critical("ALARM: the disk reserve %s could not be released: %s", self.path, error.strerror or error)
            return False
        log.critical("ALARM: the disk is full; the disk reserve gave %s back: %s", show_bytes(stored), self.path)
        return True

    def _cut(self, size: int) -> None:
        """Make the file no larger than this, and create it if there is none."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self.path.parent)

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.path)
            sync_folder(self.path.parent)

    def _make(self, size: int) -> None:
        """Allocate the file under another name and give it its name when it is whole."""
        partial = self.path.with_name(f"{PARTIAL}{RESERVE}")
        with suppress(FileNotFoundError):
            os.unlink(partial)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
            os.rename(partial, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
        finally:
            os.close(descriptor)
        sync_folder(self.path.parent)
        log.warning("the disk reserve holds %s: %s", show_bytes(size), self.path)
