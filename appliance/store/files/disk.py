"""Files that survive a power cut, written whole or not at all; and untrusted files, read without following links."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from appliance.errors import BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.digest import kind_of

log = logging.getLogger("appliance")

CHUNK_BYTES = 1 << 20
MAX_DEPTH = 16
"""Of the folders that are walked through; a manifest names files at most eight deep."""
PARTIAL = ".partial-"
"""Begins the name of a file that is being written; sweeping a folder removes files with it."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a pipe in a file's place must not hold the reader.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OTHER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """A disk that is full, read-only or gone is Unavailable; nothing foreign leaks out."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{what}: expected the disk to work, got {error.strerror or error}") from error


@contextmanager
def sealed_errors(what: str) -> Iterator[None]:
    """The same for what was sealed: a name that is gone, or is no file or folder now, is Tampered."""
    try:
        with disk_errors(what):
            yield
    except Unavailable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _OTHER:
            raise Tampered(f"{what}: expected it as it was sealed, got {cause.strerror}") from cause
        raise


@contextmanager
def open_folder(path: str | Path, within: int | None = None) -> Iterator[int]:
    """A descriptor of a folder that is no link."""
    descriptor = os.open(path, _FOLDER, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in the folder durable: what was created in it, renamed or removed."""
    with open_folder(path) as descriptor:
        os.fsync(descriptor)


def make_folder(path: Path) -> None:
    """A folder of the service's own, mode 0700, its name durable; one that exists is not changed."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(path.parent)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """The whole file under its name, durably, or nothing under that name."""
    partial = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            write_all(file.fileno(), data)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.rename(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise
    sync_folder(path.parent)


def sweep_partial(folder: Path, alone: Callable[[], bool] = lambda: True) -> None:
    """Removes what a `write_file` that was cut off has left, where nobody else is writing into the folder now. `alone`
    says so, and is asked once it is known what is there."""
    with disk_errors(str(folder)):
        left = list(folder.glob(f"{PARTIAL}*"))
    if left and alone():
        for path in left:
            discard(path)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """os.write may take less than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def open_plain(folder: int, path: str, what: str) -> Iterator[int]:
    """A descriptor of the regular file at a relative path below a folder; no step of the path may be a link.

    NotFound where there is none; Tampered for a link or any other kind in its place.
    """
    descriptor = _open_plain(folder, path, what)
    try:
        if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
            raise Tampered(f"{what}, {path}: expected a regular file, got {kind_of(mode)}")
        yield descriptor
    finally:
        os.close(descriptor)


def _open_plain(folder: int, path: str, what: str) -> int:
    steps = path.split("/")
    if not all(steps) or ".." in steps or "." in steps or "\0" in path:
        raise BadInput(f"{what}: expected a plain relative path, got {path!r}")
    here = os.dup(folder)
    try:
        for step in steps[:-1]:
            below = os.open(step, _FOLDER, dir_fd=here)
            os.close(here)
            here = below
        return os.open(steps[-1], _FILE, dir_fd=here)
    except FileNotFoundError:
        raise NotFound(f"{what}, {path}: expected a file, got none") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise Tampered(f"{what}, {path}: expected a regular file, got {error.strerror}") from None
        raise
    finally:
        os.close(here)


def read_all(descriptor: int, max_bytes: int, what: str) -> bytes:
    """The file in one buffer, read once; TooLarge beyond the limit, even if its stated size is smaller."""
    size = os.fstat(descriptor).st_size
    if size > max_bytes:
        raise TooLarge(f"{what}: expected at most {max_bytes} bytes, got {size}")
    chunks, total = [], 0
    while chunk := os.read(descriptor, CHUNK_BYTES):
        total += len(chunk)
        if total > max_bytes:
            raise TooLarge(f"{what}: expected at most {max_bytes} bytes, got more")
        chunks.append(chunk)
    return b"".join(chunks)


def walk_folder(folder: int, prefix: str = "") -> Iterator[tuple[str, int, bool]]:
    """(path, folder that holds it, whether it is a folder), folders after what is in them; links are not followed.

    TooLarge where folders are nested deeper than any manifest names them: each level is a recursion and a descriptor.
    """
    if prefix.count("/") > MAX_DEPTH:
        raise TooLarge(f"{prefix.partition('/')[0]}: expected folders at most {MAX_DEPTH} deep, got more")
    for name in sorted(os.listdir(folder)):
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            with open_folder(name, folder) as below:
                yield from walk_folder(below, f"{prefix}{name}/")
        yield f"{prefix}{name}", folder, stat.S_ISDIR(mode)


def discard(path: Path) -> None:
    """Removes what is of no more use. Where that fails it is said and left to the next sweep: it is to stop nothing."""
    try:
        remove_tree(path)
    except OSError as error:
        log.critical("ALARM: %s could not be removed: %s", path, error.strerror or error)


class _Level(NamedTuple):
    """A folder on the way down: its name in the one above, device and inode, and the names not yet seen to."""

    name: str
    identity: tuple[int, int]
    left: list[str]


def remove_tree(path: Path) -> None:
    """Removes a file, or a folder and all below it, however a worker set its modes; follows no link out of it.

    A worker can nest thousands of folders: nothing recurses, and it takes two descriptors however deep they are.
    """
    with suppress(FileNotFoundError), open_folder(path.parent) as here:
        way = [_Level("", _identity(here), [path.name])]
        while way[0].left or len(way) > 1:
            if not way[-1].left:
                _leave(here, way)
                continue
            name = way[-1].left.pop()
            if stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                _make_writable(here, name)
                _go(here, name)
                way.append(_Level(name, _identity(here), os.listdir(here)))
            else:
                os.unlink(name, dir_fd=here)


def _leave(here: int, way: list[_Level]) -> None:
    """Up into the folder that was come from, and no other; then the one that was left, empty, is removed."""
    empty = way.pop()
    _go(here, "..")
    if _identity(here) != way[-1].identity:
        raise OSError(errno.ESTALE, f"{empty.name}: it was moved while it was being removed")
    os.rmdir(empty.name, dir_fd=here)


def _go(here: int, name: str) -> None:
    """The descriptor keeps its number and is that folder's from here on."""
    with open_folder(name, here) as there:
        os.dup2(there, here, inheritable=False)


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino


def _make_writable(parent: int, name: str) -> None:
    # By O_PATH, since a folder of mode 0 does not open; through /proc, since chmod by name would follow a link.
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
    finally:
        os.close(handle)
