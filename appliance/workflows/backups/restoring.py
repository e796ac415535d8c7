"""The restore of a backup into a new home, which stays stopped until a person confirms it.

All files are decrypted and verified in a staging folder, and then moved to their places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from appliance.access.cedar import CedarPolicies
from appliance.domain.audit.report import require_cedar_policies
from appliance.domain.audit.verify import verify_log
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.records.site import LogKey
from appliance.domain.core.state import State
from appliance.domain.retention import LogArchived, TextErased
from appliance.errors import ApplianceError, BadInput, Conflict, NotFound, Tampered
from appliance.formats.core.merkle import Frontier
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log.backup import DATABASE_PATH, Backup, BackupFile, Index
from appliance.formats.log.checkpoint import Checkpoint, claimed_size, open_checkpoint
from appliance.formats.log.export import ParsedExport, hash_line, read_removed
from appliance.formats.log.trust import Trust, encode_trust
from appliance.store.database.engine import using_engine
from appliance.store.database.tables import REVISION
from appliance.store.files import disk
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.backups import BackupFolder
from appliance.store.files.encryption import AgeIdentity
from appliance.store.files.keyring import Keyring
from appliance.store.files.known_checkpoints import MAX_NOTE_BYTES, KnownCheckpoints
from appliance.store.files.lock import hold_lock
from appliance.store.ledger.checks import reading
from appliance.store.ledger.copies import LogCopy, erase_texts, read_database, restore_dump, roots_at
from appliance.workflows.backups.contents import check_folders, check_keys
from appliance.workflows.backups.listing import read_backup
from appliance.workflows.backups.making import Places
from appliance.workflows.backups.moving import (
    MARK,
    MOVES,
    STAGING,
    TRUST_FILE,
    Target,
    move_content,
    record_moves,
    take_back_moves,
)
from appliance.workflows.backups.opening import (
    Fill,
    check_database,
    compare_log,
    copy_file,
    open_index,
    open_keyring,
    write_file,
)

MOVED_FOLDER = "restored"
"""The folder of a restored home for files that the settings place outside of it."""


@dataclass(frozen=True)
class RestoreRequest:
    """A request of a person to restore a backup.

    `trust`: the trust file, kept elsewhere than the backup. `log_keys`: the log key that the person relies on.
    `erasures`: a newer export of the log, whose erasures are repeated. `checkpoints`: signed checkpoints of the log
    from the machines of witnesses and of people.
    """

    name: str
    identities: Sequence[AgeIdentity]
    home: Path
    trust: Trust
    log_keys: tuple[LogKey, ...]
    erasures: Path | None = None
    checkpoints: Sequence[Path] = ()


@dataclass
class RestoredHome:
    """A restored home.

    `erased`: number of texts that a newer export erased. `lost`: what the backup lacks and others have seen, in words.
    `moved`: files that the settings place outside of the home, and that were put into `MOVED_FOLDER`.
    """

    backup: Backup
    home: Path
    entries: int
    files: int
    erased: int = 0
    lost: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)


def restore(
    folder: BackupFolder,
    request: RestoreRequest,
    open_places: Callable[[Path], Places],
    clock: Callable[[], datetime],
    say: Callable[[str], None] = lambda _: None,
) -> RestoredHome:
    """Restore a backup into a new home, which stays stopped until `confirm`.

    `open_places` reads the settings of a home. Everything is written to a folder in the home, verified and moved.

    Raises:
        Conflict: the home is not empty, or the database has tables.
        Denied: the identities do not open the backup's data, or not its keyring.
        Tampered: something in the backup is not what was signed, or a key does not fit.
    """
    home = request.home.expanduser().absolute()
    _check_empty(home)
    backup = read_backup(folder, request.name, request.log_keys)
    if backup.revision != REVISION:
        raise Conflict(
            f"backup {backup.name}, tables: expected revision {REVISION}, got {backup.revision}; restore it with the "
            f"build {backup.build}, then upgrade"
        )
    index = open_index(folder, backup, request.identities)
    secrets = open_keyring(folder, backup, request.identities)
    with _staging(home) as staged, disk.disk_errors(f"restore to {home}"), ExitStack() as stack:
        restored = RestoredHome(backup, home, entries=0, files=len(index.files) + len(secrets))
        layout = stack.enter_context(_discarding(_Layout(home, staged)))
        if (settings := secrets.get("home/appliance.toml")) is not None:
            layout.write_bytes("home/appliance.toml", settings)
        layout.read_settings(open_places)
        for path, data in secrets.items():
            if path != "home/appliance.toml":
                layout.write_bytes(path, data)
        say("decrypts the files")
        for file in index.files:
            layout.write(file, partial(copy_file, folder, backup, file, request.identities))
        layout.finish_folders(index)
        say("verifies the log, the keys and the sealed folders")
        copied = _open_database(layout, backup, request.trust)
        restored.entries = copied.state.size
        _check_trust_file(staged, request.trust)
        check_folders(layout.artifacts, copied.state)
        with closing(layout.places.open_keys(request.trust.origin)) as keys:
            check_keys(keys, Keyring(layout.places.keys), layout.artifacts, copied.state)
        restored.erased, newer = _apply_erasures(layout, copied, request, encode_time(clock()), restored.lost)
        _compare_notes(layout, copied, request.checkpoints, restored.lost)
        if newer is not None:
            KnownCheckpoints(layout.places.witnessed).store_received(newer)
        restored.moved = layout.moved
        mark = RestoreMark(backup.name, restored.entries, encode_time(clock()), tuple(restored.lost))
        disk.write_file(staged / MARK, json.dumps(asdict(mark), indent=1).encode() + b"\n")
        layout.publish()
    return restored


_LEFT = "if an interrupted restore left that there, remove it"


def _check_empty(path: Path, *, is_home: bool = True) -> None:
    """Check that a folder is empty or absent. What an interrupted restore left in a home does not count.

    Of another folder only the staging folder does not count: the other files may be those of a service.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir() or _has_content(path, is_home=is_home):
        remedy = "" if is_home else f"; {_LEFT}"
        raise Conflict(f"restore to {path}: expected an empty or a new folder, got one with files{remedy}")
    if (owner := path.stat().st_uid) != os.geteuid():
        raise Conflict(f"restore to {path}: expected its owner, user id {owner}, to type this, got {os.geteuid()}")


def _has_content(path: Path, *, is_home: bool) -> bool:
    names = set(os.listdir(path))
    if not is_home:
        return not names <= {STAGING}
    return bool(names) and (STAGING not in names or TRUST_FILE in names)


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """Yield an empty, private folder in the home. The home is emptied when the restore fails, and at the next try.

    Raises:
        Conflict: another restore to this home is in progress.
    """
    is_new, staged = not home.exists(), home / STAGING
    with disk.disk_errors(f"restore to {home}"):
        _make_folders(home)
        staged.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with hold_lock(lock, f"restore to {home}: expected no other restore to it, got one in progress"):
        with disk.disk_errors(f"restore to {home}"):
            take_back_moves(home)
            for path in (*(path for path in home.iterdir() if path != staged), *staged.iterdir()):
                disk.remove_tree(path)
        try:
            yield staged
        except BaseException:
            for path in (*(path for path in home.iterdir() if path != staged), staged):
                disk.discard(path)
            if is_new:
                with suppress(OSError):
                    home.rmdir()
            raise


@contextmanager
def _discarding(layout: _Layout) -> Iterator[_Layout]:
    """Yield the places of a restore, and remove what was written outside of the home if the restore fails."""
    try:
        yield layout
    except BaseException:
        layout.discard()
        raise


def _make_folders(path: Path) -> None:
    """Create a folder and those above it that are missing, each private."""
    if not path.is_dir():
        _make_folders(path.parent)
        path.mkdir(mode=0o700)


class _Layout:
    """The places of a home that is being restored."""

    def __init__(self, home: Path, staged: Path) -> None:
        self._home, self.staged = home, staged
        self._outside: list[Target] = []
        self._written: list[Path] = []
        """Files and folders outside of the home that this restore has made."""
        self.moved: list[str] = []
        self.places: Places
        self._database: Target | None = None
        """SQLite's file; None for PostgreSQL."""

    def read_settings(self, open_places: Callable[[Path], Places]) -> None:
        """Read the restored settings, and find the places to write to.

        Raises:
            Conflict: a place outside of the home is not empty.
        """
        found = open_places(self.staged)
        url = found.database_url
        if url.startswith("sqlite:///"):
            self._database = self._place_database(Path(url.removeprefix("sqlite:///")))
            url = f"sqlite:///{self._database.staged}"
        files = dict(found.certificates), dict(found.secrets)
        for settings in files:
            for name, path in settings.items():
                settings[name] = self._place_file(name, path)
        self.places = Places(
            home=self.staged,
            shared=self._place(found.shared).staged,
            keys=self._place(found.keys).staged,
            witnessed=self._place(found.witnessed).staged,
            database_url=url,
            owner_url=found.owner_url,
            certificates=files[0],
            secrets=files[1],
            signer=found.signer,
        )
        for path in (self.places.shared, self.places.keys, self.places.witnessed):
            _make_folders(path)

    @property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.staged, self.places.shared)

    @property
    def owner_url(self) -> str:
        """Return the URL of the database with the login that can erase texts."""
        return self.places.owner_url if self._database is None else self.places.database_url

    @property
    def database(self) -> Path:
        """Return the file of the database's copy: SQLite's, or a dump that is removed once it is in the database."""
        return self.staged / ".dump" if self._database is None else self._database.staged

    def _place(self, path: Path) -> Target:
        """Return where to write a folder or file of this final path."""
        if path.is_relative_to(self.staged):
            return Target(path, self._home / path.relative_to(self.staged))
        if path.is_relative_to(self._home):
            return Target(self.staged / path.relative_to(self._home), path)
        _check_empty(path, is_home=False)
        target = Target(path / STAGING, path)
        disk.remove_tree(target.staged)
        self._written.append(target.staged)
        _make_folders(target.staged)
        self._outside.append(target)
        return target

    def _place_database(self, path: Path) -> Target:
        """Return where to write SQLite's file of this final path."""
        for root in (self.staged, self._home):
            if path.is_relative_to(root):
                return Target(self.staged / path.relative_to(root), self._home / path.relative_to(root))
        if os.path.lexists(path):
            raise Conflict(f"restore to {path}: expected no file, got one; {_LEFT}")
        _make_folders(path.parent)
        target = Target(path.with_name(f"{STAGING}-{path.name}"), path)
        target.staged.unlink(missing_ok=True)
        self._written.append(target.staged)
        return target

    def _place_file(self, setting: str, path: Path) -> Path:
        """Return where to write a file that a setting names. A place outside of the home is replaced by one in it."""
        for root in (self.staged, self._home):
            if path.is_relative_to(root):
                return self.staged / path.relative_to(root)
        self.moved.append(f"{setting}: {self._home / MOVED_FOLDER / path.name}, for {path}")
        return self.staged / MOVED_FOLDER / path.name

    def _find(self, path: str) -> Path:
        """Return where to write the file of a path in the backup.

        Raises:
            Tampered: the path is of no known place.
        """
        first, _, rest = path.partition("/")
        if path == DATABASE_PATH:
            return self.database
        if first == "settings" and rest in (found := {**self.places.certificates, **self.places.secrets}):
            return found[rest]
        if first == "home" and rest:
            return self.staged / rest
        if first in ("artifacts", "checkpoints", "steps") and rest:
            return self.places.shared / path
        if first in ("keys", "witnessed") and rest:
            return (self.places.keys if first == "keys" else self.places.witnessed) / rest
        raise Tampered(f"backup, {path}: expected a place of a home, got another one")

    def write(self, file: BackupFile, fill: Fill) -> None:
        """Create a file, and the folders above it."""
        place = self._find(file.path)
        _make_folders(place.parent)
        write_file(place, file, fill)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Create a secret file."""
        place = self.staged / "appliance.toml" if path == "home/appliance.toml" else self._find(path)
        _make_folders(place.parent)
        disk.write_file(place, data)

    def finish_folders(self, index: Index) -> None:
        """Give the folders of the index their modes, the deepest first."""
        for folder in sorted(index.folders, key=lambda folder: folder.path, reverse=True):
            place = self._find(folder.path)
            _make_folders(place)
            disk.sync_folder(place)
            place.chmod(folder.mode)

    def publish(self) -> None:
        """Make everything durable and move it to its place, the home last."""
        for root in (self.staged, *(target.staged for target in self._outside)):
            for path in (root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())):
                disk.sync_folder(path)
        database = self._database
        if database is not None and database.final.is_relative_to(self._home):
            database = None
        if self._outside or database is not None:
            record_moves(self._home, self._outside, database)
        if database is not None:
            os.rename(*database)
            self._written.append(database.final)
            disk.sync_folder(database.final.parent)
        for target in self._outside:
            move_content(*target, self._written)
        move_content(self.staged, self._home, [])
        (self._home / MOVES).unlink(missing_ok=True)
        disk.sync_folder(self._home)

    def discard(self) -> None:
        """Remove what was written outside of the home, such as decrypted keys."""
        for path in self._written:
            disk.discard(path)


def _open_database(layout: _Layout, backup: Backup, trust: Trust) -> LogCopy:
    """Verify the copy of the log; a dump is put into the database that the settings name."""
    copied = check_database(backup, layout.database, trust)
    if copied is None:
        _check_connection(layout.places.database_url)
        restore_dump(layout.database, layout.places.owner_url)
        layout.database.unlink()
        with using_engine(layout.places.database_url) as engine:
            copied = read_database(engine, trust)
        compare_log(backup, copied)
    return copied


def _check_connection(url: str) -> None:
    """Check that the service's login can connect, before the database is filled."""
    with using_engine(url, read_only=True) as engine, reading(engine) as connection:
        connection.exec_driver_sql("SELECT 1")


def _check_trust_file(staged: Path, trust: Trust) -> None:
    path = staged / TRUST_FILE
    if not path.exists() or path.read_bytes() != encode_trust(trust):
        raise Tampered("backup, trust.json: expected the trust file that was given, got another one")


def _apply_erasures(
    layout: _Layout, copied: LogCopy, request: RestoreRequest, now: str, lost: list[str]
) -> tuple[int, bytes | None]:
    """Erase the texts that a newer export of this log erased after the backup.

    Return the number of texts, and the export's checkpoint if it has entries that the backup lacks. These entries, and
    the archives among them, are added to `lost`.

    Raises:
        Tampered: the export is not valid, or does not continue the backup's log.
    """
    if request.erasures is None:
        return 0, None
    size = copied.state.size
    try:
        with request.erasures.open("rb") as stream, ParsedExport(stream) as export:
            _require_verified(export, request, now)
            checkpoint, frontier, later = export.checkpoint, *_read_later(export, request, copied)
    except OSError as error:
        raise BadInput(f"export, {request.erasures}: expected a readable file, got {error.strerror}") from None
    if frontier.size < size:
        raise BadInput(f"export, {request.erasures}: expected one of {size} entries or more, got {frontier.size}")
    if frontier.size > size:
        lost.append(f"the export has the entries {size} to {frontier.size - 1}, which the backup lacks")
    if archives := [str(entry.index) for entry in later if entry.type == LogArchived.type]:
        lost.append(
            f"records are in the restored log again that the entries {', '.join(archives)} archived: order their "
            "archive again once two administrators have restored the log"
        )
    erasures = [entry for entry in later if entry.type == TextErased.type]
    wanted = [one.removeprefix("text:") for entry in erasures for one in entry.subjects if one.startswith("text:")]
    with using_engine(layout.owner_url) as engine:
        erase_texts(engine, wanted)
    return len(wanted), checkpoint if frontier.size > size else None


def _require_verified(export: ParsedExport, request: RestoreRequest, now: str) -> None:
    report = require_cedar_policies(
        verify_log(
            export.entries(),
            export.document,
            export.disclosures(),
            export.checkpoint,
            request.trust,
            now=now,
            replay=lambda policy: CedarPolicies.confine(policy).decide,
            again=export.entries,
        ),
        accepted=False,
    )
    if report.verdict != "verified":
        raise Tampered(f"export, {request.erasures}: expected a verified one, got the verdict {report.verdict}")


def _read_later(export: ParsedExport, request: RestoreRequest, copied: LogCopy) -> tuple[Frontier, list[Entry]]:
    """Return the right edge of the export's tree, and the erasures and archives after the backup."""
    frontier, later = Frontier.EMPTY, []
    for count, data in enumerate(export.entries(), 1):
        frontier = frontier.append(hash_line(data))
        if count == copied.state.size and frontier.root() != copied.frontier.root():
            raise Tampered(f"export, {request.erasures}: expected the log of the backup, got a fork of it")
        if count <= copied.state.size or read_removed(data) is not None:
            continue
        entry = parse_entry(data)
        later += [entry] if entry.type in (LogArchived.type, TextErased.type) else []
    return frontier, later


def _compare_notes(layout: _Layout, copied: LogCopy, paths: Iterable[Path], lost: list[str]) -> None:
    """Compare the log with the checkpoints that others have seen, from the backup and from their own machines.

    A checkpoint of more entries than the backup has is added to `lost` and kept. The service does not start with it
    before two administrators have restored the log.

    Raises:
        Tampered: a checkpoint is of another log with the same keys.
        BadInput: a file is no checkpoint of this log.
    """
    given = {str(path): _read_note(path) for path in paths}
    known = KnownCheckpoints(layout.places.witnessed)
    notes = {f"witnessed {number}": data for number, data in enumerate(known.list_notes())}
    seen = {}
    for name, data in (notes | given).items():
        seen[name] = _open_note(name, data, copied.state)
    with using_engine(layout.places.database_url) as engine:
        roots = roots_at(
            engine, [checkpoint.size for checkpoint in seen.values() if checkpoint.size <= copied.state.size]
        )
    for name, checkpoint in seen.items():
        if checkpoint.size > copied.state.size:
            last = checkpoint.size - 1
            lost.append(f"{name}: others have seen the entries {copied.state.size} to {last}, which the backup lacks")
            if name in given:
                known.store_received(given[name])
        elif roots[checkpoint.size] != checkpoint.root:
            raise Tampered(f"{name}: expected the log that others have seen, got a fork of it", code="split-view")


def _read_note(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return disk.read_all(file.fileno(), MAX_NOTE_BYTES, f"checkpoint, {path}")
    except OSError as error:
        raise BadInput(f"checkpoint, {path}: expected a readable file, got {error.strerror}") from None


def _open_note(name: str, data: bytes, state: State) -> Checkpoint:
    """Return the checkpoint, signed by the keys that the log had at its size."""
    try:
        return open_checkpoint(data, *state.site.checkpoint_keys(claimed_size(data)))
    except ApplianceError as error:
        raise BadInput(f"{name}: expected a checkpoint of this log, got another file: {error.message}") from None


# --- the mark ---------------------------------------------------------------------------------------------------------


def refuse_restored(home: Path) -> None:
    """Refuse a home that was restored and not confirmed since.

    Raises:
        Conflict: it is one.
    """
    if os.path.lexists(home / MARK):
        raise Conflict(
            f"{home} was restored from a backup. A second service on the same log would make two histories of it. "
            "See that no other copy of this appliance runs and that none can start. Then type: "
            f"appliance backup confirm --home {home}",
            code="restored",
        )


@dataclass(frozen=True)
class RestoreMark:
    """The mark of a restored home: the backup, the size of its log, and the entries that it lacks, in words."""

    backup: str
    entries: int
    restored_at: str
    lost: tuple[str, ...]


def read_mark(home: Path) -> RestoreMark:
    """Return the mark of a restored home.

    Raises:
        NotFound: the home was not restored, or was confirmed.
        Tampered: the mark is another file.
    """
    try:
        found = json.loads((home / MARK).read_bytes())
        return RestoreMark(**{**found, "lost": tuple(found["lost"])})
    except FileNotFoundError:
        raise NotFound(f"{home}: expected a restored home that waits to be confirmed, got another one") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Tampered(f"{home / MARK}: expected the mark of a restore, got another file: {error}") from None


def confirm(home: Path) -> None:
    """Remove the mark, so that a service can start."""
    with disk.disk_errors(f"restored home, {home}"):
        (home / MARK).unlink()
        with suppress(OSError):  # both are left if the power was cut at the very end
            (home / MOVES).unlink(missing_ok=True)
            (home / STAGING).rmdir()
        disk.sync_folder(home)
