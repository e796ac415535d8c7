"""The folder of backups, and encryption: a power cut before any line leaves complete backups and removable files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import BadInput, Conflict, Denied, Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.formats.log.backup import Backup, KeyringPair, open_backup, sign_backup
from appliance.formats.log.checkpoint import Checkpoint, sign_checkpoint
from appliance.formats.log.note import vkey_of
from appliance.formats.signatures.keys import Ed25519Signer, generate_ed25519
from appliance.store.files import backups, disk
from appliance.store.files.backups import BackupFolder, Content
from appliance.store.files.encryption import (
    check_recipient,
    decrypt,
    encrypt,
    make_identity,
    read_identities,
    recipient_of,
)
from tests.kit.cuts import cut_at, find_cuts

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ORIGIN = "bank.example/log"
ONE, TWO, PROOF = make_identity(), make_identity(), make_identity()
KEY: Ed25519Signer = generate_ed25519()
VKEY = vkey_of(ORIGIN, KEY)
BIG = bytes(range(256)) * 20_000
"""A content of more than one chunk."""


def put(folder: BackupFolder, data: bytes, known: dict[str, backups.StoredObject] | None = None) -> Content:
    file = os.memfd_create("content")
    try:
        os.write(file, data)
        os.lseek(file, 0, os.SEEK_SET)
        return folder.put(file, [recipient_of(ONE)], PROOF, lambda digest: digest.removeprefix("sha256:"), known or {})
    finally:
        os.close(file)


def backup(name: str, *contents: Content) -> Backup:
    objects = tuple(sorted({one.stored.name: one.stored for one in contents}.values(), key=lambda one: one.name))
    pair = KeyringPair(objects[0].name, recipient_of(ONE), recipient_of(TWO))
    return Backup(
        name=name,
        time="2026-11-24T15:15:35.123Z",
        checkpoint=sign_checkpoint(Checkpoint(ORIGIN, 1, bytes(32)), KEY).decode(),
        log_key=VKEY,
        database="sqlite",
        revision="initial",
        build="1",
        compatibility=1,
        erasure=None,
        recipients=(recipient_of(ONE),),
        index=objects[0].name,
        keyring=(pair,),
        objects=objects,
    )


OLD, NEW = "20260101T000000Z", "20260102T000000Z"


def make_old(folder: BackupFolder) -> None:
    with folder.writing():
        folder.publish(OLD, sign_backup(backup(OLD, put(folder, b"shared"), put(folder, b"old")), KEY))


def replace_old(folder: BackupFolder) -> None:
    """Write a backup that shares an object with the one before, and remove that one."""
    with folder.writing():
        known = {one.name.partition("-")[0]: one for one in open_backup(folder.read(OLD), [VKEY]).objects}
        folder.publish(NEW, sign_backup(backup(NEW, put(folder, b"shared", known), put(folder, b"new")), KEY))
        folder.remove(OLD)


def check_all(folder: BackupFolder) -> set[str]:
    """Every listed backup is signed and whole, and opens."""
    for name in folder.names():
        for stored in open_backup(folder.read(name), [VKEY]).objects:
            data = bytearray()
            folder.open(stored, [ONE], data.extend)
            assert digest_bytes(bytes(data)) == f"sha256:{stored.name.partition('-')[0]}"
    return set(folder.names())


def test_a_power_cut_in_each_state_of_the_disk_leaves_whole_backups_and_removable_files(tmp_path: Path) -> None:
    files = frozenset({backups.__file__})
    make_old(first := BackupFolder(tmp_path / "first"))
    places = find_cuts(tmp_path, files, lambda: replace_old(first))
    assert len(places) > 8
    found = set()
    for number, place in enumerate(places):
        make_old(folder := BackupFolder(tmp_path / f"n{number}"))
        assert cut_at(place, files, lambda folder=folder: replace_old(folder))
        names = check_all(folder)
        found.add(frozenset(names))
        with folder.writing():
            named = {one for name in names for one in open_backup(folder.read(name), [VKEY]).by_name}
        assert {path.name for path in (folder.path / "objects").iterdir()} == named
        assert {path.name for path in folder.path.iterdir()} == {"lock", "objects", *(f"{name}.json" for name in names)}
        disk.remove_tree(folder.path)
    assert found == {frozenset({OLD}), frozenset({OLD, NEW}), frozenset({NEW})}


def test_a_name_is_given_once(tmp_path: Path) -> None:
    make_old(folder := BackupFolder(tmp_path / "b"))
    with folder.writing(), pytest.raises(Conflict, match="try again"):
        folder.publish(OLD, b"another")
    assert check_all(folder) == {OLD}


def test_a_known_object_is_used_once_its_bytes_were_compared(tmp_path: Path) -> None:
    with (folder := BackupFolder(tmp_path / "b")).writing():
        first = put(folder, BIG)
        known = {first.stored.name.partition("-")[0]: first.stored}
        assert put(folder, BIG, known) == first
        path = folder.path / "objects" / first.stored.name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        again = put(folder, BIG, known)
        assert again.stored.name != first.stored.name and again.digest == first.digest
        path.unlink()
        assert put(folder, BIG, known).stored.name not in (first.stored.name, again.stored.name)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable), BackupFolder(tmp_path / "file").writing():
        pass


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole"
    with path.open("wb") as file, (tmp_path / "plain").open("wb+") as plain:
        plain.write(BIG)
        plain.seek(0)
        encrypt(plain.fileno(), lambda data: disk.write_all(file.fileno(), data), [recipient_of(ONE)])
    return path


def opened(path: Path, *identities: object) -> bytes:
    data = bytearray()
    with path.open("rb") as file:
        decrypt(file.fileno(), data.extend, identities or (ONE,), "file")  # type: ignore[arg-type]
    return bytes(data)


def test_only_a_whole_file_opens(whole: Path) -> None:
    assert opened(whole) == BIG
    assert opened(whole, TWO, ONE) == BIG
    with pytest.raises(Denied):
        opened(whole, TWO)
    data = whole.read_bytes()
    for end in (0, 10, 100, 200, len(data) // 2, len(data) - 1):
        whole.write_bytes(data[:end])
        with pytest.raises(Tampered):
            opened(whole)
    for at in (*range(0, 21), 250, 1_000, len(data) - 1):
        whole.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises((Tampered, Denied)):
            opened(whole)
    whole.write_bytes(data + b"x")
    with pytest.raises(Tampered):
        opened(whole)


def test_an_error_of_the_disk_is_reported_as_one(whole: Path) -> None:
    def fail(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with whole.open("rb") as file, pytest.raises(OSError, match="No space left"):
        decrypt(file.fileno(), fail, [ONE], "file")
    with whole.open("rb") as file, pytest.raises(OSError, match="No space left"):
        encrypt(file.fileno(), fail, [recipient_of(ONE)])
    write_only = os.open(whole, os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            encrypt(write_only, lambda _: None, [recipient_of(ONE)])
    finally:
        os.close(write_only)


def test_identity_files(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "identity"
    text = str(ONE.key)
    path.write_text(f"# created: 2026-11-29\n# public key: {recipient_of(ONE)}\n{text}\n")
    assert opened(whole, *read_identities(path)) == BIG
    for wrong in ("", "# nothing\n", f"{text[:-1]}\n", recipient_of(ONE), f"{text}\nrubbish\n", "AGE-SECRET-KEY-1"):
        path.write_text(wrong)
        with pytest.raises(BadInput, match="age-keygen") as refused:
            read_identities(path)
        assert text[:30] not in refused.value.message
    path.write_bytes(whole.read_bytes()[:1_000])
    with pytest.raises(BadInput, match="decrypt it first"):
        read_identities(path)
    with pytest.raises(BadInput, match="readable file"):
        read_identities(tmp_path / "none")


def test_recipients() -> None:
    good = recipient_of(ONE)
    assert check_recipient(good) == good
    for wrong in (
        "",
        "age1",
        good.upper(),
        f"{good}q",
        f"{good[:-1]}{'q' if good[-1] != 'q' else 'p'}",
        "ssh-rsa AAAA",
    ):
        with pytest.raises(BadInput, match="public key of age"):
            check_recipient(wrong)


def test_objects_of_a_manifest_are_sorted_and_named_once(tmp_path: Path) -> None:
    with (folder := BackupFolder(tmp_path / "b")).writing():
        made = backup(OLD, put(folder, b"one"), put(folder, b"two"))
    with pytest.raises(BadInput, match="sorted by name"):
        replace(made, objects=made.objects[::-1])
    with pytest.raises(BadInput, match="sorted by name"):
        replace(made, objects=(made.objects[0], made.objects[0]))
    with pytest.raises(BadInput, match="too, got none"):
        replace(made, objects=made.objects[1:])
    with pytest.raises(BadInput, match="two different recipients"):
        KeyringPair(made.objects[0].name, recipient_of(ONE), recipient_of(ONE))
