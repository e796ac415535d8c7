"""Durable, atomic file writes, and reading of untrusted files without following links."""

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
"""Maximum depth of folders that are walked; a manifest names files at most eight deep."""
PARTIAL = ".partial-"
"""Prefix of files that are being written; sweeping a folder removes them."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a pipe in place of a file must not block the reader.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OTHER = (errno.ENOTDIR, errno.ELOOP)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Translate OSError to Unavailable, such as for a disk that is full, read-only or missing."""
    try:
        yield
    except PermissionError as error:
        rights = f"expected that the account with user id {os.geteuid()} has the rights"
        raise Unavailable(f"{what}: {rights}, got {error.strerror or error}") from error
    except OSError as error:
        raise Unavailable(f"{what}: expected the disk to work, got {error.strerror or error}") from error


@contextmanager
def sealed_errors(what: str) -> Iterator[None]:
    """Translate OSError for sealed files: a link or another kind of file in their place is Tampered.

    A missing name is Unavailable, since the disk may not be mounted.
    """
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
    """Yield a descriptor of a folder; a symbolic link is refused."""
    descriptor = os.open(path, _FOLDER, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable after files in it were created, renamed or removed."""
    with open_folder(path) as descriptor:
        os.fsync(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder with mode 0700 and make its name durable; an existing folder is not changed."""
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(path.parent)


def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file atomically and durably: it exists whole under its name, or not at all."""
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
    """Remove partial files of interrupted `write_file` calls if `alone` returns True.

    `alone` returns True if no other process writes into the folder; it is called after the files were listed.
    """
    with disk_errors(str(folder)):
        left = list(folder.glob(f"{PARTIAL}*"))
    if left and alone():
        for path in left:
            discard(path)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all bytes; a single os.write may write fewer."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def memory_file(data: bytes, name: str) -> Iterator[int]:
    """Yield a descriptor of a file in memory with these bytes, at its beginning. `name` is for the system's lists."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        write_all(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_plain(folder: int, path: str, what: str) -> Iterator[int]:
    """Yield a descriptor of the regular file at a relative path below a folder; no component may be a link.

    Raises:
        NotFound: there is none.
        Tampered: a link or another kind of file is in its place.
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
    current = os.dup(folder)
    try:
        for step in steps[:-1]:
            below = os.open(step, _FOLDER, dir_fd=current)
            os.close(current)
            current = below
        return os.open(steps[-1], _FILE, dir_fd=current)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            raise NotFound(f"{what}, {path:.80}: expected a file, got none") from None
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise Tampered(f"{what}, {path}: expected a regular file, got {error.strerror}") from None
        raise
    finally:
        os.close(current)


def read_all(descriptor: int, max_bytes: int, what: str) -> bytes:
    """Return all bytes of a file.

    Raises:
        TooLarge: there are more than `max_bytes`, even if the stated size is smaller.
    """
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


def read_plain(folder: Path, name: str, max_bytes: int, what: str) -> bytes:
    """Return all bytes of a regular file in a folder. Neither of them may be a link.

    Raises:
        NotFound: there is none.
        Tampered: a link or another kind of file is in its place.
        TooLarge: it is larger.
    """
    with disk_errors(what), open_folder(folder) as opened, open_plain(opened, name, what) as file:
        return read_all(file, max_bytes, f"{what}, {name}")


def read_file(path: Path, max_bytes: int, what: str) -> bytes:
    """Return all bytes of a regular file that is not secret. A link is followed.

    Raises:
        BadInput: it is another kind of file, such as a pipe, which could block the reader for ever.
        TooLarge: it is larger.
        Unavailable: it cannot be read.
    """
    with disk_errors(f"{what}, {path}"):
        descriptor = os.open(path, _FILE & ~os.O_NOFOLLOW)
        try:
            if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
                raise BadInput(f"{what}, {path}: expected a regular file, got {kind_of(mode)}")
            return read_all(descriptor, max_bytes, f"{what}, {path}")
        finally:
            os.close(descriptor)


def walk_folder(folder: int, prefix: str = "") -> Iterator[tuple[str, int, bool]]:
    """Yield (path, descriptor of its folder, is a folder) for everything below a folder, without following links.

    Folders come after their content.

    Raises:
        TooLarge: folders are nested too deep; each level costs a recursion and a descriptor.
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
    """Remove a file or folder that is no longer needed; a failure is logged and left to the next sweep."""
    try:
        remove_tree(path)
    except OSError as error:
        log.critical("ALARM: %s could not be removed: %s", path, error.strerror or error)


class _OpenFolder(NamedTuple):
    """A folder on the path down: its name, its device and inode, and the names that are still to be removed."""

    name: str
    identity: tuple[int, int]
    left: list[str]


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all its content, whatever modes a worker set; links are not followed.

    A worker can nest thousands of folders, so this does not recurse and uses two descriptors at any depth.
    """
    with suppress(FileNotFoundError), open_folder(path.parent) as current:
        levels = [_OpenFolder("", _identity(current), [path.name])]
        while levels[0].left or len(levels) > 1:
            if not levels[-1].left:
                _return_to_parent(current, levels)
                continue
            name = levels[-1].left.pop()
            if stat.S_ISDIR(os.stat(name, dir_fd=current, follow_symlinks=False).st_mode):
                _make_writable(current, name)
                _enter(current, name)
                levels.append(_OpenFolder(name, _identity(current), os.listdir(current)))
            else:
                os.unlink(name, dir_fd=current)


def _return_to_parent(current: int, levels: list[_OpenFolder]) -> None:
    """Go back to the parent folder, check that it is the one we came from, and remove the empty folder that was
    left."""
    empty = levels.pop()
    _enter(current, "..")
    if _identity(current) != levels[-1].identity:
        raise OSError(errno.ESTALE, f"{empty.name}: it was moved while it was being removed")
    os.rmdir(empty.name, dir_fd=current)


def _enter(current: int, name: str) -> None:
    """Make the descriptor refer to the named folder; its number stays the same."""
    with open_folder(name, current) as target:
        os.dup2(target, current, inheritable=False)


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino


def _make_writable(parent: int, name: str) -> None:
    # O_PATH also opens a folder of mode 0. Use /proc, since chmod by name would follow a link.
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", 0o700)
    finally:
        os.close(handle)


BLOCK_DEVICES = Path("/sys/dev/block")
"""Folder in which the kernel has a link to each block device, named MAJOR:MINOR."""


def is_encrypted(path: Path, devices: Path = BLOCK_DEVICES) -> bool | None:
    """Return True if dm-crypt encrypts every disk below the file system of the path, as the kernel reports it.

    Return None if the file system has no block device of its own, such as tmpfs, overlay, btrfs and NFS. A disk that
    encrypts by itself looks like one that does not.
    """
    device = os.stat(path).st_dev
    node = devices / f"{os.major(device)}:{os.minor(device)}"
    return _is_device_encrypted(node) if node.exists() else None


def _is_device_encrypted(node: Path) -> bool:
    with suppress(OSError):
        if (node / "dm" / "uuid").read_text("ascii").startswith("CRYPT-"):
            return True
    with suppress(OSError):
        lower = list((node / "slaves").iterdir())
        return bool(lower) and all(_is_device_encrypted(one) for one in lower)
    return False
