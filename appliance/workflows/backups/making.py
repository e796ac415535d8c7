"""The creation of an encrypted backup of an appliance, beside a running service or without one.

The database is copied first, then the sealed folders that its log names. A folder is sealed before the entry that names
it is appended, so the folders of the copied log are there. Files that no entry names yet are left out.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from appliance.build import COMPATIBILITY, build_version
from appliance.domain.core.records.site import LogKey
from appliance.domain.core.state import State
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered, Unavailable
from appliance.formats.artifacts.manifest import MANIFEST_PATH, encode_manifest
from appliance.formats.core.sealed import derive_key
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.backup import (
    DATABASE_PATH,
    Backup,
    BackupFile,
    FolderMode,
    Index,
    KeyringPair,
    StoredObject,
    encode_index,
)
from appliance.formats.log.checkpoint import claimed_size
from appliance.formats.log.trust import Trust, parse_trust
from appliance.store.database.tables import REVISION
from appliance.store.files import disk
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.backups import BackupFolder, Content, Known
from appliance.store.files.encryption import check_recipient, decrypt, encrypt, make_identity, recipient_of
from appliance.store.files.keyring import Keyring
from appliance.store.files.known_checkpoints import KnownCheckpoints
from appliance.store.files.lock import hold_lock
from appliance.store.ledger.copies import copy_database, find_erasures
from appliance.store.ledger.keys import KeyringKeys, ServiceKeys
from appliance.store.ledger.snapshots import Snapshots
from appliance.workflows.backups.contents import check_keys
from appliance.workflows.backups.listing import read_backup
from appliance.workflows.integrity import list_sealed_folders
from appliance.workflows.runs import checkpoints
from appliance.workflows.serving.serve import DIGEST_KEY

HOME_FILES = ("trust.json", "calibrations.json")
HOME_FOLDERS = ("harness", "metrics")
SETTINGS_FILE = "appliance.toml"
MAX_KEYRING_BYTES = 16 << 20
MAX_INDEX_BYTES = 256 << 20
_NAME_DOMAIN = b"backup objects"


@dataclass(frozen=True)
class Places:
    """The places of an appliance's files.

    `shared`: the parent of the sealed folders. `certificates` and `secrets`: files that settings name, by the setting;
    secrets are kept with the keyring. `signer`: opens the keys of a log in the signer, if the site has one.
    """

    home: Path
    shared: Path
    keys: Path
    witnessed: Path
    database_url: str
    owner_url: str
    certificates: Mapping[str, Path]
    secrets: Mapping[str, Path]
    signer: Callable[[str], ServiceKeys] | None = None

    def open_keys(self, origin: str) -> ServiceKeys:
        """Return the keys with which the service signs."""
        return KeyringKeys(Keyring(self.keys), origin) if self.signer is None else self.signer(origin)

    @property
    def trust(self) -> Trust:
        """Return the home's own trust file.

        Raises:
            NotFound: the home has no appliance.
        """
        try:
            return parse_trust((self.home / "trust.json").read_bytes())
        except FileNotFoundError:
            raise NotFound(f"appliance in {self.home}: expected one, got none") from None


@dataclass(frozen=True)
class Recipients:
    """The public keys of age that open a backup: its data, and in pairs its keyring."""

    data: tuple[str, ...]
    keyring: tuple[str, ...]

    def check(self) -> None:
        """Check that there are enough different keys.

        Raises:
            BadInput: there are not, or one is no public key of age.
        """
        for text in (*self.data, *self.keyring):
            check_recipient(text)
        if not self.data:
            raise BadInput("settings, backup_recipients: expected at least one public key of age, got none")
        if len(set(self.keyring)) < 2 or len(set(self.keyring)) != len(self.keyring):
            expected = "the public keys of two administrators or more, each once"
            raise BadInput(f"settings, backup_key_recipients: expected {expected}, got {len(self.keyring)}")


class BackupSource(NamedTuple):
    """A file to copy. `digest` and `size` are known for sealed files. `optional`: it may be missing."""

    path: str
    place: Path
    mode: int
    digest: str | None = None
    size: int = 0
    optional: bool = False


@dataclass(frozen=True)
class MadeBackup:
    """A backup that was made: its manifest, the bytes of its new objects, and the folders that are missing."""

    backup: Backup
    new_bytes: int
    missing: tuple[str, ...]

    @property
    def entries(self) -> int:
        """Return the size of the copied log."""
        return claimed_size(self.backup.checkpoint.encode())


def create(
    places: Places,
    folder: BackupFolder,
    recipients: Recipients,
    clock: Callable[[], datetime],
    *,
    with_checkpoints: bool = True,
    snapshots: Snapshots | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> MadeBackup:
    """Make a backup, prove that it can be opened, and list it.

    `snapshots`: the service's snapshot. The entries that it covers are hashed and not replayed, as at a start.

    Raises:
        BadInput: the recipients are too few or not keys.
        Tampered: the log or a sealed folder is invalid.
        Unavailable: a disk or the database fails, or a folder is missing that the log needs.
        Conflict: another backup is being made, or a text was erased meanwhile, which the backup has.
    """
    recipients.check()
    trust = places.trust
    with folder.writing(), work_folder(places.home) as work, closing(places.open_keys(trust.origin)) as keys:
        now = encode_time(clock())
        say("copies and verifies the database")
        database, notes = work / DATABASE_PATH, KnownCheckpoints(places.witnessed)
        snapshot = None if snapshots is None else snapshots.read()
        copied, witnessed = copy_database(places.database_url, database, trust, notes.notes_for_backup, snapshot)
        writer = _Writer(folder, places, recipients, _list_known(folder, copied.state.site.log_keys))
        writer.add(BackupSource(DATABASE_PATH, database, 0o600))
        for name, note in witnessed.items():
            writer.add_bytes(f"witnessed/{name}", note)
        check_keys(keys, Keyring(places.keys), Artifacts(places.home, places.shared), copied.state)
        say("copies the sealed folders")
        missing = tuple(_add_sealed(writer, places, copied.state))
        for source in _list_other_files(places, copied.state, with_checkpoints=with_checkpoints):
            writer.add(source)
        index = writer.put_bytes(encode_index(writer.index()))
        pairs = _add_keyring(writer, places, recipients)
        backup = Backup(
            name=now[:19].replace("-", "").replace(":", "") + "Z",
            time=now,
            checkpoint=copied.checkpoint.decode(),
            log_key=copied.state.site.log_key,
            database="sqlite" if places.database_url.startswith("sqlite") else "postgresql",
            revision=REVISION,
            build=build_version(),
            compatibility=COMPATIBILITY,
            erasure=max((text.erased for text in copied.state.texts.values() if text.erased is not None), default=None),
            recipients=recipients.data,
            index=index.name,
            keyring=pairs,
            objects=tuple(sorted(writer.objects.values(), key=lambda found: found.name)),
        )
        if erased := find_erasures(places.database_url, copied.state.size):
            named = ", ".join(map(str, erased))
            raise Conflict(f"backup: expected no erasure while it is made, got entry {named}; make the backup again")
        folder.publish(backup.name, keys.sign_backup(backup))
    return MadeBackup(backup, writer.new_bytes, missing)


def _list_known(folder: BackupFolder, log_keys: tuple[LogKey, ...]) -> Known:
    """Return the objects of the earlier backups whose signature is valid."""
    known: dict[str, StoredObject] = {}
    for name in folder.names():
        try:
            backup = read_backup(folder, name, log_keys)
        except ApplianceError:
            continue
        known |= {stored.name.partition("-")[0]: stored for stored in backup.objects}
    return known


class _Writer:
    """The objects and files of a backup that is being made."""

    def __init__(self, folder: BackupFolder, places: Places, recipients: Recipients, known: Known) -> None:
        self._folder, self._recipients, self._known = folder, recipients, known
        self._home = places.home
        self._one_time = make_identity()
        """A recipient of every object, with which the object is decrypted again. It is never stored."""
        secret = Keyring(places.keys).read_secret(DIGEST_KEY)
        self._key = derive_key(secret, _NAME_DOMAIN)
        self.objects: dict[str, StoredObject] = {}
        self.new_bytes = 0
        self._files: list[BackupFile] = []
        self._folders: dict[str, int] = {}
        self._earlier_names = {stored.name for stored in known.values()}

    def index(self) -> Index:
        """Return the index of the files so far."""
        files = sorted(self._files, key=lambda file: file.path)
        folders = (FolderMode(path, mode) for path, mode in sorted(self._folders.items()))
        return Index(tuple(files), tuple(folders))

    def add_folder(self, path: str, mode: int) -> None:
        self._folders[path] = mode

    def add(self, source: BackupSource) -> None:
        """Add a file. If an earlier backup has an object of its content, that object is verified and used.

        Raises:
            Tampered: the file is not the sealed one.
        """
        recipients = self._recipients.data
        if source.digest is not None:
            found = self._folder.find(self._name(source.digest, recipients), self._known)
            if found is not None:
                self._list_file(source, found, source.digest, source.size)
                return
        try:
            with self._open(source) as file:
                content = self._put(file, recipients)
        except NotFound:
            if source.optional:
                return
            raise Unavailable(f"backup, {source.place}: expected a file, got none") from None
        if source.digest is not None and content.digest != source.digest:
            raise Tampered(f"backup, {source.place}: expected {source.digest} as sealed, got {content.digest}")
        self._list_file(source, content.stored, content.digest, content.size)

    @contextmanager
    def _open(self, source: BackupSource) -> Iterator[int]:
        """Yield a descriptor of a regular file. No component of a file of the home may be a link.

        A link to the keyring would put its keys among the data, which one person alone can decrypt.

        Raises:
            NotFound: the file is missing.
            Tampered: a link or another kind of file is in its place.
        """
        place = source.place
        root = self._home if source.path.startswith("home/") else place.parent
        with disk.disk_errors(f"backup, {place}"):
            try:
                folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFound(f"backup, {root}: expected a folder, got none") from None
            try:
                with disk.open_plain(folder, str(place.relative_to(root)), "backup") as file:
                    yield file
            finally:
                os.close(folder)

    def add_bytes(self, path: str, data: bytes) -> None:
        with disk.memory_file(data, "backup") as file:
            content = self._put(file, self._recipients.data)
        self._list_file(BackupSource(path, Path(path), 0o600), content.stored, content.digest, content.size)

    def _list_file(self, source: BackupSource, stored: StoredObject, digest: str, size: int) -> None:
        self._list_object(stored)
        self._files.append(BackupFile(source.path, source.mode, stored.name, digest, size))

    def put_bytes(self, data: bytes, recipients: tuple[str, ...] | None = None) -> StoredObject:
        """Add an object that the index does not list, such as the index itself."""
        with disk.memory_file(data, "backup") as file:
            stored = self._put(file, recipients or self._recipients.data).stored
        self._list_object(stored)
        return stored

    def put_twice(self, data: bytes, outer: str, inner: str) -> StoredObject:
        """Add an object that only both recipients together can decrypt.

        The one-time identity is a recipient of both layers. Both are decrypted with it before the object is listed.
        """
        encrypted, opened = bytearray(), bytearray()
        with disk.memory_file(data, "backup") as file:
            encrypt(file, encrypted.extend, (inner, recipient_of(self._one_time)))
        with disk.memory_file(bytes(encrypted), "backup") as file:
            decrypt(file, opened.extend, [self._one_time], "keyring")
        if opened != data:
            raise Tampered("backup of the keyring: expected the bytes that were written, got others")
        return self.put_bytes(bytes(encrypted), (outer,))

    def _put(self, file: int, recipients: tuple[str, ...]) -> Content:
        return self._folder.put(
            file, recipients, self._one_time, lambda digest: self._name(digest, recipients), self._known
        )

    def _list_object(self, stored: StoredObject) -> None:
        if stored.name not in self.objects and stored.name not in self._earlier_names:
            self.new_bytes += stored.size
        self.objects[stored.name] = stored

    def _name(self, digest: str, recipients: tuple[str, ...]) -> str:
        """Return the first part of an object's name, which only this appliance can compute from a content."""
        return derive_key(self._key, digest.encode(), " ".join(sorted(recipients)).encode()).hex()


def _add_sealed(writer: _Writer, places: Places, state: State) -> Iterator[str]:
    """Add the sealed folders. Yield the subjects whose folder is missing and may be, since they are revoked."""
    artifacts = Artifacts(places.home, places.shared)
    added: set[str] = set()
    for subject, digest, is_revoked in list_sealed_folders(state):
        try:
            folder = artifacts.path(digest)
        except NotFound as error:
            if not is_revoked:
                action = "put the folder back, or revoke it if it was destroyed on purpose"
                raise Unavailable(f"backup, {subject}: {error.message}; {action}") from None
            yield subject
            continue
        if digest not in added:
            added.add(digest)
            _add_folder(writer, artifacts, folder, digest)


def _add_folder(writer: _Writer, artifacts: Artifacts, folder: Path, digest: str) -> None:
    root, manifest = f"artifacts/{folder.name}", artifacts.read_manifest(digest)
    writer.add_folder(root, 0o555)
    size = len(encode_manifest(manifest))
    writer.add(BackupSource(f"{root}/{MANIFEST_PATH}", folder / MANIFEST_PATH, 0o444, digest, size))
    for file in manifest.files:
        for depth in range(1, file.path.count("/") + 1):
            writer.add_folder(f"{root}/{'/'.join(file.path.split('/')[:depth])}", 0o555)
        writer.add(BackupSource(f"{root}/{file.path}", folder / file.path, 0o444, file.digest, file.size))
    for beside in sorted(folder.parent.glob(f"{folder.name}.*")):
        writer.add(BackupSource(f"artifacts/{beside.name}", beside, 0o444))


def _list_other_files(places: Places, state: State, *, with_checkpoints: bool) -> Iterator[BackupSource]:
    """Yield the training checkpoints and steps of runs, and the files of the home that are no secrets."""
    if with_checkpoints:
        for digest in sorted(checkpoints.list_needed_checkpoints(state)):
            name = digest.removeprefix("sha256:")
            place = places.shared / "checkpoints" / name
            if place.exists():
                yield BackupSource(f"checkpoints/{name}", place, 0o400, digest, place.stat().st_size, optional=True)
        for run in state.runs.values():
            yield BackupSource(
                f"steps/{run.id}.jsonl", places.shared / "steps" / f"{run.id}.jsonl", 0o600, optional=True
            )
    for name in HOME_FILES:
        yield BackupSource(f"home/{name}", places.home / name, 0o600, optional=True)
    for name in HOME_FOLDERS:
        for path in sorted((places.home / name).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield BackupSource(f"home/{path.relative_to(places.home)}", path, stat.S_IMODE(path.stat().st_mode))
    for setting, place in places.certificates.items():
        yield BackupSource(f"settings/{setting}", place, 0o644)


def _add_keyring(writer: _Writer, places: Places, recipients: Recipients) -> tuple[KeyringPair, ...]:
    """Add the keyring and the other secrets once for each pair of administrators."""
    data = _pack_secrets(places)
    return tuple(
        KeyringPair(writer.put_twice(data, outer, inner).name, outer, inner)
        for outer, inner in combinations(recipients.keyring, 2)
    )


def _pack_secrets(places: Places) -> bytes:
    """Return a tar of the keyring, the settings file and the secret files that it names."""
    found = {f"keys/{path.name}": path for path in sorted(places.keys.iterdir()) if path.suffix in (".pem", ".secret")}
    if (places.home / SETTINGS_FILE).exists():
        found[f"home/{SETTINGS_FILE}"] = places.home / SETTINGS_FILE
    found |= {f"settings/{setting}": place for setting, place in places.secrets.items()}
    packed = io.BytesIO()
    with disk.disk_errors("keyring"), tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, place in found.items():
            data = place.read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    if packed.tell() > MAX_KEYRING_BYTES:
        raise Unavailable(f"backup of the keyring: expected at most {MAX_KEYRING_BYTES} bytes, got more")
    return packed.getvalue()


WORK_FOLDER = ".backup"
"""Name of the private folder of a home for the decrypted database, while a backup is made or verified."""


@contextmanager
def work_folder(home: Path) -> Iterator[Path]:
    """Yield an empty, private folder in the home, which is emptied afterwards and at the next backup.

    Raises:
        Conflict: another backup of this appliance is being made or verified.
    """
    work = home / WORK_FOLDER
    with disk.disk_errors(f"backup, {work}"):
        disk.make_folder(work)
        lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with hold_lock(lock, f"backup of {home}: expected no other to be made or verified at this time, got another one"):
        _empty(work)
        try:
            yield work
        finally:
            _empty(work)


def empty_work_folder(home: Path) -> None:
    """Remove the database that an interrupted backup left here, since a text in it may be erased later."""
    if (home / WORK_FOLDER).is_dir():
        with suppress(Conflict), work_folder(home):
            pass


def _empty(folder: Path) -> None:
    with disk.disk_errors(f"backup, {folder}"):
        for path in folder.iterdir():
            disk.remove_tree(path)
