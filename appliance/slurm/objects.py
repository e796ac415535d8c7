"""Files in the shared folder, named by the digest of their bytes.

A file is hashed when it is written, and again while its reader copies it, so that the bytes that are used are those
that were hashed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from appliance.errors import NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.digest import Hasher, parse_digest
from appliance.sandbox.output import ConfinedPath, open_output
from appliance.slurm.folder import OBJECTS, Input, JobDescription
from appliance.slurm.spool import SHARED, shared_errors

PARTIAL = ".partial-"
_CHUNK_BYTES = 1 << 20


def put_file(source: int, objects: ConfinedPath) -> tuple[str, int]:
    """Copy an open file into the folder and return its digest and size.

    An existing object is written again, since its bytes may have decayed.
    """
    hasher, partial = Hasher(), f"{PARTIAL}{secrets.token_hex(8)}"
    with shared_errors(str(objects)), objects.opened() as folder:
        try:
            with _new(partial, 0o600, folder) as target:
                while chunk := os.read(source, _CHUNK_BYTES):
                    hasher.update(chunk)
                    _write(target, chunk)
                os.fsync(target)
            os.rename(partial, hasher.digest().removeprefix("sha256:"), src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            raise
    return hasher.digest(), hasher.size


def has_file(objects: ConfinedPath, digest: str, size: int) -> bool:
    """Return True if the folder has exactly these bytes; all of them are hashed."""
    try:
        with shared_errors(digest):
            _copy(objects, digest, size, None)
    except (Tampered, TooLarge, Unavailable):
        return False  # missing or unreadable files are written again
    return True


def get_file(objects: ConfinedPath, digest: str, size: int, target: Path, mode: int = 0o600) -> None:
    """Copy an object to `target`, which exists afterwards only if the copy is complete.

    Raises:
        Tampered: the bytes have another digest or size.
        Unavailable: there is no such object, or the disk failed.
    """
    try:
        with shared_errors(f"a copy of {digest}"), _new(target, mode) as written:
            try:
                _copy(objects, digest, size, written)
            except NotFound:
                raise Unavailable(f"shared folder, {digest}: expected its bytes, got none", code=SHARED) from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy(objects: ConfinedPath, digest: str, size: int, target: int | None) -> None:
    """Hash an object and write it to `target` if given."""
    name, hasher = parse_digest(digest).removeprefix("sha256:"), Hasher()
    source = open_output(objects, name)
    try:
        while chunk := os.read(source, _CHUNK_BYTES):
            hasher.update(chunk)
            if hasher.size > size:
                raise Tampered(f"shared folder, {digest}: expected {size} bytes, got more")
            if target is not None:
                _write(target, chunk)
    finally:
        os.close(source)
    if hasher.digest() != digest:
        raise Tampered(f"shared folder, {digest}: expected these bytes, got {hasher.digest()}")


@contextmanager
def _new(path: Path | str, mode: int, folder: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a new file, relative to the descriptor `folder` if given."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(target: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(target, rest) :]


def fetch_inputs(
    folder: ConfinedPath, described: JobDescription, scratch: Path, report: Callable[[int], None] = lambda size: None
) -> list[Path]:
    """Copy the sealed folders that a worker of this job reads; `report` is called with the size of each copied file."""
    return [_fetch(folder, one, scratch / one.name, report) for one in described.inputs]


def _fetch(folder: ConfinedPath, one: Input, target: Path, report: Callable[[int], None]) -> Path:
    for file in one.files:
        path = target / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        get_file(ConfinedPath(folder.root, OBJECTS), file.digest, file.size, path, 0o400)
        report(file.size)
    return target


def read_blob(folder: ConfinedPath, described: Any, scratch: Path) -> bytes:
    """Return the training checkpoint that `go` names, empty if it names none."""
    if described is None:
        return b""
    path = scratch / "blob"
    get_file(folder / OBJECTS, described["digest"], described["size"], path)
    data = path.read_bytes()
    path.unlink()
    return data


_PREFIX = "appliance-job-"


@contextmanager
def private_folder(scratch: str, node: str, job: int, attempt: int) -> Iterator[Path]:
    """Yield a new folder below `scratch` with mode 0700.

    Several nodes may share `scratch`; each removes only its own leftovers.
    """
    suffix = f"@{node}"
    _remove_leftovers(Path(scratch), suffix)
    with ExitStack() as stack:
        try:
            path = _make(stack, Path(scratch), f"{_PREFIX}{job}-{attempt}-", suffix)
        except OSError as error:
            raise Unavailable(
                f"node, {scratch}: expected to make a folder there, got {error.strerror or error}; set slurm_scratch"
            ) from None
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def _make(stack: ExitStack, scratch: Path, prefix: str, suffix: str) -> Path:
    """Create a folder and lock it until the stack is closed; another launcher may remove it before it is locked."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=scratch))
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            with suppress(OSError):  # without locks in the file system, nobody removes it either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return path


def _remove_leftovers(scratch: Path, suffix: str) -> None:
    with suppress(OSError):
        for path in sorted(scratch.glob(f"{_PREFIX}*")):
            if path.name.endswith(suffix):
                _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    with suppress(OSError), ExitStack() as stack:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(RecursionError):  # a worker nested folders too deeply
            shutil.rmtree(path, ignore_errors=True)
