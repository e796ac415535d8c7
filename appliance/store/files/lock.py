"""One service for a data folder: a lock that the kernel releases when its holder's process ends in any way."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.errors import Conflict
from appliance.store.files.disk import disk_errors

LOOKED_AT_S = 5.0
"""How long `lock_folder` waits while checks (`holder_of`) share the lock; each check takes a moment."""
_LOOK_S = 0.01


class FolderLock:
    """Held from `lock_folder` until `release`, or until the process ends. Not inherited by programs it starts."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, text: str) -> None:
        """Writes what the holder is doing after its process id, for clients that wait for the service; empty once it
        serves. It is only information, so a failure is no error."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, "".join(f"{line}\n" for line in (os.getpid(), text) if line).encode(), 0)

    def release(self) -> None:
        if self._descriptor >= 0:
            # Not by closing alone: a child between fork and exec has the descriptor too, and would keep the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_folder(path: Path) -> FolderLock:
    """Takes the lock file at `path`, making it where there is none; Conflict names the process that holds it.

    The holder has it exclusively. A check for a holder (by the client, before it starts a service) shares it.
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
                    f"data folder, {path.parent}: expected no other service, got one with process id {holder}",
                    code="locked",
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            # The file was removed between opening and locking it: this descriptor is no longer the lock.
            os.close(descriptor)


def holder_of(path: Path) -> int | None:
    """The process that holds the lock, as it wrote itself; None while none does. The check shares the lock for a
    moment, for which `lock_folder` waits."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        if _is_shared(descriptor):
            return None
        said = os.pread(descriptor, 32, 0).decode("ascii", "replace").partition("\n")[0]
        return int(said) if said.isdecimal() else None
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
