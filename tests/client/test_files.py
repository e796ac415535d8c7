"""Files that commands write are complete, or absent with an error."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.client.support import files, log
from appliance.errors import BadInput, Conflict, Unavailable


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("write", [files.write_new, files.replace_private, files.replace_file])
def test_a_full_disk_leaves_no_torn_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    path = tmp_path / "proof"
    full(monkeypatch)
    with pytest.raises(Unavailable, match=r"^proof, .*: expected it to be writable, got No space left on device$"):
        write(path, b"bytes", "proof")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [files.replace_private, files.replace_file])
def test_a_full_disk_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    path = tmp_path / "proof"
    write(path, b"before", "proof")
    full(monkeypatch)
    with pytest.raises(Unavailable):
        write(path, b"after", "proof")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def write_archive(path: Path, data: bytes, what: str) -> None:
    log.write_chunks(path, what, [data])


@pytest.mark.parametrize("write", [files.write_new, files.replace_private, files.replace_file, write_archive])
def test_a_file_has_its_name_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    """The folder is synced once the file has its name: of an archive there is no other copy."""
    path, synced, fsync = tmp_path / "proof", [], os.fsync

    def watch(handle: int) -> None:
        fsync(handle)
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))

    monkeypatch.setattr(files.os, "fsync", watch)
    write(path, b"bytes", "proof")
    assert synced[-1] == (True, True) and path.read_bytes() == b"bytes"


NEW_FOLDER = {"proofs.json": b"proofs", "adapter/weights": b"weights", "adapter/config.json": b"{}"}


def test_a_folder_has_its_name_after_a_power_cut_once_all_of_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file, then each folder of the new one, then the folder above, in which the new one has its name."""
    folder, synced, fsync = tmp_path / "export", [], os.fsync

    def watch(handle: int) -> None:
        fsync(handle)
        synced.append((os.fstat(handle).st_ino, folder.exists()))

    monkeypatch.setattr(files.os, "fsync", watch)
    files.write_folder(folder, NEW_FOLDER, "export")
    below = [folder / name for name in (*NEW_FOLDER, "adapter")]
    assert list(dict.fromkeys(synced)) == [
        *((path.stat().st_ino, False) for path in (*below, folder)),
        (tmp_path.stat().st_ino, True),
    ]
    assert {name: (folder / name).read_bytes() for name in NEW_FOLDER} == NEW_FOLDER
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("calls", range(6))
def test_a_folder_that_is_not_durable_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    left, fsync = iter(range(calls)), os.fsync

    def fail(handle: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(Unavailable, match=r"^export, .*/export: expected to write there, got No space left on device$"):
        files.write_folder(tmp_path / "export", NEW_FOLDER, "export")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_command_wrote_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "export", Path.rename

    def lose(part: Path, final: Path) -> Path:
        folder.mkdir()
        (folder / "other").touch()
        return rename(part, final)

    monkeypatch.setattr(Path, "rename", lose)
    with pytest.raises(Conflict, match="expected a new folder, got an existing one"):
        files.write_folder(folder, NEW_FOLDER, "export")
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "other"]


def test_a_file_system_without_such_a_call_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fsync = tmp_path / "proof", os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", refuse)
    files.write_new(path, b"bytes", "proof")
    assert path.read_bytes() == b"bytes"


def test_an_archive_is_not_written_to_a_file_that_another_account_has_open(tmp_path: Path) -> None:
    with (tmp_path / f".archive.{os.getpid()}").open("w+b") as planted:
        write_archive(tmp_path / "archive", b"texts", "archive")
        assert planted.read() == b""
    assert (tmp_path / "archive").read_bytes() == b"texts"


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_commands_that_write_one_archive_the_second_finds_it_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Each is a process. The second begins and ends while the first writes; neither touches the other's part."""
    path, first, link = tmp_path / "archive", os.getpid(), os.link

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(log.os, "link", link if has_links else refuse)

    def chunks() -> Iterator[bytes]:
        yield b"first, "
        with monkeypatch.context() as second:
            second.setattr(log.os, "getpid", lambda: first + 1)
            log.write_chunks(path, "archive", [b"second, complete"])
        yield b"complete"

    with pytest.raises(Conflict, match=r"^archive, .*: expected a name that is free, got an existing file$"):
        log.write_chunks(path, "archive", chunks())
    assert path.read_bytes() == b"second, complete" and list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_of_another_account_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(Unavailable, match=r"write to, got .*; ask its owner for access, or name a file in another"):
        files.write_new(tmp_path / "proof", b"bytes", "proof")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable, match=r"^proof, "):
        files.replace_private(tmp_path / "file" / "below" / "proof", b"bytes", "proof")


def test_a_new_file_is_not_written_to_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"^proof, .*: expected the folder .*/missing to write to, got none; type: mkdir"
    ):
        files.write_new(tmp_path / "missing" / "proof", b"bytes", "proof")
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_has_its_name_when_all_its_files_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def sync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", sync)
    folder = tmp_path / "report"
    with files.create_folder(folder, "report") as part:
        (part / "wandb").mkdir()
        (part / "wandb" / "run").write_bytes(b"steps")
        (part / "wandb" / "latest").symlink_to("run")
        assert not folder.exists() and part.parent == tmp_path
    assert set(synced[:-1]) == {str(part), str(part / "wandb"), str(part / "wandb" / "run")}
    assert synced[-1] == str(tmp_path)
    assert (folder / "wandb" / "latest").read_bytes() == b"steps" and not part.exists()


def test_a_new_folder_that_could_not_be_completed_is_not_left(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match=r"^report, .*/report: expected to write there, got No such file"),
        files.create_folder(tmp_path / "report", "report") as part,
    ):
        (part / "one").write_bytes(b"1")
        (part / "missing" / "two").write_bytes(b"2")
    assert list(tmp_path.iterdir()) == []
