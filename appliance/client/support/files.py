"""A person's files, which other accounts cannot read and which are not links; and uploads."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.client.support.connection import Connection
from appliance.errors import BadInput, Conflict, Denied, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.artifacts.manifest import (
    MANIFEST_PATH,
    Manifest,
    ManifestFile,
    encode_manifest,
    find_danger,
    is_needed,
)
from appliance.formats.core.acl import is_private
from appliance.formats.core.digest import Hasher, digest_bytes, digest_file, kind_of

if TYPE_CHECKING:
    from appliance.api.people import UploadReceipt

PRIVATE = 0o600
"""Mode of a file that only its owner can read."""


def read_private(path: Path, what: str, limit: int) -> bytes:
    """Return at most `limit` bytes of a regular file that only the caller or root can read.

    Raises: BadInput for a link or a special file; Denied if other accounts can read it; NotFound; TooLarge.
    """
    handle = _open(path, what)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{what}, {path}: expected a regular file, got {kind_of(status.st_mode)}")
        if not is_private(handle, os.geteuid()):
            raise Denied(
                f"{what}, {path}: expected mode 0600, readable by its owner alone, got {status.st_mode & 0o777:04o}; "
                f"type: chmod 600 {path}"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise Denied(f"{what}, {path}: expected your own file, got one of user id {status.st_uid}")
        return _read(handle, path, what, limit)
    finally:
        os.close(handle)


def read_file(path: Path, what: str, limit: int) -> bytes:
    """Return at most `limit` bytes of a regular file. A link is followed, since the file is not secret.

    Raises: NotFound; BadInput for a special file; TooLarge; Unavailable if it cannot be read.
    """
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
    """Check the folder of a new file. It is not created, since the path may be mistyped.

    Raises: BadInput if it is missing; Unavailable if this account cannot write to it.
    """
    folder = path.parent
    if not folder.is_dir():
        raise BadInput(f"{what}, {path}: expected the folder {folder} to write to, got none; type: mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Unavailable(
            f"{what}, {path}: expected a folder that this account can write to, got {folder}; ask its "
            "owner for access, or name a file in another folder"
        )


def check_free(path: Path, what: str) -> None:
    """Check the place of a new file before the work that fills it.

    Raises: Conflict if it exists; BadInput if its folder is missing; Unavailable if it cannot be written to.
    """
    check_place(path, what)
    if path.exists() or path.is_symlink():
        raise Conflict(f"{what}, {path}: expected a name that is free, got an existing file")


def write_new(path: Path, data: bytes, what: str, mode: int = PRIVATE) -> None:
    """Write a new file durably.

    Raises: Conflict if it exists; BadInput if its folder is missing; Unavailable if it cannot be written.
    """
    check_place(path, what)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise Conflict(f"{what}, {path}: expected a name that is free, got an existing file") from None
    except OSError as error:
        raise _unwritable(path, what, error) from None
    try:
        _write(handle, data)
        sync_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unwritable(path, what, error) from None


def check_new_folder(folder: Path, what: str) -> None:
    """Check the place of a new folder before the work that fills it.

    Raises: Conflict if it exists; BadInput if the folder above is missing; Unavailable if it cannot be written to.
    """
    check_place(folder, what)
    if os.path.lexists(folder):
        raise Conflict(f"{what}, {folder}: expected a new folder, got an existing one; name another")


def write_folder(folder: Path, files: Mapping[str, bytes], what: str) -> None:
    """Write a new folder durably from its files by path. It gets its name when it is complete.

    Raises: Conflict if it exists; BadInput if the folder above is missing; Unavailable if it cannot be written.
    """
    with create_folder(folder, what) as part:
        for name, data in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), data)


@contextmanager
def create_folder(folder: Path, what: str) -> Iterator[Path]:
    """Create a new folder durably. The caller fills the temporary folder beside it that this yields.

    The folder gets its name when it is complete. If the caller fails, the temporary one is removed.

    Raises: Conflict if it exists; BadInput if the folder above is missing; Unavailable if it cannot be written.
    """
    check_new_folder(folder, what)
    part = folder.absolute().with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)  # of a process with this id that was killed
    try:
        part.mkdir()
        yield part
        for path in (*part.rglob("*"), part):
            _sync(path)
        part = part.rename(folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            if error.errno == errno.ENOTEMPTY:  # another command has written it meanwhile
                check_new_folder(folder, what)
            raise Unavailable(f"{what}, {folder}: expected to write there, got {error.strerror}") from None
        raise


def replace_private(path: Path, data: bytes, what: str) -> None:
    """Replace or create a file of mode 0600 in a folder of mode 0700, atomically."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unwritable(path, what, error) from None
    _replace(path, data, what, PRIVATE)


def replace_file(path: Path, data: bytes, what: str) -> None:
    """Replace or create a file that others may read, atomically."""
    _replace(path, data, what, 0o644)


def _replace(path: Path, data: bytes, what: str, mode: int) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.unlink(missing_ok=True)
        try:
            _write(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), data)
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, what, error) from None


def _write(handle: int, data: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Make a file or the names of a folder durable. A link is a name of its folder."""
    if path.is_symlink():
        return
    if path.is_dir():
        sync_folder(path)
        return
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files durable, since a new file could be missing after a power cut.

    A folder that this account cannot read, or whose file system has no such call, is left as it is.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


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


Progress = Callable[[int], None]
"""A function that is called with the number of bytes sent since the last call."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ImportSource:
    """The bytes that an import reads: a file, or a folder's files and the manifest over them.

    `digest` identifies it; `ignored` are names of the folder's entries that are not uploaded.
    """

    format: str
    digest: str
    files: tuple[tuple[Path, str, int], ...]
    manifest: bytes | None
    ignored: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(size for _, _, size in self.files)


def read_base(path: Path, name: str) -> ImportSource:
    """Return the source of a GGUF file or of a model folder of safetensors.

    Raises: BadInput, which names a file that is not allowed.
    """
    if path.is_dir():
        return _read_folder(path, name)
    if path.suffix.lower() != ".gguf":
        got = f"a file with the ending {path.suffix!r}"
        raise BadInput(f"base, {path}: expected a folder of safetensors or a .gguf file, got {got}")
    return read_source(path, "gguf")


def read_source(path: Path, kind: str) -> ImportSource:
    """Return the source of a single file."""
    digest = digest_file(path)
    return ImportSource(kind, digest, ((path, digest, path.stat().st_size),), None)


def _read_folder(path: Path, name: str) -> ImportSource:
    """Hash the files that a base needs, and ignore the others.

    Pickles and code are refused before the upload; the service refuses them, too.
    """
    files, ignored = [], []
    for child in sorted(path.iterdir()):
        if (danger := find_danger(child.name)) is not None:
            raise BadInput(f"base, {child}: expected safetensors and no code, got {danger}")
        if not is_needed(child.name):
            ignored.append(child.name)
            continue
        if not (read := _follow_cache(child)).is_file():
            raise BadInput(f"base, {child}: expected a regular file, got a folder or a special file")
        files.append((read, ManifestFile(child.name, read.stat().st_size, digest_file(read))))
    if not files:
        raise NotFound(f"base, {path}: expected the files of a model, such as config.json, got none of them")
    listed = tuple(sorted((file for _, file in files), key=lambda file: file.path))
    manifest = encode_manifest(Manifest(name, 1, listed))
    sent = tuple((read, file.digest, file.size) for read, file in files)
    return ImportSource("safetensors", digest_bytes(manifest), sent, manifest, tuple(ignored))


def _follow_cache(path: Path) -> Path:
    """Return the file itself if a path is a link of a Hugging Face cache.

    There, `snapshots/REVISION/NAME` links to `blobs/DIGEST`.

    Raises: BadInput for any other link, which could name any file of this machine.
    """
    if not path.is_symlink():
        return path
    found, blobs = path.resolve(), path.parent.resolve().parent.parent / "blobs"
    if path.parent.resolve().parent.name != "snapshots" or found.parent != blobs:
        raise BadInput(f"base, {path}: expected a regular file, got a link; import a copy without links")
    return found


def upload(connection: Connection, source: ImportSource, progress: Progress) -> None:
    """Upload all files, then the manifest. The service hashes them again and refuses files that changed meanwhile."""
    from appliance.api.people import UploadReceipt

    for path, digest, size in source.files:
        answer = connection.put(
            f"/v1/uploads/{digest}", UploadReceipt, partial(_read_chunks, path, size, progress), size
        )
        _check_receipt(answer, digest, str(path))
    manifest = source.manifest
    if manifest is not None:
        answer = connection.put(f"/v1/uploads/{source.digest}", UploadReceipt, lambda: iter((manifest,)), len(manifest))
        _check_receipt(answer, source.digest, MANIFEST_PATH)


def _check_receipt(answer: UploadReceipt, digest: str, what: str) -> None:
    if answer.digest != digest:
        raise Tampered(f"upload, {what}: expected the service to have {digest}, got {answer.digest}")


def _read_chunks(path: Path, size: int, progress: Progress) -> Iterator[bytes]:
    """Yield exactly `size` bytes of a file.

    Raises: Unavailable if the file has another size by now.
    """
    hasher = Hasher()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
            if hasher.size > size:
                break
            yield chunk
            progress(len(chunk))
    if hasher.size != size:
        raise Unavailable(f"upload, {path}: expected {size} bytes, got a different size: it changed while it was read")
