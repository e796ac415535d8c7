"""A lock that allows one service per data folder; the kernel releases it when the holder's process ends in any way."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from appliance.errors import Conflict
from appliance.store.files.disk import disk_errors

LOOKED_AT_S = 5.0
"""Seconds that `lock_folder` waits while checks (`holder_of`) share the lock; each takes a moment."""
_LOOK_S = 0.01


class FolderLock:
    """A lock that is held until `release` or the end of the process. Programs that it starts do not inherit it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, text: str) -> None:
        """Write the holder's current activity after its process id, for waiting clients; empty once it serves.

        Failures are ignored, since this is only information.
        """
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, "".join(f"{line}\n" for line in (os.getpid(), text) if line).encode(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            # Unlock before closing: a child between fork and exec has the descriptor too, and would keep the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_folder(path: Path, remedy: str = "end it with: appliance stop") -> FolderLock:
    """Take the lock file at `path`, creating it if needed. `remedy` says what to do about another holder.

    The holder locks it exclusively. A client that checks for a holder before it starts a service shares it.

    Raises:
        Conflict: another process holds it; the message has its process id.
    """
    deadline = time.monotonic() + LOOKED_AT_S
    with disk_errors(f"lock, {path}"):
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                    return FolderLock(descriptor)
            except BlockingIOError:
                if _is_shared(descriptor) and time.monotonic() < deadline:
                    os.close(descriptor)
                    time.sleep(_LOOK_S)
                    continue
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").partition("\n")[0] or "unknown"
                os.close(descriptor)
                raise Conflict(
                    f"data folder, {path.parent}: expected no other service, got one with process id {holder}; "
                    f"{remedy}",
                    code="locked",
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            # The file was removed between opening and locking it: this descriptor is no longer the lock.
            os.close(descriptor)


@contextmanager
def hold_lock(descriptor: int, busy: str) -> Iterator[None]:
    """Lock an open file or folder within the block, and close it afterwards.

    Raises:
        Conflict: another process holds the lock; `busy` is the message.
    """
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(busy) from None
        yield
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> int | None:
    """Return the process id of the lock's holder, or None if there is none.

    The check shares the lock for a moment, for which `lock_folder` waits.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        if _is_shared(descriptor):
            return None
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").partition("\n")[0]
        return int(text) if text.isdecimal() else None
    finally:
        os.close(descriptor)


def _is_shared(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    held = os.fstat(descriptor)
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino)
