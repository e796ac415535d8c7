"""Backups in a folder to which another account can write, and of a home into which another account can write."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from appliance import wiring
from appliance.domain.governance.log_control import LogKeyRotated, RotateLogKey
from appliance.domain.queries.measures import BackupAges
from appliance.errors import BadInput, Tampered
from appliance.formats.core.timestamp import encode_time
from appliance.formats.log import backup as manifests
from appliance.formats.log.backup import open_backup, parse_backup, sign_backup
from appliance.store.files import backups
from appliance.store.files.known_checkpoints import KnownCheckpoints
from appliance.workflows.backups import listing, making, opening
from appliance.workflows.backups.making import WORK_FOLDER
from scripts.kit.log_builder import ORIGIN
from tests.kit.backups import ALL, BackedUp, on_sqlite, serving


@pytest.fixture
def made(tmp_path: Path) -> BackedUp:
    return on_sqlite(tmp_path, "imported")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_link_to_the_keyring_in_place_of_the_objects_removes_no_key(made: BackedUp) -> None:
    keys = made.places.keys
    before = names(keys)
    made.folder.path.mkdir()
    (made.folder.path / "objects").symlink_to(keys)
    with pytest.raises(Tampered, match="got a link or a file"):
        made.make()
    assert names(keys) == before

    (made.folder.path / "objects").unlink()
    backup = made.make().backup
    (made.folder.path / "objects").rename(made.folder.path / "old")
    (made.folder.path / "objects").symlink_to(keys)
    with pytest.raises(Tampered, match="got a link or a file"):
        listing.remove(made.folder, backup.name, newest=True)
    with pytest.raises(Tampered, match="got a link or a file"):
        made.folder.sweep()
    assert names(keys) == before


def test_a_link_in_place_of_the_folder_is_not_followed(made: BackedUp, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "objects").mkdir(parents=True)
    (other / "objects" / "file").touch()
    made.folder.path.symlink_to(other)
    with pytest.raises(Tampered, match="got a link or a file"):
        made.make()
    assert names(other / "objects") == ["file"]


@pytest.mark.parametrize("place", ["harness", "witnessed"])
def test_a_link_to_the_keyring_puts_no_key_into_the_data(made: BackedUp, place: str) -> None:
    """One person opens the data, and two open the keyring."""
    keys = made.places.keys
    if place == "harness":
        (made.home / "harness").symlink_to(keys)
    else:
        made.places.witnessed.mkdir(exist_ok=True)
        (made.places.witnessed / "a.note").symlink_to(keys / "log.pem")
    with pytest.raises(Tampered):
        made.make()
    assert made.folder.names() == []


@pytest.mark.thorough
def test_an_unsigned_manifest_is_not_parsed(made: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing costs a second and 140 MB for each MB of small values, and the service reads the folder regularly."""
    backup = made.make().backup
    signed = made.folder.read(backup.name)
    envelope = json.loads(signed)
    envelope["payload"] = base64.b64encode(b"[" + b"[]," * 1_000 + b"[]]").decode()
    parsed: list[bytes] = []
    monkeypatch.setattr(manifests, "parse_backup_statement", parsed.append)
    with pytest.raises(Tampered, match="signature"):
        open_backup(json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode(), [made.trust.log_key])
    monkeypatch.undo()
    assert not parsed
    start = time.process_time()
    with pytest.raises(BadInput, match="got more values"):
        open_backup(b'{"payload":[' + b"[]," * 1_000_000 + b"[]]}", [made.trust.log_key])
    (made.folder.path / "20300101T000000Z.json").write_bytes(b'{"payload":[' + b"[]," * 1_000_000 + b"[]]}")
    made.folder.sweep()
    assert time.process_time() - start < 0.5
    envelope["payload"] = base64.b64encode(b"[" + b"[]," * 1_000_000 + b"[]]").decode()
    with pytest.raises(BadInput, match="too many small values"):
        parse_backup(json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode())
    assert open_backup(signed, [made.trust.log_key]) == backup


def test_a_name_at_the_end_of_time_hides_no_age(made: BackedUp) -> None:
    backup = made.make().backup
    (made.folder.path / "99991231T235959Z.json").write_bytes(b"{}")
    ages = BackupAges(str(made.folder.path), 2, 90)
    found = listing.measure(made.folder, made.known_keys(), ages, "2030-01-01T00:00:00.000Z")
    assert found.newest == backup.time and found.expired == (backup.name,)


def test_many_names_without_a_signature_are_not_all_read(made: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    made.make()
    for second in range(40):
        (made.folder.path / f"20300101T0000{second:02d}Z.json").write_bytes(b"{}")
    read: list[str] = []
    monkeypatch.setattr(listing, "read_backup", lambda folder, name, keys: read.append(name) or folder.read("x"))
    ages = BackupAges(str(made.folder.path), 2, 90)
    assert listing.measure(made.folder, made.known_keys(), ages, "2026-11-30T00:00:00.000Z").newest is None
    assert len(read) == listing.MAX_TRIES
    monkeypatch.setattr(backups, "MAX_BACKUPS", 40)
    assert "at most 40" in listing.measure(made.folder, made.known_keys(), ages, "2026-11-30T00:00:00.000Z").error


def test_a_manifest_is_read_once_for_many_requests(made: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading 90 manifests takes seconds of the interpreter that serves units, and each person may ask for them."""
    backup = made.make().backup
    read, count = listing.read_backup, 0

    def counting(*given: object) -> object:
        nonlocal count
        count += 1
        return read(*given)  # type: ignore[arg-type]

    with serving(made.settings) as context:
        context.backup_folder = made.folder.path
        monkeypatch.setattr(listing, "read_backup", counting)
        rows = [listing.list_rows(context) for _ in range(3)]
        assert rows[0] == rows[1] == rows[2] and [row.problem for row in rows[0]] == [None] and count == 1
        path = made.folder.path / f"{backup.name}.json"
        path.write_bytes(path.read_bytes()[:-3])
        assert [row.problem is None for row in listing.list_rows(context)] == [False] and count == 2


def test_a_backup_of_several_processes_can_be_restored(made: BackedUp, tmp_path: Path) -> None:
    """The notes of processes are beside those of witnesses, and no witness has cosigned them."""
    checkpoint = made.make().backup.checkpoint.encode()
    KnownCheckpoints(made.places.witnessed).store_committed("desk", checkpoint)
    backup = made.make().backup
    assert made.restore(backup, tmp_path / "restored").lost == []
    assert not names(tmp_path / "restored" / "witnessed")


def test_a_backup_that_fails_leaves_no_copy_in_the_clear(made: BackedUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text in the copy may be erased before the service starts again."""

    def fail(*given: object) -> None:
        assert names(made.home / WORK_FOLDER) == ["database"]
        raise Tampered("folder")

    monkeypatch.setattr(making, "check_keys", fail)
    with pytest.raises(Tampered):
        made.make()
    assert names(made.home / WORK_FOLDER) == []


def test_a_stolen_log_key_that_was_replaced_signs_no_old_state_under_a_new_name(made: BackedUp, tmp_path: Path) -> None:
    first = made.make().backup
    with made.site() as site:
        signer = site.keyring.log_signers(ORIGIN)[first.log_key]
        vkey = site.keyring.next_log_key(ORIGIN, [key.vkey for key in site.state.site.log_keys])
        until = encode_time(made.now + timedelta(seconds=1))
        rotation = site.order(RotateLogKey, "anna", log_key=vkey, old_until=until)
        site.two(LogKeyRotated(policy=site.in_force), rotation)
    name = made.make().backup.name
    forged = replace(first, name=name, time=encode_time(made.now))
    (made.folder.path / f"{name}.json").write_bytes(sign_backup(forged, signer))
    identities = tmp_path / "identities"
    identities.write_text("".join(f"{one.key}\n" for one in ALL))

    def restore(log_key: str | None) -> None:
        wiring.restore_backup(
            *(made.folder.path, name, tmp_path / "restored", made.trust),
            identities=[identities],
            log_key=log_key,
            erasures=None,
            checkpoints=[],
            say=lambda _: None,
        )

    with pytest.raises(Tampered, match="by another key"):
        restore(vkey)
    # Where the log tells when the key was replaced, it is no backup either, and no alarm is silenced by it.
    (honest, fake) = listing.list_backups(made.folder, made.known_keys())
    assert honest.problem == "" and "a key that was replaced" in fake.problem
    ages = BackupAges(str(made.folder.path), 1, 1)
    measured = listing.measure(made.folder, made.known_keys(), ages, encode_time(made.now))
    assert measured.newest == first.time
    with pytest.raises(Tampered, match="a key that was replaced"):
        opening.verify(made.folder, name, made.known_keys(), made.trust, [])
    restore(None)
