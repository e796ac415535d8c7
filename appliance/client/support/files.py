"""Files of one person, read and written so that no other account can read them and no link is followed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from appliance.errors import BadInput, Conflict, Denied, NotFound, TooLarge, Unavailable
from appliance.formats.core.digest import kind_of

PRIVATE = 0o600


def read_private(path: Path, what: str, limit: int) -> bytes:
    """At most `limit` bytes of a regular file that only its owner, the caller, can read; a link is refused."""
    handle = _open(path, what)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{what}, {path}: expected a regular file, got {kind_of(status.st_mode)}")
        if status.st_mode & 0o077:
            raise Denied(
                f"{what}, {path}: expected mode 0600, readable by its owner alone, got {status.st_mode & 0o777:04o}; "
                f"type: chmod 600 {path}"
            )
        if status.st_uid != os.geteuid():
            raise Denied(f"{what}, {path}: expected your own file, got one of user id {status.st_uid}")
        return _read(handle, path, what, limit)
    finally:
        os.close(handle)


def read_file(path: Path, what: str, limit: int) -> bytes:
    """At most `limit` bytes of a regular file; a link as the last step is followed, since nothing in it is secret."""
    if not path.exists():
        raise NotFound(f"{what}, {path}: expected a file, got nothing")
    if not path.is_file():
        raise BadInput(f"{what}, {path}: expected a regular file, got {kind_of(path.stat().st_mode)}")
    try:
        with path.open("rb") as file:
            return _read(file.fileno(), path, what, limit)
    except OSError as error:
        raise Unavailable(f"{what}, {path}: expected it to be readable, got {error.strerror}") from None


def check_place(path: Path, what: str) -> None:
    """BadInput where the folder around it is missing: none is made for a path that a person may have mistyped."""
    folder = path.parent
    if not folder.is_dir():
        raise BadInput(f"{what}, {path}: expected the folder {folder} to write to, got none; type: mkdir -p {folder}")


def write_new(path: Path, data: bytes, what: str, mode: int = PRIVATE) -> None:
    """Writes a file that was not there before, durably; Conflict where there is one, BadInput without its folder."""
    check_place(path, what)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise Conflict(f"{what}, {path}: expected a name that is free, got an existing file") from None
    except OSError as error:
        raise _unwritable(path, what, error) from None
    try:
        _write(handle, data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, what, error) from None


def replace_private(path: Path, data: bytes, what: str) -> None:
    """Writes a 0600 file in a 0700 folder, whole or not at all, over the one before."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unwritable(path, what, error) from None
    _replace(path, data, what, PRIVATE)


def replace_file(path: Path, data: bytes, what: str) -> None:
    """Writes a file that may be handed out, whole or not at all, over the one before."""
    _replace(path, data, what, 0o644)


def _replace(path: Path, data: bytes, what: str, mode: int) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.unlink(missing_ok=True)
        try:
            _write(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, what, error) from None


def _write(handle: int, data: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path, what: str, error: OSError) -> Unavailable:
    return Unavailable(f"{what}, {path}: expected it to be writable, got {error.strerror}")


def _open(path: Path, what: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"{what}, {path}: expected a file, got nothing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadInput(f"{what}, {path}: expected the file itself, got a link to it") from None
        raise Unavailable(f"{what}, {path}: expected it to open, got {error.strerror}") from None


def _read(handle: int, path: Path, what: str, limit: int) -> bytes:
    data = b""
    while len(data) <= limit and (chunk := os.read(handle, limit + 1 - len(data))):
        data += chunk
    if len(data) > limit:
        raise TooLarge(f"{what}, {path}: expected at most {limit} bytes, got more")
    return data
