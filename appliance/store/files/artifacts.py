"""Sealed folders, named by the digest of their manifest, read-only; and the staging folders that become them.

    artifacts/<hex>              a sealed folder, `manifest.json` in it
    artifacts/<hex>.<name>       a file beside it: what signs the folder cannot be in it
    artifacts/.pending-<hex>     a mark: sealed, and no entry names it yet
    artifacts/.staging-…         in use; swept at the next start
    artifacts/.quarantined-…     did not hash to its manifest any more
    artifacts/.unnamed-…         sealed, without a mark and without an entry: the ledger is an older one
    uploads/<hex>                bytes that a client sent, until an import has read them; swept at the next start

A folder gets its digest as name by one rename, after everything in it and beside it is on disk. So after a power
failure it is there completely, or not at all.
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
from typing import NamedTuple

from appliance.errors import BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, Manifest, ManifestFile, parse_manifest
from appliance.formats.core.digest import Hasher, parse_digest
from appliance.store.files import disk
from appliance.store.files.uploads import Upload

log = logging.getLogger("appliance")

MAX_MANIFEST_BYTES = 4 << 20
MAX_FOLDER_BYTES = 2 << 30
_STAGING, _QUARANTINED, _UNNAMED, _PENDING = ".staging-", ".quarantined-", ".unnamed-", ".pending-"
_BESIDE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\.[a-z0-9]{1,8}")
_SEALED = re.compile(r"[0-9a-f]{64}")


class Sent(NamedTuple):
    """An upload: its bytes, and when it came, in seconds since 1970."""

    size: int
    sent_at: float


class Artifacts:
    """All of a home's sealed folders and uploads. Errors of the disk are Unavailable."""

    def __init__(self, home: Path, shared: Path | None = None, process: str = "") -> None:
        """`shared`: where the sealed folders are, if not in the home; `process`: which of several makes this one's."""
        self._folder = (shared or home) / "artifacts"
        self._uploads = home / "uploads"
        self._process = process
        with disk.disk_errors("artifacts"):
            disk.make_folder(self._folder)
            disk.make_folder(self._uploads)

    @property
    def uploads_folder(self) -> Path:
        """Of this process alone, wherever sealed folders are."""
        return self._uploads

    # --- sealed folders -------------------------------------------------------------------------------------------

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A private, empty folder to work in; gone afterwards, unless it was sealed. Where it cannot be removed, that
        is logged, and the result of the work is kept."""
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
        """Makes a staging folder the artifact `digest`, durably, with the files beside it; its path.

        BadInput for anything but plain files and folders; Tampered when what is on disk is not what its manifest says,
        or that manifest is another. An artifact that exists already is checked and kept.

        A new artifact is pending until `settle` says that an entry names it; `discard_pending` removes it.
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
        """An entry names the artifact: it stays."""
        with disk.disk_errors(f"artifact {digest}"), suppress(FileNotFoundError):
            self._mark(digest).unlink()
            disk.sync_folder(self._folder)

    def pending(self) -> tuple[str, ...]:
        """The digests of what this process sealed and did not settle."""
        with disk.disk_errors("artifacts"):
            marks = [name.removeprefix(_PENDING) for name in os.listdir(self._folder) if name.startswith(_PENDING)]
            own = [name for name in marks if _SEALED.fullmatch(name) and self._made(name)]
        return tuple(sorted(f"sha256:{name}" for name in own))

    def _made(self, name: str) -> bool:
        try:
            return (self._folder / f"{_PENDING}{name}").read_bytes() == self._process.encode()
        except FileNotFoundError:
            return False

    def discard_pending(self, digest: str) -> None:
        """Removes a pending artifact and the files beside it; a settled one is not changed.

        The mark goes last, so that the next start completes what was interrupted here.
        """
        if digest not in self.pending():
            return
        with disk.disk_errors(f"artifact {digest}"):
            aside = self._new_staging()
            with suppress(FileNotFoundError):
                os.rename(self._folder / _hex(digest), aside)
            disk.remove_tree(aside)
            for beside in self._folder.glob(f"{_hex(digest)}.*"):
                beside.unlink()
            disk.sync_folder(self._folder)
        self.settle(digest)

    def path(self, digest: str) -> Path:
        """The sealed folder; NotFound where there is none."""
        path = self._folder / _hex(digest)
        with disk.sealed_errors(f"artifact {digest}"):
            if not path.is_dir() or path.is_symlink():
                raise NotFound(f"artifact {digest}: expected a sealed folder, got none")
        return path

    def check(self, digest: str, paced: Callable[[int], None] = lambda size: None) -> Manifest:
        """The manifest, once every byte of the folder has been hashed again; Tampered names the file that differs.

        `paced` is called with the size of every chunk that was read, and may wait.
        """
        with self._open(digest) as folder:
            return _check(folder, digest, paced)

    def read(self, digest: str, path: str, max_bytes: int = MAX_FOLDER_BYTES) -> bytes:
        """One file of a sealed folder in one buffer, its bytes not yet checked. No link is followed on the way."""
        what = f"artifact {digest}"
        with self._open(digest) as folder, disk.open_plain(folder, path, what) as file:
            return disk.read_all(file, max_bytes, f"{what}, {path}")

    def read_folder(self, digest: str, max_bytes: int = MAX_FOLDER_BYTES) -> dict[str, bytes]:
        """Every file of a sealed folder, each read once, by path; Tampered for anything that is no plain file."""
        files: dict[str, bytes] = {}
        with self._open(digest) as folder:
            for path in _list_files(folder, digest):
                with disk.open_plain(folder, path, f"artifact {digest}") as file:
                    files[path] = disk.read_all(file, max_bytes, f"artifact {digest}, {path}")
                max_bytes -= len(files[path])
        return files

    def read_beside(self, digest: str, name: str, max_bytes: int = MAX_MANIFEST_BYTES) -> bytes:
        path, what = self._beside(digest, name), f"artifact {digest}, beside it"
        with (
            disk.sealed_errors(what),
            disk.open_folder(self._folder) as folder,
            disk.open_plain(folder, path.name, what) as file,
        ):
            return disk.read_all(file, max_bytes, f"{what}, {name}")

    def quarantine(self, digest: str) -> Path | None:
        """Takes the folder out of use, and keeps it to be looked at; None where there is none."""
        aside = self._folder / f"{_QUARANTINED}{_hex(digest)}-{secrets.token_hex(4)}"
        return self._set_aside(digest, aside)

    def sweep(self, keep: Callable[[], frozenset[str]], alone: Callable[[], bool] = lambda: True) -> tuple[str, ...]:
        """At a service's start, before anything else works here: removes staging, uploads and half-written files.

        So goes what is pending, unless `keep` returns it. Any other sealed folder that `keep` does not return is moved
        aside, not removed: an older ledger, restored, names fewer. Returns the digests of those. What cannot be removed
        or moved is said, and ends no start.

        Only what this process made is removed, and beside other processes (not `alone`) nothing is moved aside: they
        may be sealing it. Both are asked once it is known what is here, so that they cannot miss what another process
        recorded meanwhile.
        """
        with disk.disk_errors("sweep"):
            found = [*self._folder.iterdir(), *self._uploads.iterdir()]
            # After the folders: one whose mark is gone by now was recorded, or is removed.
            marked = {name.removeprefix(_PENDING) for name in os.listdir(self._folder) if name.startswith(_PENDING)}
            kept, is_alone = keep(), alone()
            for path in found:
                if path.parent == self._uploads or self._is_left(path, is_alone):
                    disk.discard(path)
            for digest in self.pending():
                self._end_pending(digest, digest in kept)
        sealed = {path.name for path in found if _SEALED.fullmatch(path.name) and path.parent == self._folder}
        unnamed = {f"sha256:{name}" for name in sealed - marked} - kept if is_alone else set()
        for digest in sorted(unnamed):
            try:
                self._set_aside(digest, self._folder / f"{_UNNAMED}{_hex(digest)}-{secrets.token_hex(4)}")
            except Unavailable as error:
                log.critical("ALARM: a folder that no entry names stays: %s", error.message)
        return tuple(sorted(unnamed))

    def _is_left(self, path: Path, alone: bool) -> bool:
        """By an earlier life of this process. A half-written file says not whose it is."""
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

    def _set_aside(self, digest: str, aside: Path) -> Path | None:
        with disk.disk_errors(f"artifact {digest}"):
            try:
                os.rename(self._folder / _hex(digest), aside)
            except FileNotFoundError:
                return None
            disk.sync_folder(self._folder)
        return aside

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

    # --- uploads --------------------------------------------------------------------------------------------------

    def receive(self, digest: str, size: int) -> Upload:
        """What a client sends, under the digest and size that it claims: `with` it, `write` chunks, then `finish`."""
        return Upload(self._uploads, parse_digest(digest), size)

    def upload(self, digest: str) -> Path:
        """The bytes that were uploaded under this digest; NotFound where there are none."""
        path = self._uploads / _hex(digest)
        with disk.disk_errors(f"upload {digest}"):
            if path.is_symlink() or not path.is_file():
                raise NotFound(f"upload {digest}: expected bytes sent before, got none")
        return path

    def place_upload(self, digest: str, target: Path) -> None:
        """The upload as a file in a staging folder: the same one, or a copy where that folder is on another disk."""
        source = self.upload(digest)
        with disk.disk_errors(f"upload {digest}"):
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(source, target, digest)

    def uploads(self) -> dict[str, Sent]:
        """What lies here whole, by its digest."""
        found = {}
        with disk.disk_errors("uploads"):
            for entry in os.scandir(self._uploads):
                if _SEALED.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        found[f"sha256:{entry.name}"] = Sent(stat.st_size, stat.st_mtime)
        return found

    def discard_upload(self, digest: str, sent_by: float = math.inf) -> None:
        """Removes the bytes, unless they came later than `sent_by`, in seconds since 1970."""
        path = self._uploads / _hex(digest)
        with disk.disk_errors(f"upload {digest}"), suppress(FileNotFoundError):
            if path.lstat().st_mtime <= sent_by:
                path.unlink()
                disk.sync_folder(self._uploads)


def _hex(digest: str) -> str:
    return parse_digest(digest).removeprefix("sha256:")


def _copy(source: Path, target: Path, digest: str) -> None:
    """Tampered where the bytes are not those of the digest. Not synced: nothing in a staging folder outlives its work,
    and half a copy goes with the folder."""
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
    """Everything in the folder read-only and on disk; BadInput for a link, a pipe, a device, a file of two names."""
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


def _check(folder: int, digest: str, paced: Callable[[int], None] = lambda size: None) -> Manifest:
    what = f"artifact {digest}"
    with disk.open_plain(folder, MANIFEST_PATH, what) as file:
        data = disk.read_all(file, MAX_MANIFEST_BYTES, f"{what}, {MANIFEST_PATH}")
    hasher = Hasher()
    hasher.update(data)
    if hasher.digest() != digest:
        raise Tampered(f"{what}, {MANIFEST_PATH}: expected {digest}, got {hasher.digest()}")
    try:
        manifest = parse_manifest(data)
    except BadInput as error:
        raise Tampered(f"{what}, {MANIFEST_PATH}: {error.message}") from None
    listed = {file.path for file in manifest.files} | {MANIFEST_PATH}
    found = set(_list_files(folder, digest))
    if listed != found:
        raise Tampered(f"{what}, files: expected {sorted(listed - found)} too, got {sorted(found - listed)} besides")
    for expected in manifest.files:
        _check_file(folder, expected, what, paced)
    return manifest


def _check_file(folder: int, expected: ManifestFile, what: str, paced: Callable[[int], None]) -> None:
    hasher = Hasher()
    with disk.open_plain(folder, expected.path, what) as file:
        while chunk := os.read(file, disk.CHUNK_BYTES):
            hasher.update(chunk)
            paced(len(chunk))
    if (hasher.size, hasher.digest()) != (expected.size, expected.digest):
        raise Tampered(f"{what}, {expected.path}: expected {expected.digest}, got {hasher.digest()}")
