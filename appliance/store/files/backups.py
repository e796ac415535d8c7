"""A folder of backups: signed manifests, and the encrypted objects that they name.

    NAME.json               the signed manifest of a complete, verified backup
    objects/DIGEST-RANDOM   an object in the age format
    lock                    held while a backup is made or removed
    .partial-…              here or in objects/: an unfinished file of a process that was killed

Objects are written, synced, decrypted again and renamed before the manifest that names them appears. So a power cut
leaves complete backups, and objects that no manifest names. `writing` removes such objects.

Other accounts may write into the folder. Neither the folder nor `objects` may be a link, since `writing` removes files
there.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from appliance.errors import ApplianceError, Conflict, Denied, NotFound, Tampered, TooLarge
from appliance.formats.core.digest import Hasher
from appliance.formats.log.backup import StoredObject, parse_backup, parse_backup_name
from appliance.store.files import disk
from appliance.store.files.encryption import AgeIdentity, StreamDigests, Write, decrypt, encrypt, recipient_of
from appliance.store.files.lock import hold_lock

MAX_MANIFEST_BYTES = 64 << 20
MAX_BACKUPS = 4_096
"""Most backups in a folder."""
_SUFFIX = ".json"

NameObject = Callable[[str], str]
"""A function from a content's digest to the first part of the object's name, which is 64 hexadecimal digits."""
Known = Mapping[str, StoredObject]
"""Objects of earlier backups by the first part of their name."""


class Content(NamedTuple):
    """An object, and the digest and size (bytes) of its content."""

    stored: StoredObject
    digest: str
    size: int


class BackupFolder:
    """A folder of backups. Disk errors are Unavailable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._objects = path / "objects"

    # --- reading ------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of the backups, oldest first.

        Raises:
            NotFound: there is no such folder.
            TooLarge: there are more than `MAX_BACKUPS`.
        """
        with disk.disk_errors(f"backups, {self.path}"):
            if not self.path.is_dir():
                raise NotFound(f"backups, {self.path}: expected a folder, got none")
            names = sorted(name for path in self.path.glob(f"*{_SUFFIX}") if _is_name(name := path.stem))
        if len(names) > MAX_BACKUPS:
            raise TooLarge(f"backups, {self.path}: expected at most {MAX_BACKUPS}, got {len(names)}; remove old ones")
        return names

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return the device, inode, size and times of a manifest's file, which change when the file changes.

        Raises:
            NotFound: there is no such backup.
        """
        with disk.disk_errors(f"backup {name}"):
            try:
                found = os.stat(self.path / f"{parse_backup_name(name)}{_SUFFIX}", follow_symlinks=False)
            except FileNotFoundError:
                raise NotFound(f"backup {name}: expected one in {self.path}, got none") from None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def read(self, name: str) -> bytes:
        """Return the bytes of a manifest, unverified.

        Raises:
            NotFound: there is no such backup.
        """
        what, path = f"backup {parse_backup_name(name)}", f"{name}{_SUFFIX}"
        with (
            disk.disk_errors(what),
            _open(self.path) as folder,
            disk.open_plain(folder, path, what) as file,
        ):
            return disk.read_all(file, MAX_MANIFEST_BYTES, what)

    def check(self, stored: StoredObject) -> None:
        """Read an object again and compare its size and digest.

        Raises:
            Tampered: they differ, or the object is missing.
        """
        hasher = Hasher()
        with self._open_object(stored) as file:
            while chunk := os.read(file, disk.CHUNK_BYTES):
                hasher.update(chunk)
        _compare(stored, hasher)

    def open(self, stored: StoredObject, identities: Sequence[AgeIdentity], write: Write) -> Hasher:
        """Decrypt an object and return the digest of its content.

        Raises:
            Tampered: the object is altered or missing. `write` may have got bytes of it.
            Denied: none of the identities can open it.
        """
        try:
            with self._open_object(stored) as file:
                streamed = decrypt(file, write, identities, f"object {stored.name}")
        except Denied:
            self.check(stored)  # an altered object may name other recipients
            raise
        _compare(stored, streamed.stored)
        return streamed.plain

    @contextmanager
    def _open_object(self, stored: StoredObject) -> Iterator[int]:
        what = f"object {stored.name}"
        with (
            disk.disk_errors(what),
            self._open_objects() as folder,
            disk.open_plain(folder, stored.name, what) as file,
        ):
            if (size := os.fstat(file).st_size) != stored.size:
                raise Tampered(f"{what}: expected {stored.size} bytes, got {size}")
            yield file

    @contextmanager
    def _open_objects(self) -> Iterator[int]:
        """Yield a descriptor of the folder of objects."""
        try:
            with _open(self.path) as folder, _open(Path("objects"), folder) as objects:
                yield objects
        except NotFound as error:
            raise Tampered(f"{error.message}; the backup is not complete") from None

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder for writing, and remove what an interrupted backup left. The folder is created if needed.

        Raises:
            Conflict: another process writes into it.
            Tampered: the folder, or that of its objects, is a link or a file.
        """
        with disk.disk_errors(f"backups, {self.path}"):
            disk.make_folder(self.path)
            disk.make_folder(self._objects)
            with self._open_objects():
                pass
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with hold_lock(lock, f"backups, {self.path}: expected nobody else to write there, got another process"):
            self.sweep()
            yield

    def sweep(self) -> None:
        """Remove partial files, and the objects that no manifest names.

        If one manifest cannot be read, all objects stay.
        """
        with disk.disk_errors(f"backups, {self.path}"), self._open_objects() as objects:
            for partial in self.path.glob(f"{disk.PARTIAL}*"):
                partial.unlink()
            found = os.listdir(objects)
            _unlink(objects, (name for name in found if name.startswith(disk.PARTIAL)))
            named: set[str] = set()
            for name in self.names():
                try:
                    named |= parse_backup(self.read(name)).by_name.keys()
                except ApplianceError:
                    return
            _unlink(objects, (name for name in found if not name.startswith(disk.PARTIAL) and name not in named))

    def put(
        self, source: int, recipients: Sequence[str], one_time: AgeIdentity, name: NameObject, known: Known
    ) -> Content:
        """Encrypt the rest of a descriptor durably into an object, decrypt it again, and compare the content.

        `one_time` is a further recipient that exists only for this comparison. If a known object has the same content,
        the new one is removed and the known one returned.

        Raises:
            Tampered: the object that was written decrypts to another content.
        """
        partial, flags = f"{disk.PARTIAL}{secrets.token_hex(8)}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with disk.disk_errors(f"backups, {self.path}"), self._open_objects() as objects:
            descriptor = os.open(partial, flags, 0o600, dir_fd=objects)
            try:
                written = encrypt(
                    source, lambda data: disk.write_all(descriptor, data), (*recipients, recipient_of(one_time))
                )
                os.fsync(descriptor)
                self._compare_written(descriptor, written, one_time)
                first = name(written.plain.digest())
                stored = self.find(first, known)
                if stored is None:
                    full = f"{first}-{secrets.token_hex(8)}"
                    stored = StoredObject(full, written.stored.digest(), written.stored.size)
                    os.rename(partial, full, src_dir_fd=objects, dst_dir_fd=objects)
            finally:
                os.close(descriptor)
                with suppress(FileNotFoundError):
                    os.unlink(partial, dir_fd=objects)
        return Content(stored, written.plain.digest(), written.plain.size)

    def _compare_written(self, descriptor: int, written: StreamDigests, one_time: AgeIdentity) -> None:
        """Read the bytes again, from the disk where the system allows it, decrypt them, and compare both digests."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(descriptor, 0, os.SEEK_SET)
        again = decrypt(descriptor, lambda data: None, [one_time], "object")
        expected, got = ((one.plain.digest(), one.stored.digest()) for one in (written, again))
        if expected != got:
            raise Tampered(f"backups, {self.path}: expected the bytes that were written, got others; check this disk")

    def find(self, first: str, known: Known) -> StoredObject | None:
        """Return the known object whose name has this first part, if its bytes are unchanged."""
        stored = known.get(first)
        if stored is not None:
            with suppress(Tampered):
                self.check(stored)
                return stored
        return None

    def publish(self, name: str, manifest: bytes) -> None:
        """Make a backup visible, once all of its objects are durable.

        Raises:
            Conflict: there is a backup of this name.
        """
        path = self.path / f"{parse_backup_name(name)}{_SUFFIX}"
        with disk.disk_errors(f"backup {name}"), self._open_objects() as objects:
            if os.path.lexists(path):
                raise Conflict(f"backup {name}: expected none of this name, got one; try again")
            os.fsync(objects)
            disk.write_file(path, manifest)

    def remove(self, name: str) -> None:
        """Remove a backup, then the objects that no other one names. Call it within `writing`."""
        self.read(name)
        with disk.disk_errors(f"backup {name}"):
            (self.path / f"{name}{_SUFFIX}").unlink()
            disk.sync_folder(self.path)
        self.sweep()


def _unlink(folder: int, names: Iterator[str]) -> None:
    for name in names:
        os.unlink(name, dir_fd=folder)
    os.fsync(folder)


@contextmanager
def _open(path: Path, within: int | None = None) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    except FileNotFoundError:
        raise NotFound(f"backups, {path}: expected a folder, got none") from None
    except NotADirectoryError:
        raise Tampered(f"backups, {path}: expected a folder, got a link or a file; name the folder itself") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_name(text: str) -> bool:
    try:
        return bool(parse_backup_name(text))
    except ApplianceError:
        return False


def _compare(stored: StoredObject, found: Hasher) -> None:
    if (found.digest(), found.size) != (stored.digest, stored.size):
        raise Tampered(f"object {stored.name}: expected the bytes of {stored.digest}, got those of {found.digest()}")
