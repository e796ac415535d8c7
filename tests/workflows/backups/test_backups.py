"""Backups on SQLite and PostgreSQL: what is in one opens to what was copied, and nothing else is ever listed."""

from __future__ import annotations

import io
import os
import re
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import text

from appliance.domain.operations import ArtifactsChecked
from appliance.errors import ApplianceError, BadInput, Conflict, Denied, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import HASH_BYTES
from appliance.formats.log.backup import Backup, BackupFile, sign_backup
from appliance.store.database.engine import open_engine
from appliance.store.files import disk
from appliance.store.files.encryption import make_identity, recipient_of
from appliance.store.files.keyring import Keyring
from appliance.store.ledger import copies, log_state
from appliance.store.ledger.snapshots import Snapshots
from appliance.wiring.building import open_keys, open_ledger, open_snapshots
from appliance.workflows import integrity
from appliance.workflows.backups import listing, making, opening
from appliance.workflows.core.context import describe_code
from appliance.workflows.core.record import append
from scripts.kit.postgres import Server, find_binaries, postgres
from tests.kit.backups import ALL, ANNA, BORIS, CLEO, DATA, RECIPIENTS, BackedUp, on_postgresql, on_sqlite, serving

__all__ = ["postgres"]

KINDS = ("sqlite", "postgresql")


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackedUp:
    if request.param == "sqlite":
        return on_sqlite(tmp_path, "serving")
    server = cast(Server, request.getfixturevalue("postgres"))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{find_binaries()}")
    return on_postgresql(tmp_path, server, "sealed")


@pytest.fixture
def small(tmp_path: Path) -> BackedUp:
    return on_sqlite(tmp_path, "imported")


def open_files(made: BackedUp, backup: Backup) -> dict[str, bytes]:
    """Every file of a backup by path, decrypted."""
    found = {}
    for file in opening.open_index(made.folder, backup, [DATA]).files:
        data = bytearray()
        opening.copy_file(made.folder, backup, file, [DATA], data.extend)
        found[file.path] = bytes(data)
    return found


def objects(made: BackedUp) -> set[str]:
    return {path.name for path in (made.folder.path / "objects").iterdir()}


def test_a_backup_opens_to_what_the_home_has(made: BackedUp) -> None:
    backup = made.make().backup
    assert made.verify(backup, *ALL) == opening.BackupVerification(backup, opened=True, keyring=True)
    files = open_files(made, backup)
    sealed = {path for path in (made.home / "artifacts").rglob("*") if path.is_file() and ".pending" not in path.name}
    assert {path: files[f"artifacts/{path.relative_to(made.home / 'artifacts')}"] for path in sealed} == {
        path: path.read_bytes() for path in sealed
    }
    assert files["home/trust.json"] == (made.home / "trust.json").read_bytes()
    secrets = opening.open_keyring(made.folder, backup, [ANNA, CLEO])
    assert {path for path in secrets if path.startswith("keys/")} == {
        f"keys/{path.name}" for path in (made.home / "keys").iterdir()
    }
    assert secrets["keys/log.pem"] == (made.home / "keys/log.pem").read_bytes()
    assert not any(path.startswith("keys/") for path in files)


@pytest.mark.thorough
def test_a_second_backup_writes_only_what_is_new(made: BackedUp) -> None:
    first, before = made.make(), objects(made)
    second = made.make()
    kept = {one.name for one in first.backup.objects} & {one.name for one in second.backup.objects}
    index = opening.open_index(made.folder, second.backup, [DATA])
    sealed = {file.object for file in index.files if file.path.startswith("artifacts/")}
    assert sealed <= kept and sealed
    assert second.new_bytes < first.new_bytes
    new = objects(made) - before
    assert new == {one.name for one in second.backup.objects} - {one.name for one in first.backup.objects}
    assert [one.name for one in listing.list_backups(made.folder, made.known_keys())] == [
        first.backup.name,
        second.backup.name,
    ]


@pytest.mark.thorough
def test_a_backup_beside_a_running_service_is_of_one_moment(made: BackedUp) -> None:
    """Entries are appended meanwhile, and the copied log is whole and signed as the manifest says."""
    ended = threading.Event()
    with serving(made.settings) as context:
        body = ArtifactsChecked(folders=0, size=0, changed=(), unread=())

        def write() -> None:
            while not ended.is_set():
                append(context, body)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            taken = [made.make() for _ in range(3)]
        finally:
            ended.set()
            writer.join()
        last = context.ledger.state.size
    sizes = [one.entries for one in taken]
    assert sizes == sorted(set(sizes)) and sizes[-1] < last
    for one in taken:
        assert made.verify(one.backup, *ALL).keyring


def test_nobody_opens_the_keyring_alone(small: BackedUp) -> None:
    backup = small.make().backup
    assert len(backup.keyring) == 3, "one for each pair of administrators"
    for alone in ((DATA,), (ANNA,), (BORIS,), (DATA, ANNA), (DATA, CLEO), (make_identity(), BORIS)):
        with pytest.raises(Denied, match="two administrators"):
            opening.open_keyring(small.folder, backup, alone)
    for pair in ((ANNA, BORIS), (CLEO, ANNA), (BORIS, CLEO)):
        assert "keys/log.pem" in opening.open_keyring(small.folder, backup, pair)


def test_an_administrator_of_the_keyring_does_not_open_the_data(small: BackedUp) -> None:
    backup = small.make().backup
    with pytest.raises(Denied, match="expected the identity of one of age1"):
        small.verify(backup, ANNA, BORIS)
    assert not small.verify(backup, DATA).keyring
    assert small.verify(backup) == opening.BackupVerification(backup, opened=False, keyring=False)


def test_secret_files_go_with_the_keyring(small: BackedUp) -> None:
    """The settings may hold a database's password, and a certificate's key speaks for the service."""
    (small.home / "appliance.toml").write_text('operations_token = "token"\n')
    (small.home / "token").write_text("secret token")
    backup = small.make().backup
    secrets = opening.open_keyring(small.folder, backup, [ANNA, BORIS])
    assert secrets["settings/operations_token"] == b"secret token"
    assert secrets["home/appliance.toml"] == b'operations_token = "token"\n'
    assert not any(b"secret token" in data for data in open_files(small, backup).values())


def test_a_session_is_in_no_copy(made: BackedUp) -> None:
    engine = open_engine(made.settings.database_url.get_secret_value())
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO sessions (digest, principal, keyid, expires_at, entry) VALUES (:d, 'anna', 'k', 't', 1)"),
            {"d": b"D" * 32},
        )
    engine.dispose()
    database = open_files(made, made.make().backup)["database"]
    assert b"D" * 32 not in database and b"D".hex().encode() * 32 not in database


def test_an_erased_text_is_in_no_newer_copy(tmp_path: Path) -> None:
    made = on_sqlite(tmp_path, "imported")
    with made.site() as site:
        (text,) = (one for one in site.disclosures if one.text == "Name the clause.")
        with_text = made.make().backup
        erased = site.erase(text.commitment)
        without = made.make().backup
    told = text.text
    assert told.encode() in open_files(made, with_text)["database"]
    assert told.encode() not in open_files(made, without)["database"]
    assert (with_text.erasure, without.erasure) == (None, erased.index)


def test_a_text_that_is_erased_while_the_backup_is_made_is_in_no_listed_backup(
    small: BackedUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small.site() as site:
        (disclosed,) = (one for one in site.disclosures if one.text == "Name the clause.")
        pack = making._pack_secrets

        def erase_then_pack(places: making.Places) -> bytes:
            site.erase(disclosed.commitment)
            return pack(places)

        monkeypatch.setattr(making, "_pack_secrets", erase_then_pack)
        with pytest.raises(Conflict, match="make the backup again"):
            small.make()
        monkeypatch.undo()
        assert small.folder.names() == []
        assert small.make().backup.erasure == site.state.size - 1


def test_a_copy_that_an_interrupted_backup_left_is_removed_at_a_start(small: BackedUp) -> None:
    making.empty_work_folder(small.home)
    assert not (small.home / making.WORK_FOLDER).exists()
    with making.work_folder(small.home) as work:
        (work / "database").write_bytes(b"a copy in the clear")
        making.empty_work_folder(small.home)
        assert (work / "database").exists(), "a backup that is being made keeps it"
    (small.home / making.WORK_FOLDER / "database").write_bytes(b"left")
    making.empty_work_folder(small.home)
    assert list((small.home / making.WORK_FOLDER).iterdir()) == []


def test_training_checkpoints_that_are_needed_are_copied(tmp_path: Path) -> None:
    made = on_sqlite(tmp_path, "imported")
    with made.site() as site:
        run = site.request_run()
        site.add(site.started(run))
        data = b"a training checkpoint"
        (made.home / "steps").mkdir(exist_ok=True)
        (made.home / "steps" / f"{run}.jsonl").write_bytes(b"{}\n")
        kept = made.home / "checkpoints" / digest_bytes(data).removeprefix("sha256:")
        kept.write_bytes(data)
        site.add(site.checkpointed(run, checkpoint=digest_bytes(data)))
    paths = {f"checkpoints/{kept.name}", f"steps/{run}.jsonl"}
    files = open_files(made, made.make().backup)
    assert paths <= files.keys() and files[f"checkpoints/{kept.name}"] == data
    assert not paths & open_files(made, made.make(with_checkpoints=False).backup).keys()
    kept.unlink()
    assert paths - {f"checkpoints/{kept.name}"} <= open_files(made, made.make().backup).keys()


def test_recipients_that_are_too_few_or_no_keys(small: BackedUp) -> None:
    data, (anna, boris, _) = RECIPIENTS.data, RECIPIENTS.keyring
    wrong = (f"{anna[:-1]}{'q' if anna[-1] != 'q' else 'p'}", boris)
    for recipients in (
        making.Recipients((), (anna, boris)),
        making.Recipients(data, (anna,)),
        making.Recipients(data, (anna, anna)),
        making.Recipients(data, wrong),
        making.Recipients(("ssh-ed25519 AAAA",), (anna, boris)),
    ):
        with pytest.raises(BadInput, match="recipient"):
            making.create(small.places, small.folder, recipients, small.clock)
    assert not small.folder.path.exists()


def test_new_recipients_get_objects_of_their_own(small: BackedUp) -> None:
    """An object that only the former recipient opens is of no use to the new one."""
    small.make()
    other = make_identity()
    recipients = making.Recipients((recipient_of(other),), RECIPIENTS.keyring)
    backup = making.create(small.places, small.folder, recipients, small.clock).backup
    assert small.verify(backup, other, ANNA, BORIS).keyring
    with pytest.raises(Denied):
        small.verify(backup, DATA)


@contextmanager
def altered(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    yield
    path.write_bytes(before)


@pytest.mark.thorough
def test_altered_and_missing_objects_are_found(small: BackedUp) -> None:
    backup = small.make().backup
    index = opening.open_index(small.folder, backup, [DATA])
    for name in (backup.index, backup.keyring[0].object, index.files[0].object):
        path = small.folder.path / "objects" / name
        data = path.read_bytes()
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        for other in (flipped, data[:-20], data + b"x", b"", data[:100] + bytes([data[100] ^ 1]) + data[101:]):
            with altered(path, other):
                for identities in ((), ALL):
                    with pytest.raises(Tampered):
                        small.verify(backup, *identities)
        path.rename(path.with_suffix(".away"))
        with pytest.raises(Tampered, match="not complete"):
            small.verify(backup)
        path.with_suffix(".away").rename(path)
    assert small.verify(backup, *ALL).keyring


def test_a_manifest_of_another_signer_or_name_is_not_used(small: BackedUp) -> None:
    backup = small.make().backup
    path = small.folder.path / f"{backup.name}.json"
    signed = path.read_bytes()
    adapter_key = Keyring(small.home / "keys").open_signer("file:adapter")
    for data in (sign_backup(backup, adapter_key), signed.replace(b"payload", b"paylaod", 1), b"{}", b""):
        with altered(path, data):
            (listed,) = listing.list_backups(small.folder, small.known_keys())
            assert listed.backup is None and listed.problem
            with pytest.raises(Tampered):
                small.verify(backup)
    renamed = path.with_name("20200101T000000Z.json")
    path.rename(renamed)
    with pytest.raises(Tampered, match="expected the manifest of this name"):
        small.verify(replace(backup, name="20200101T000000Z"))


def test_a_name_that_no_backup_has_is_no_tampering(small: BackedUp) -> None:
    backup = small.make().backup
    for name in (f"{backup.name}.json", "newest", ""):
        with pytest.raises(BadInput, match="expected a time such as"):
            small.verify(replace(backup, name=name))


def test_an_object_that_was_damaged_is_written_again(small: BackedUp) -> None:
    """The older backup has lost it; the new one is whole."""
    first = small.make().backup
    index = opening.open_index(small.folder, first, [DATA])
    damaged = next(file for file in index.files if file.path.startswith("artifacts/"))
    path = small.folder.path / "objects" / damaged.object
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    second = small.make().backup
    assert damaged.object not in second.by_name
    assert small.verify(second, *ALL).keyring
    with pytest.raises(Tampered):
        small.verify(first)


def test_a_changed_or_missing_sealed_folder_makes_no_backup(small: BackedUp) -> None:
    with small.site() as site:
        digest = site.state.datasets.get("clauses@1").digest  # type: ignore[union-attr]
    folder = small.home / "artifacts" / digest.removeprefix("sha256:")
    file = folder / "rows.jsonl"
    for path in (folder, file):
        path.chmod(0o700)
    with altered(file, file.read_bytes()[:-1] + b"x"), pytest.raises(Tampered, match="as sealed"):
        small.make()
    folder.rename(folder.with_name(".away"))
    with pytest.raises(Unavailable, match=r"dataset:clauses@1.*put the folder back"):
        small.make()
    folder.with_name(".away").rename(folder)
    assert small.folder.names() == []
    assert small.make().missing == ()


def test_a_revoked_dataset_s_folder_may_be_destroyed(small: BackedUp) -> None:
    with small.site() as site:
        site.revoke_dataset()
        digest = site.state.datasets.get("clauses@1").digest  # type: ignore[union-attr]
    disk.remove_tree(small.home / "artifacts" / digest.removeprefix("sha256:"))
    made = small.make()
    assert made.missing == ("dataset:clauses@1",)
    assert small.verify(made.backup, *ALL).keyring
    assert small.restore(made.backup, small.home.with_name("new")).entries == made.entries


def test_a_log_with_a_changed_entry_makes_no_backup(small: BackedUp) -> None:
    with sqlite3.connect(small.home / "ledger.db") as connection:
        (trigger,) = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE name = 'entries_refuse_update'"
        ).fetchall()
        connection.execute("DROP TRIGGER entries_refuse_update")
        connection.execute(
            "UPDATE entries SET bytes = CAST(replace(bytes, 'anna', 'ANNA') AS BLOB) WHERE \"index\" = 1"
        )
        connection.execute(trigger[1])
    with pytest.raises(Tampered):
        small.make()
    assert small.folder.names() == []


@pytest.fixture
def snapshots(small: BackedUp, monkeypatch: pytest.MonkeyPatch) -> Snapshots:
    """Return the service's snapshot of the whole log."""
    monkeypatch.setattr(integrity, "LEAST", 0)
    settings, trust, code = small.settings, small.trust, describe_code()
    keys = open_keys(settings, trust.origin)
    with closing(open_ledger(settings, trust.origin, trust.log_key, keys, code)) as ledger:
        ledger.load()
        ledger.seal_snapshot(1)
    return open_snapshots(settings, trust.origin, code, keys)


def test_entries_of_the_snapshot_are_not_replayed(
    small: BackedUp, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = small.make().entries
    monkeypatch.setattr(log_state, "apply", lambda *_: pytest.fail("an entry was replayed"))
    backup = (made := small.make(snapshots=snapshots)).backup
    monkeypatch.undo()
    assert made.entries == expected
    assert small.verify(backup, *ALL).keyring


@pytest.mark.parametrize("table", ["entries", "documents"])
def test_beside_a_snapshot_a_changed_row_makes_no_backup(small: BackedUp, snapshots: Snapshots, table: str) -> None:
    name = f"{table}_refuse_update"
    with sqlite3.connect(small.home / "ledger.db") as connection:
        ((trigger,),) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchall()
        connection.execute(f"DROP TRIGGER {name}")
        connection.execute(f"UPDATE {table} SET bytes = CAST(bytes || ' ' AS BLOB)")
        connection.execute(trigger)
    with pytest.raises(Tampered):
        small.make(snapshots=snapshots)
    assert small.folder.names() == []


def test_the_folder_names_nothing_of_the_content(small: BackedUp) -> None:
    """Paths and digests of contents are in the index, which is encrypted; the manifest has none of them."""
    backup = small.make().backup
    seen = (small.folder.path / f"{backup.name}.json").read_bytes()
    stored = b"".join((small.folder.path / "objects" / name).read_bytes() for name in objects(small))
    names = " ".join(objects(small))
    for file in opening.open_index(small.folder, backup, [DATA]).files:
        digest = file.digest.removeprefix("sha256:")
        for secret in (file.path, digest):
            assert secret not in names
            assert secret.encode() not in stored
            assert secret.encode() not in seen
    assert b"clauses" not in seen


def test_modes_and_owners_of_a_folder_are_private(small: BackedUp) -> None:
    small.make()
    for path in (small.folder.path, *small.folder.path.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_two_backups_at_once_are_refused(small: BackedUp) -> None:
    with small.folder.writing(), pytest.raises(Conflict, match="another process"):
        small.make()
    with making.work_folder(small.home), pytest.raises(Conflict, match="another one"):
        small.make()
    assert small.make().backup.name in small.folder.names()
    assert list((small.home / making.WORK_FOLDER).iterdir()) == [], "no decrypted copy stays"


def test_leftovers_are_removed_and_others_stay(small: BackedUp) -> None:
    first = small.make().backup
    folder = small.folder.path
    for left in (folder / ".partial-1", folder / "objects/.partial-2", folder / "objects" / f"{'0' * 64}-{'0' * 16}"):
        left.write_bytes(b"left by a power cut")
    (small.home / making.WORK_FOLDER / "database").write_bytes(b"a copy in the clear")
    second = small.make().backup
    assert objects(small) == first.by_name.keys() | second.by_name.keys()
    assert {path.name for path in folder.iterdir()} == {
        *("lock", "objects"),
        *(f"{one.name}.json" for one in (first, second)),
    }


def test_a_removed_backup_takes_what_only_it_has(small: BackedUp) -> None:
    first, second = small.make().backup, small.make().backup
    listing.remove(small.folder, first.name)
    assert small.folder.names() == [second.name]
    assert objects(small) == second.by_name.keys()
    assert small.verify(second, *ALL).keyring
    with pytest.raises(NotFound, match=f"backup {first.name}"):
        listing.remove(small.folder, first.name)


def test_the_newest_backup_is_removed_only_if_somebody_says_so(small: BackedUp) -> None:
    first, second = small.make().backup, small.make().backup
    with pytest.raises(Conflict, match="got the newest; make another one first, or add --newest"):
        listing.remove(small.folder, second.name)
    assert small.folder.names() == [first.name, second.name]
    listing.remove(small.folder, second.name, newest=True)
    assert small.folder.names() == [first.name]


def test_a_manifest_that_cannot_be_read_keeps_all_objects(small: BackedUp) -> None:
    first = small.make().backup
    path = small.folder.path / f"{first.name}.json"
    data = path.read_bytes()
    path.write_bytes(b"{}")
    small.make()
    path.write_bytes(data)
    assert small.verify(first, *ALL).keyring


def test_new_cosignatures_during_the_copy_are_waited_out(small: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes and database are of one moment, or no backup is made."""
    answers: Iterator[dict[str, bytes]] = iter([{"a": b"1"}, {"a": b"2"}, {"a": b"3"}, {"a": b"3"}])
    copied, beside = copies.copy_database(
        small.places.database_url, small.home / "copy", small.trust, lambda: next(answers)
    )
    assert beside == {"a": b"3"} and copied.state.size > 0
    count = iter(range(1_000))
    with pytest.raises(Unavailable, match="new cosignature"):
        copies.copy_database(small.places.database_url, small.home / "copy2", small.trust, lambda: next(count))


def test_a_disk_that_fails_lists_no_backup(small: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small.make().backup
    sync = os.fsync
    count = 0

    def fail(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match="No space left"):
        small.make()
    monkeypatch.undo()
    assert small.folder.names() == [first.name]
    assert small.verify(first, *ALL).keyring
    small.make()


def test_a_disk_that_writes_other_bytes_is_noticed(small: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object is opened again from the disk before a manifest names it."""
    write, count = disk.write_all, 0

    def corrupt(descriptor: int, data: bytes | memoryview) -> None:
        nonlocal count
        count += 1
        write(descriptor, bytes(data)[:-1] + bytes([bytes(data)[-1] ^ 1]) if count == 2 else data)

    monkeypatch.setattr("appliance.store.files.backups.disk.write_all", corrupt)
    with pytest.raises(Tampered):
        small.make()
    assert small.folder.names() == []


def test_a_keyring_with_a_path_outside_is_refused() -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../evil"), io.BytesIO(b""))
    with pytest.raises(Tampered, match="plain files"):
        opening._unpack_secrets(packed.getvalue())
    for path in ("../evil", "/etc/passwd", "a//b", "./a"):
        with pytest.raises(BadInput, match="plain relative path"):
            BackupFile(path, 0o600, f"{'0' * 64}-{'0' * 16}", f"sha256:{'0' * 64}", 1)


@pytest.mark.thorough
def test_a_dump_with_other_entries_is_refused(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = on_postgresql(tmp_path, postgres, "staffed")
    backup = made.make().backup
    dump = tmp_path / "dump"
    dump.write_bytes(open_files(made, backup)["database"])
    assert opening.check_database(backup, dump, made.trust) is None
    size = int(backup.checkpoint.splitlines()[1])
    read = copies._read_leaves

    for change in (
        lambda: ((index, leaf) for index, leaf in read(dump) if index != size - 1),
        lambda: ((index, bytes(HASH_BYTES) if index == 1 else leaf) for index, leaf in read(dump)),
        lambda: ((index + 1, leaf) for index, leaf in read(dump)),
    ):
        monkeypatch.setattr(copies, "_read_leaves", lambda _, change=change: change())
        with pytest.raises(Tampered, match="database dump"):
            opening.check_database(backup, dump, made.trust)
    monkeypatch.undo()
    dump.write_bytes(dump.read_bytes()[: dump.stat().st_size // 2])
    with pytest.raises(ApplianceError, match="database dump"):
        opening.check_database(backup, dump, made.trust)


@pytest.mark.thorough
def test_a_password_is_in_no_command_line(postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = on_postgresql(tmp_path, postgres, "initialized")
    seen: list[str] = []
    run = copies.subprocess.run

    def record(command: list[str], **options: object) -> object:
        seen.extend(command)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(copies.subprocess, "run", record)
    made.make()
    assert any("--snapshot=" in word for word in seen)
    assert not any(re.search(password, word) for word in seen for password in postgres.passwords.values())
