"""Sealed folders, which are read-only and named by the digest of their manifest, and their staging folders.

    artifacts/<hex>              a sealed folder with its `manifest.json`
    artifacts/<hex>.<name>       a file beside it, such as a signature, which cannot be in the folder that it signs
    artifacts/.pending-<hex>     a mark: sealed, but not yet named by an entry
    artifacts/.staging-…         in use; removed at the next start
    artifacts/.quarantined-…     no longer matches its manifest
    artifacts/.unnamed-…         sealed, without a mark or an entry: the ledger is an older one
    uploads/<sender>/<hex>       an upload until an import has read it; removed at the next start

A folder is renamed to its digest once everything in it and beside it is on disk. So after a power failure it exists
completely or not at all.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from appliance.domain.core.names import check_name
from appliance.errors import BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, ManifestFile, parse_manifest
from appliance.formats.core.digest import Hasher, parse_digest
from appliance.store.files import disk


class Upload:
    """An upload in progress. Leaving the block without `finish` removes it."""

    def __init__(self, folder: Path, digest: str, size: int) -> None:
        self._digest = digest
        self._size = size
        self._target = folder / digest.removeprefix("sha256:")
        self._partial = folder / f"{disk.PARTIAL}{secrets.token_hex(8)}"
        self._hasher = Hasher()
        self._descriptor = -1
        self.finished = False
        """True once the bytes are durable under their digest."""

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk.disk_errors(f"upload {self._digest}"):
            self._descriptor = os.open(self._partial, flags, 0o600)
        return self

    def write(self, chunk: bytes) -> None:
        """Write a chunk.

        Raises:
            TooLarge: there are more bytes than announced.
        """
        if self._hasher.size + len(chunk) > self._size:
            raise TooLarge(f"upload {self._digest}: expected {self._size} bytes, got more")
        self._hasher.update(chunk)
        with disk.disk_errors(f"upload {self._digest}"):
            disk.write_all(self._descriptor, chunk)

    def finish(self) -> Path:
        """Make the bytes durable under their digest and return their path.

        Raises:
            BadInput: the digest differs.
        """
        got = self._hasher.digest()
        if got != self._digest:
            raise BadInput(f"upload: expected the bytes of {self._digest}, got those of {got}")
        with disk.disk_errors(f"upload {self._digest}"):
            os.fsync(self._descriptor)
            os.rename(self._partial, self._target)
            self.finished = True
            disk.sync_folder(self._target.parent)
        return self._target

    def __exit__(self, *_: object) -> None:
        with disk.disk_errors(f"upload {self._digest}"):
            os.close(self._descriptor)
            self._partial.unlink(missing_ok=True)


log = logging.getLogger("appliance")

MAX_MANIFEST_BYTES = 4 << 20
MAX_FOLDER_BYTES = 2 << 30
_STAGING, _QUARANTINED, _UNNAMED, _PENDING = ".staging-", ".quarantined-", ".unnamed-", ".pending-"
_BESIDE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\.[a-z0-9]{1,8}")
_SEALED = re.compile(r"[0-9a-f]{64}")


class UploadRecord(NamedTuple):
    """The size of an upload in bytes, and its time in seconds since 1970."""

    size: int
    sent_at: float


class UploadKey(NamedTuple):
    """The identity of an upload. The same bytes sent by two people are two uploads."""

    sender: str
    digest: str


class Artifacts:
    """The sealed folders and uploads of a home. Disk errors are Unavailable."""

    def __init__(self, home: Path, shared: Path | None = None, process: str = "") -> None:
        """Open the store; `shared` is the parent of the sealed folders if it is not the home, `process` the name of
        this process."""
        self._folder = (shared or home) / "artifacts"
        self._uploads = home / "uploads"
        self._process = process
        with disk.disk_errors("artifacts"):
            disk.make_folder(self._folder)
            disk.make_folder(self._uploads)

    @property
    def uploads_folder(self) -> Path:
        """Return the folder of the uploads, which belongs to this process even if sealed folders are shared."""
        return self._uploads

    # --- sealed folders -------------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield a private, empty folder, which is removed afterwards unless it was sealed.

        If it cannot be removed, this is logged and the result of the block is kept.
        """
        path = self._new_staging()
        with disk.disk_errors("staging"):
            path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            disk.discard(path)

    def _new_staging(self) -> Path:
        owner = f"{self._process}." if self._process else ""
        return self._folder / f"{_STAGING}{owner}{secrets.token_hex(16)}"

    def seal(self, staging: Path, digest: str, beside: Mapping[str, bytes] | None = None) -> Path:
        """Make a staging folder the artifact `digest`, durably, with the files beside it, and return its path.

        An artifact that exists already is checked and kept. A new one is pending until `settle` marks it as named by an
        entry; `discard_pending` removes it.

        Raises:
            BadInput: the folder has anything but plain files and folders.
            Tampered: the files do not match the manifest, or its digest differs.
        """
        if staging.parent != self._folder or not staging.name.startswith(_STAGING):
            raise BadInput(f"seal, {staging}: expected a staging folder below {self._folder}, got a folder outside")
        target = self._folder / _hex(digest)
        with disk.disk_errors(f"artifact {digest}"):
            with disk.open_folder(staging) as folder:
                _freeze(folder)
                _check(folder, digest)
            if not target.exists():
                disk.write_file(self._mark(digest), self._process.encode())
            for name, data in (beside or {}).items():
                disk.write_file(self._beside(digest, name), data, 0o444)
            if target.exists():
                self.check(digest)
                return target
            os.rename(staging, target)
            disk.sync_folder(self._folder)
        return target

    def settle(self, digest: str) -> None:
        """Mark the artifact as named by an entry, so that it is kept."""
        with disk.disk_errors(f"artifact {digest}"), suppress(FileNotFoundError):
            self._mark(digest).unlink()
            disk.sync_folder(self._folder)

    def pending(self) -> tuple[str, ...]:
        """Return the digests of artifacts that this process sealed and did not settle."""
        with disk.disk_errors("artifacts"):
            marks = [name.removeprefix(_PENDING) for name in os.listdir(self._folder) if name.startswith(_PENDING)]
            own = [name for name in marks if _SEALED.fullmatch(name) and self._made(name)]
        return tuple(sorted(f"sha256:{name}" for name in own))

    def _made(self, name: str) -> bool:
        mark, own = f"{_PENDING}{name}", self._process.encode()
        try:
            with disk.open_folder(self._folder) as folder, disk.open_plain(folder, mark, "artifacts") as file:
                return os.read(file, len(own) + 1) == own
        except (NotFound, Tampered):
            return False

    def discard_pending(self, digest: str) -> None:
        """Remove a pending artifact and the files beside it; a settled one is not changed.

        The mark is removed last, so that the next start completes an interrupted removal.
        """
        if digest not in self.pending():
            return
        with disk.disk_errors(f"artifact {digest}"):
            new_path = self._new_staging()
            with suppress(FileNotFoundError):
                os.rename(self._folder / _hex(digest), new_path)
            disk.remove_tree(new_path)
            for beside in self._folder.glob(f"{_hex(digest)}.*"):
                beside.unlink()
            disk.sync_folder(self._folder)
        self.settle(digest)

    def path(self, digest: str) -> Path:
        """Return the path of the sealed folder.

        Raises:
            NotFound: there is none.
        """
        path = self._folder / _hex(digest)
        with disk.sealed_errors(f"artifact {digest}"):
            if not path.is_dir() or path.is_symlink():
                raise NotFound(f"artifact {digest}: expected a sealed folder, got none")
        return path

    def check(self, digest: str, paced: Callable[[int], None] = lambda size: None) -> Manifest:
        """Hash every byte of the folder again and return its manifest.

        `paced` is called with the size of each chunk and may wait.

        Raises:
            Tampered: a file differs.
            Unavailable: the whole folder is missing, so that its bytes are unknown.
        """
        with self._open_whole(digest) as folder:
            return _check(folder, digest, paced)

    def read(self, digest: str, path: str, max_bytes: int = MAX_FOLDER_BYTES) -> bytes:
        """Return one file of a sealed folder, with its bytes unchecked; links are not followed."""
        what = f"artifact {digest}"
        with self._open(digest) as folder, disk.open_plain(folder, path, what) as file:
            return disk.read_all(file, max_bytes, f"{what}, {path}")

    def read_manifest(self, digest: str) -> Manifest:
        """Return the manifest of a sealed folder, compared with its digest.

        Raises:
            NotFound: there is no such folder.
            Tampered: the manifest is altered.
        """
        with self._open(digest) as folder:
            return _read_manifest(folder, digest)

    def read_lines(self, digest: str, path: str) -> Iterator[bytes]:
        """Yield the lines of one file of a sealed folder, one in memory at a time, with its bytes unchecked.

        Raises:
            Tampered: the file has another size than the manifest says, or the manifest has changed.
        """
        with (
            self._open(digest) as folder,
            disk.open_plain(folder, path, f"artifact {digest}") as file,
            open(file, "rb", closefd=False) as lines,
        ):
            what, manifest = f"artifact {digest}", _read_manifest(folder, digest)
            expected = next((entry for entry in manifest.files if entry.path == path), None)
            if expected is None:
                raise Tampered(f"{what}, {path}: expected a file of its manifest, got another one")
            _check_size(file, expected, what)
            yield from lines

    def read_folder(self, digest: str, max_bytes: int = MAX_FOLDER_BYTES) -> dict[str, bytes]:
        """Return every file of a sealed folder by path, each read once.

        Raises:
            Tampered: there is something else than plain files.
            Unavailable: the whole folder is missing.
        """
        files: dict[str, bytes] = {}
        with self._open_whole(digest) as folder:
            for path in _list_files(folder, digest):
                with disk.open_plain(folder, path, f"artifact {digest}") as file:
                    files[path] = disk.read_all(file, max_bytes, f"artifact {digest}, {path}")
                max_bytes -= len(files[path])
        return files

    def read_beside(self, digest: str, name: str, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        path, what = self._beside(digest, name), f"artifact {digest}, beside it"
        with disk.sealed_errors(what):
            return disk.read_plain(self._folder, path.name, max_bytes, what)

    def quarantine(self, digest: str) -> Path | None:
        """Move the folder out of use, keep it for analysis and return its new path; return None if there is none."""
        new_path = self._folder / f"{_QUARANTINED}{_hex(digest)}-{secrets.token_hex(4)}"
        return self._set_aside(digest, new_path)

    def sweep(self, keep: Callable[[], frozenset[str]], alone: Callable[[], bool] = lambda: True) -> tuple[str, ...]:
        """Remove staging folders, uploads and partial files of an earlier run; call it first when a service starts.

        Pending artifacts are removed too, unless `keep` returns them. Other sealed folders that `keep` does not return
        are moved aside, not removed, since a restored older ledger names fewer. Their digests are returned. Failures to
        remove or move are logged and do not stop the start.

        Only files of this process are removed. Unless `alone` returns True, no sealed folder is moved aside, because
        another process may be sealing it. Both functions are called after the folders were listed, so that they include
        what other processes recorded meanwhile.
        """
        with disk.disk_errors("sweep"):
            found = [*self._folder.iterdir(), *self._uploads.iterdir()]
            # List the marks after the folders: a folder whose mark is gone by now was recorded or removed.
            marked = {name.removeprefix(_PENDING) for name in os.listdir(self._folder) if name.startswith(_PENDING)}
            named, no_other_process = keep(), alone()
            for path in found:
                if path.parent == self._uploads or self._is_left(path, no_other_process):
                    disk.discard(path)
            for digest in self.pending():
                self._end_pending(digest, digest in named)
        sealed = {path.name for path in found if _SEALED.fullmatch(path.name) and path.parent == self._folder}
        unnamed = {f"sha256:{name}" for name in sealed - marked} - named if no_other_process else set()
        for digest in sorted(unnamed):
            try:
                self._set_aside(digest, self._folder / f"{_UNNAMED}{_hex(digest)}-{secrets.token_hex(4)}")
            except Unavailable as error:
                log.critical("ALARM: a folder that no entry names stays: %s", error.message)
        return tuple(sorted(unnamed))

    def _is_left(self, path: Path, alone: bool) -> bool:
        """Return True if an earlier run of this process left this path; partial files do not name their process."""
        if path.name.startswith(disk.PARTIAL):
            return alone
        return path.name.startswith(_STAGING) and path.name[len(_STAGING) :].rpartition(".")[0] == self._process

    def _end_pending(self, digest: str, named: bool) -> None:
        try:
            if named:
                self.settle(digest)
            else:
                self.discard_pending(digest)
        except Unavailable as error:
            log.critical("ALARM: a folder that no entry names stays: %s", error.message)

    def _set_aside(self, digest: str, new_path: Path) -> Path | None:
        with disk.disk_errors(f"artifact {digest}"):
            try:
                os.rename(self._folder / _hex(digest), new_path)
            except FileNotFoundError:
                return None
            disk.sync_folder(self._folder)
        return new_path

    def _mark(self, digest: str) -> Path:
        return self._folder / f"{_PENDING}{_hex(digest)}"

    def _beside(self, digest: str, name: str) -> Path:
        if _BESIDE.fullmatch(name) is None:
            raise BadInput(f"artifact {digest}, beside it: expected a plain file name, got {name!r}")
        return self._folder / f"{_hex(digest)}.{name}"

    @contextmanager
    def _open(self, digest: str) -> Iterator[int]:
        path = self.path(digest)
        with disk.sealed_errors(f"artifact {digest}"), disk.open_folder(path) as folder:
            yield folder

    @contextmanager
    def _open_whole(self, digest: str) -> Iterator[int]:
        """Open a folder to check its bytes; a missing folder is Unavailable, not changed."""
        try:
            self.path(digest)
        except NotFound as error:
            raise Unavailable(f"{error.message}; see that its disk is mounted, or restore the folder") from None
        with self._open(digest) as folder:
            yield folder

    # --- uploads --------------------------------------------------------------------------------------------------

    def receive(self, sender: str, digest: str, size: int) -> Upload:
        """Open an upload of the digest and size that its sender claims: use `with`, `write` the chunks, then
        `finish`."""
        path = self._upload_path(sender, digest)
        with disk.disk_errors(f"upload {digest}"):
            disk.make_folder(path.parent)
        return Upload(path.parent, digest, size)

    def upload(self, sender: str, digest: str) -> Path:
        """Return the path of the bytes that this person sent under this digest.

        Raises:
            NotFound: this person sent none; uploads of other people do not count.
        """
        path = self._upload_path(sender, digest)
        with disk.disk_errors(f"upload {digest}"):
            if path.is_symlink() or not path.is_file():
                raise NotFound(f"upload {digest}: expected bytes sent before, got none")
        return path

    def _upload_path(self, sender: str, digest: str) -> Path:
        check_name("upload, sender", sender)
        return self._uploads / sender / _hex(digest)

    def place_upload(self, sender: str, digest: str, target: Path) -> None:
        """Link a person's upload into a staging folder, or copy it if that folder is on another disk."""
        source = self.upload(sender, digest)
        with disk.disk_errors(f"upload {digest}"):
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(source, target, digest)

    def uploads(self) -> dict[UploadKey, UploadRecord]:
        """Return the complete uploads of all people."""
        found = {}
        with disk.disk_errors("uploads"):
            for path in self._uploads.glob("*/*"):
                if _SEALED.fullmatch(path.name):
                    with suppress(FileNotFoundError):
                        stat = path.lstat()
                        key = UploadKey(path.parent.name, f"sha256:{path.name}")
                        found[key] = UploadRecord(stat.st_size, stat.st_mtime)
        return found

    def discard_upload(self, sender: str, digest: str, sent_by: float = math.inf) -> bool:
        """Remove a person's upload, unless it is later than `sent_by`, in seconds since 1970. Return True if there is
        none afterwards.
        """
        path = self._upload_path(sender, digest)
        with disk.disk_errors(f"upload {digest}"), suppress(FileNotFoundError):
            if path.lstat().st_mtime > sent_by:
                return False
            path.unlink()
            disk.sync_folder(path.parent)
        return True


def _hex(digest: str) -> str:
    return parse_digest(digest).removeprefix("sha256:")


def _copy(source: Path, target: Path, digest: str) -> None:
    """Copy a file and check its digest, without fsync, since a staging folder does not outlive its work."""
    hasher = Hasher()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with source.open("rb", buffering=0) as file:
            while chunk := file.read(disk.CHUNK_BYTES):
                hasher.update(chunk)
                disk.write_all(descriptor, chunk)
    finally:
        os.close(descriptor)
    if (got := hasher.digest()) != digest:
        raise Tampered(f"upload {digest}: expected its bytes to be unchanged, got those of {got}")


def _freeze(folder: int) -> None:
    """Make everything in the folder read-only and durable."""
    for path, holder, is_folder in disk.walk_folder(folder):
        name = path.rpartition("/")[2]
        if is_folder:
            with disk.open_folder(name, holder) as below:
                _settle(below, 0o555)
            continue
        try:
            with disk.open_plain(holder, name, "output") as file:
                if os.fstat(file).st_nlink != 1:
                    raise BadInput(f"output, {path}: expected a file of one name, got one that is linked elsewhere")
                _settle(file, 0o444)
        except Tampered as error:
            raise BadInput(error.message) from None
    _settle(folder, 0o555)


def _settle(descriptor: int, mode: int) -> None:
    os.fchmod(descriptor, mode)
    os.fsync(descriptor)


def _list_files(folder: int, digest: str) -> list[str]:
    try:
        return [path for path, _, is_folder in disk.walk_folder(folder) if not is_folder]
    except TooLarge as error:
        raise Tampered(f"artifact {digest}, {error.message}") from None


def _read_manifest(folder: int, digest: str) -> Manifest:
    what = f"artifact {digest}"
    with disk.open_plain(folder, MANIFEST_PATH, what) as file:
        data = disk.read_all(file, MAX_MANIFEST_BYTES, f"{what}, {MANIFEST_PATH}")
    hasher = Hasher()
    hasher.update(data)
    if hasher.digest() != digest:
        raise Tampered(f"{what}, {MANIFEST_PATH}: expected {digest}, got {hasher.digest()}")
    try:
        return parse_manifest(data)
    except BadInput as error:
        raise Tampered(f"{what}, {MANIFEST_PATH}: {error.message}") from None


def _check(folder: int, digest: str, paced: Callable[[int], None] = lambda size: None) -> Manifest:
    what, manifest = f"artifact {digest}", _read_manifest(folder, digest)
    listed = {file.path for file in manifest.files} | {MANIFEST_PATH}
    found = set(_list_files(folder, digest))
    if listed != found:
        raise Tampered(f"{what}, files: expected {sorted(listed - found)} too, got {sorted(found - listed)} besides")
    for expected in manifest.files:
        _check_file(folder, expected, what, paced)
    return manifest


def _check_size(file: int, expected: ManifestFile, what: str) -> None:
    # A hole of any size costs its author nothing, and would take days to hash.
    if (size := os.fstat(file).st_size) != expected.size:
        raise Tampered(f"{what}, {expected.path}: expected {expected.size} bytes, got {size}")


def _check_file(folder: int, expected: ManifestFile, what: str, paced: Callable[[int], None]) -> None:
    hasher = Hasher()
    with disk.open_plain(folder, expected.path, what) as file:
        _check_size(file, expected, what)
        while hasher.size <= expected.size and (chunk := os.read(file, disk.CHUNK_BYTES)):
            hasher.update(chunk)
            paced(len(chunk))
    if (hasher.size, hasher.digest()) != (expected.size, expected.digest):
        raise Tampered(f"{what}, {expected.path}: expected {expected.digest}, got {hasher.digest()}")
