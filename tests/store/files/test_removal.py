"""Everything that a worker left is removed, however it built it; errors of removal do not stop the service."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BadInput, Tampered, Unavailable
from appliance.store.files import disk
from appliance.store.files.artifacts import Artifacts
from appliance.store.files.run_files import Checkpoints, StepStore
from tests.kit.nesting import nest
from tests.store.files.test_artifacts import fill, seal

pytestmark = pytest.mark.usefixtures("cleared")


@pytest.fixture
def artifacts(home: Path) -> Artifacts:
    return Artifacts(home)


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """So many more than are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("depth", [0, 1, 2_100])
def test_a_folder_is_removed_however_deep_it_is_nested(tmp_path: Path, depth: int) -> None:
    """2,100 levels have no path that the kernel would take; neither recursion nor descriptors grow with them."""
    folder, kept = tmp_path / "folder", tmp_path / "kept"
    folder.mkdir()
    kept.mkdir()
    (kept / "file").write_bytes(b"kept")
    deepest = nest(folder, depth)
    for name in ("a", "z"):
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=deepest))
    os.symlink(kept, "link", dir_fd=deepest)
    os.mkdir("closed", dir_fd=deepest)
    os.mkdir("closed/below", dir_fd=deepest)
    os.chmod("closed", 0, dir_fd=deepest)
    os.mkfifo("pipe", dir_fd=deepest)
    os.fchmod(deepest, 0)
    os.close(deepest)
    with few_descriptors(4):
        disk.remove_tree(folder)
    assert not folder.exists()
    assert (kept / "file").read_bytes() == b"kept", "no link was followed"


def test_a_folder_with_many_deep_folders_is_removed(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / f"{name}.txt").write_text(name)
        os.close(nest(tmp_path / "folder" / name, 30))
    disk.remove_tree(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_nothing_in_its_place_is_removed_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "away").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    for name in ("file", "away", "none"):
        disk.remove_tree(tmp_path / name)
    disk.remove_tree(tmp_path / "no" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_whoever_moves_a_folder_meanwhile_has_nothing_else_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way up leads elsewhere then: an attacker's own folder of the same names, or somebody's."""
    (tmp_path / "folder" / "a" / "b").mkdir(parents=True)
    (tmp_path / "folder" / "a" / "b" / "file").write_bytes(b"")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"kept")
    unlink = os.unlink

    def move(path: Any, **more: Any) -> None:
        unlink(path, **more)
        if path == "file":
            os.rename(tmp_path / "folder" / "a" / "b", elsewhere / "b")

    monkeypatch.setattr(os, "unlink", move)
    with pytest.raises(OSError, match="it was moved while it was being removed") as moved:
        disk.remove_tree(tmp_path / "folder")
    assert moved.value.errno == errno.ESTALE
    assert sorted(path.name for path in elsewhere.iterdir()) == ["b", "kept"]


# --- what a service does with it ------------------------------------------------------------------------------------


def stubborn(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make the disk refuse to remove these."""
    remove = disk.remove_tree

    def refuse(path: Path) -> None:
        if path.name in names or any(path.name.startswith(name) for name in names):
            raise OSError(errno.EIO, "Input/output error")
        remove(path)

    monkeypatch.setattr(disk, "remove_tree", refuse)


def test_what_cannot_be_removed_at_a_start_is_said_and_the_rest_goes(
    artifacts: Artifacts, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("artifacts/.staging-a", "artifacts/.staging-b", "uploads/c", "checkpoints", "steps"):
        (home / name).mkdir()
    checkpoints, steps = Checkpoints(home), StepStore(home)
    for name in ("checkpoints/.partial-d", "checkpoints/.partial-e", "steps/.partial-d", "steps/.partial-e"):
        (home / name).write_bytes(b"")
    stubborn(monkeypatch, ".staging-a", "c", ".partial-d")
    artifacts.sweep(frozenset)
    checkpoints.sweep(frozenset)
    steps.sweep(frozenset)
    left = {str(path.relative_to(home)) for path in home.rglob("*") if path.parent != home}
    assert left == {"artifacts/.staging-a", "uploads/c", "checkpoints/.partial-d", "steps/.partial-d"}
    assert caplog.text.count("ALARM") == 4
    assert f"ALARM: {home}/artifacts/.staging-a could not be removed: Input/output error" in caplog.text


def test_a_write_that_was_cut_off_leaves_nothing_where_nobody_else_writes(home: Path) -> None:
    left = home / f"{disk.PARTIAL}cut-off"
    left.write_bytes(b"ha")
    (home / "state.snapshot").write_bytes(b"whole")
    disk.sweep_partial(home, lambda: False)
    assert left.exists(), "another process may be writing it"
    disk.sweep_partial(home, lambda: True)
    disk.sweep_partial(home / "none")
    assert (left.exists(), (home / "state.snapshot").exists()) == (False, True)


def test_a_folder_that_no_entry_names_and_cannot_be_moved_ends_no_start(
    artifacts: Artifacts, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    digest = seal(artifacts)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "rename", refuse)
    assert artifacts.sweep(frozenset) == (digest,)
    assert "ALARM" in caplog.text and digest in caplog.text


def test_a_staging_folder_that_stays_changes_nothing_of_what_came_of_the_work(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn(monkeypatch, ".staging-")
    with pytest.raises(BadInput, match="the reason"), artifacts.staging():
        raise BadInput("the reason")
    with artifacts.staging():
        pass
    assert caplog.text.count("could not be removed") == 2


def test_a_deep_folder_is_neither_sealed_nor_sound(artifacts: Artifacts) -> None:
    with artifacts.staging() as staging:
        digest = fill(staging)
        os.close(nest(staging, 20))
        with pytest.raises(BadInput, match="at most 16 deep"):
            artifacts.seal(staging, digest)
    digest = seal(artifacts)
    artifacts.path(digest).chmod(0o700)
    os.close(nest(artifacts.path(digest), 20))
    for read in (artifacts.check, artifacts.read_folder):
        with pytest.raises(Tampered, match=f"artifact {digest}, n: expected folders at most 16 deep"):
            read(digest)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_folder_that_cannot_be_looked_at_is_unavailable_and_nothing_foreign(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    digest = seal(artifacts)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    looks: list[Callable[[str], object]] = [artifacts.path, artifacts.check, artifacts.read_folder]
    looks.append(lambda digest: artifacts.upload("olga", digest))
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        for look in looks:
            with pytest.raises(Unavailable, match=r"expected the disk to work|has the rights, got Permission denied"):
                look(digest)
