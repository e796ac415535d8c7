"""The reserve is whole or empty, gives its space to the ledger on a full disk, and is made again when there is room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import Unavailable
from appliance.store.database.engine import migrate, open_engine
from appliance.store.files import space
from appliance.store.files.disk import disk_errors
from appliance.store.files.space import Reserve, is_disk_full, is_released, measure_space
from tests.kit.small_log import SmallLog, heartbeat

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[3]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def fill(folder: Path) -> Path:
    """Use the disk to its last page, as another program does."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return filler


def full_disk(folder: str) -> None:
    """Fill the disk of a ledger, which has 64 MiB in a mount namespace of its own."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    home = Path(folder)
    (home / "ledger.db").touch()
    engine, site = open_engine(f"sqlite:///{home / 'ledger.db'}"), SmallLog()
    migrate(engine)
    ledger = site.open_ledger(engine)
    ledger.append(site.first_draft())
    reserve = Reserve(home, 256 * MIB)
    reserve.maintain()
    assert allocated(reserve.path) == reserve.size == 3 * MIB, "a twentieth of a small disk"
    assert reserve.path.stat().st_mode & 0o777 == 0o600
    filler = fill(home)

    with pytest.raises(Unavailable, match="disk is full"):
        for _ in range(50):
            ledger.append(heartbeat())
    assert reserve.missing == 0, "nothing has released it"
    size = ledger.state.size

    ledger.release_reserve = reserve.release_for
    for _ in range(50):
        ledger.append(heartbeat())
    assert ledger.state.size == size + 50, "none was refused and none was written twice"
    assert allocated(reserve.path) == 0 and is_released(home) and reserve.missing == 3 * MIB
    assert measure_space(home).free > 0, "the ledger has the space"
    assert measure_space(home, reserve).free == 0, "workers and uploads have none of it"
    reserve.maintain()
    assert is_released(home), "there is no room for it yet"

    filler.unlink()
    reserve.maintain()
    assert allocated(reserve.path) == 3 * MIB and not is_released(home)
    fill(home)
    reserve.maintain()
    assert is_released(home), "a nearly full disk is enough, whatever the database is on"
    ledger.close()
    site.open_ledger(engine).load()


@pytest.mark.thorough
def test_on_a_full_disk_the_ledger_continues_in_the_space_of_the_reserve(tmp_path: Path) -> None:
    code = f"from tests.store.files.test_space import full_disk; full_disk({str(tmp_path)!r})"
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("step", ["posix_fallocate", "fsync", "rename"])
def test_a_reserve_that_cannot_be_made_leaves_no_part_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, step, fail)
        Reserve(tmp_path, MIB).maintain()
    assert list(tmp_path.iterdir()) == []
    assert "cannot be used: No space left on device" in caplog.text


def test_after_a_power_cut_the_reserve_is_made_again(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path, MIB)
    (tmp_path / ".partial-reserve").write_bytes(b"cut")
    reserve.maintain()
    assert [path.name for path in tmp_path.iterdir()] == ["reserve"]
    assert allocated(reserve.path) == MIB


def test_the_reserve_follows_its_setting(tmp_path: Path) -> None:
    for size in (2 * MIB, MIB, 3 * MIB):
        Reserve(tmp_path, size).maintain()
        assert allocated(tmp_path / "reserve") == size
    Reserve(tmp_path, 0).maintain()
    assert not (tmp_path / "reserve").exists()


def test_a_disk_without_room_for_the_reserve_and_for_the_ledger_has_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk: Any = SimpleNamespace(f_blocks=100 << 30, f_frsize=1, f_bavail=(1 << 30) + MIB - 1)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    reserve = Reserve(tmp_path, MIB)
    assert not is_released(tmp_path), "a home that was never served lacks none"
    reserve.maintain()
    assert is_released(tmp_path) and reserve.missing == MIB
    disk.f_bavail += 1
    reserve.maintain()
    assert not is_released(tmp_path) and reserve.missing == 0


def test_only_a_disk_without_space_releases_the_reserve() -> None:
    for number, expected in ((28, True), (122, True), (5, False), (27, False)):
        with pytest.raises(Unavailable) as raised, disk_errors("file"):
            raise OSError(number, os.strerror(number))
        assert is_disk_full(raised.value) is expected
    assert not is_disk_full(Unavailable("clock: expected another"))


def test_missing_rights_are_no_failure_of_the_disk() -> None:
    with (
        pytest.raises(Unavailable, match=rf"^file: .* user id {os.geteuid()} has the rights, got"),
        disk_errors("file"),
    ):
        raise PermissionError(13, os.strerror(13))


def test_a_reserve_that_cannot_be_released_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reserve = Reserve(tmp_path, MIB)
    assert reserve.release() is False, "there is none"
    reserve.maintain()

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(space.os, "ftruncate", fail)
    assert reserve.release() is False
    assert "could not be released: Read-only file system" in caplog.text
