"""Training checkpoints on disk: named by their digest, complete or absent, hashed again by each reader."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from appliance.errors import NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.store.files.disk import PARTIAL
from appliance.store.files.run_files import Checkpoints


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "home")


def keep(store: Checkpoints, data: bytes, tmp_path: Path) -> str:
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file, store.keep(file.fileno()) as digest:
        return digest


def names(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "home" / "checkpoints"))


def test_a_file_is_kept_under_the_digest_of_what_was_copied(store: Checkpoints, tmp_path: Path) -> None:
    data = bytes(3 << 20) + b"end"
    digest = keep(store, data, tmp_path)
    assert digest == digest_bytes(data)
    assert store.read(digest) == store.find(digest) == data
    assert keep(store, data, tmp_path) == digest
    assert names(tmp_path) == [digest.removeprefix("sha256:")]


def test_other_bytes_are_refused_by_name_and_the_same_run_heals_them(store: Checkpoints, tmp_path: Path) -> None:
    digest = keep(store, b"state", tmp_path)
    path = tmp_path / "home" / "checkpoints" / digest.removeprefix("sha256:")
    path.chmod(0o600)
    path.write_bytes(b"statE")
    for read in (store.read, store.find):
        with pytest.raises(Tampered, match=f"training checkpoint {digest}: expected these bytes"):
            read(digest)
    keep(store, b"state", tmp_path)
    assert store.read(digest) == b"state"
    path.unlink()
    path.symlink_to(tmp_path / "file")
    with pytest.raises(Tampered, match="expected a regular file"):
        store.read(digest)


def test_what_is_gone_is_said_to_be_gone(store: Checkpoints) -> None:
    assert store.find(digest_bytes(b"never")) is None
    with pytest.raises(NotFound, match="expected a file, got none"):
        store.read(digest_bytes(b"never"))


def test_nothing_half_written_stays(store: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker").write_bytes(b"12345")
    with (tmp_path / "worker").open("rb", buffering=0) as file, pytest.raises(TooLarge, match="at most 4 bytes"):
        store.keep(file.fileno(), 4).__enter__()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        keep(store, b"1234", tmp_path)
    assert names(tmp_path) == []


def test_a_sweep_keeps_what_is_named(store: Checkpoints, tmp_path: Path) -> None:
    one, other = keep(store, b"one", tmp_path), keep(store, b"other", tmp_path)
    (tmp_path / "home" / "checkpoints" / f"{PARTIAL}cut-off").write_bytes(b"ot")
    assert store.sweep(lambda: frozenset({one})) == (other,)
    assert names(tmp_path) == [one.removeprefix("sha256:")]


def test_a_sweep_spares_what_is_being_copied(
    store: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def swept(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        assert store.sweep(frozenset) == ()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", swept)
    assert store.read(keep(store, b"one", tmp_path)) == b"one"
    assert os.fsync is sync, "the sweep ran"


def test_a_sweep_spares_what_is_about_to_be_recorded(store: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    with open(tmp_path / "file", "rb") as file, store.keep(file.fileno()) as digest:
        assert store.sweep(frozenset) == ()
        assert store.read(digest) == b"one"
        assert keep(store, b"one", tmp_path) == digest, "another run's has the same bytes"
        assert store.sweep(frozenset) == ()
    assert store.sweep(frozenset) == (digest,)


def test_a_file_gets_its_name_before_a_sweep_asks_what_is_wanted_or_after_it(
    store: Checkpoints, tmp_path: Path
) -> None:
    kept = []
    other = threading.Thread(target=lambda: kept.append(keep(store, b"one", tmp_path)))

    def wanted() -> frozenset[str]:
        other.start()
        other.join(0.2)
        assert not kept, "it waits"
        return frozenset()

    assert store.sweep(wanted) == ()
    other.join()
    assert store.read(kept[0]) == b"one"
