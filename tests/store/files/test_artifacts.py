"""Sealed folders and uploads: complete or absent, read without links, and every changed byte is detected."""

from __future__ import annotations

import errno
import os
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, BadInput, NotFound, Tampered, TooLarge, Unavailable
from appliance.formats.artifacts.manifest import Manifest, ManifestFile, encode_manifest
from appliance.formats.core.digest import digest_bytes
from appliance.store.files.artifacts import Artifacts

FILES = {"adapter_model.safetensors": b"\x00" * 5000, "config/adapter_config.json": b"{}", "recipe.json": b"[1]"}
BESIDE = {"signature.json": b"signed", "provenance.json": b"made"}


def manifest_of(files: dict[str, bytes]) -> bytes:
    listed = tuple(ManifestFile(path, len(data), digest_bytes(data)) for path, data in sorted(files.items()))
    return encode_manifest(Manifest("clauses", 1, listed))


def fill(staging: Path, files: dict[str, bytes] = FILES) -> str:
    """Write the files and their manifest, and return the manifest's digest."""
    for path, data in files.items():
        (staging / path).parent.mkdir(exist_ok=True)
        (staging / path).write_bytes(data)
    (staging / "manifest.json").write_bytes(manifest_of(files))
    return digest_bytes(manifest_of(files))


def seal(artifacts: Artifacts) -> str:
    """As a workflow does once an entry names it."""
    digest = seal_pending(artifacts)
    artifacts.settle(digest)
    return digest


def seal_pending(artifacts: Artifacts) -> str:
    with artifacts.staging() as staging:
        digest = fill(staging)
        artifacts.seal(staging, digest, BESIDE)
    return digest


@pytest.fixture
def artifacts(home: Path) -> Artifacts:
    return Artifacts(home)


def test_a_sealed_folder_reads_back_with_what_lies_beside_it(artifacts: Artifacts) -> None:
    digest = seal(artifacts)
    assert artifacts.check(digest).digest == digest
    assert artifacts.read_folder(digest) == {**FILES, "manifest.json": manifest_of(FILES)}
    assert artifacts.read(digest, "config/adapter_config.json") == b"{}"
    assert {name: artifacts.read_beside(digest, name) for name in BESIDE} == BESIDE


def test_what_a_worker_left_with_a_special_mode_is_sealed_with_a_plain_one(artifacts: Artifacts) -> None:
    with artifacts.staging() as staging:
        digest = fill(staging)
        (staging / "recipe.json").chmod(0o6777)
        (staging / "config").chmod(0o3777)
        path = artifacts.seal(staging, digest)
    assert stat.S_IMODE((path / "recipe.json").stat().st_mode) == 0o444
    assert stat.S_IMODE((path / "config").stat().st_mode) == 0o555


def test_a_sealed_folder_is_read_only_and_private_and_named_by_its_digest(artifacts: Artifacts, home: Path) -> None:
    digest = seal(artifacts)
    path = artifacts.path(digest)
    assert path == home / "artifacts" / digest.removeprefix("sha256:")
    for place in (path, *path.rglob("*")):
        assert stat.S_IMODE(place.stat().st_mode) == (0o555 if place.is_dir() else 0o444), place
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(place.name for place in path.parent.iterdir()) == sorted(
        [path.name, *(f"{path.name}.{name}" for name in BESIDE)]
    )


def test_a_staging_folder_that_is_not_sealed_is_gone_afterwards(artifacts: Artifacts, home: Path) -> None:
    with pytest.raises(RuntimeError), artifacts.staging() as staging:
        fill(staging)
        (staging / "config").chmod(0)
        raise RuntimeError("the worker died")
    assert list((home / "artifacts").iterdir()) == []


def test_sealing_again_what_stands_keeps_it(artifacts: Artifacts) -> None:
    assert seal(artifacts) == seal(artifacts)
    digest = seal(artifacts)
    assert artifacts.read_beside(digest, "signature.json") == b"signed"


Change = Callable[[Path], object]


def replace(staging: Path, path: str, make: Callable[[Path], object]) -> None:
    (staging / path).unlink()
    make(staging / path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(lambda s: replace(s, "recipe.json", lambda p: p.symlink_to("/etc/passwd")), BadInput, id="link"),
        pytest.param(lambda s: (s / "more").symlink_to(s / "config"), BadInput, id="link to a folder"),
        pytest.param(lambda s: replace(s, "recipe.json", os.mkfifo), BadInput, id="pipe"),
        pytest.param(lambda s: os.link(s / "recipe.json", s / "twin"), BadInput, id="second name"),
        pytest.param(lambda s: (s / "recipe.json").write_bytes(b"[2]"), Tampered, id="other bytes"),
        pytest.param(lambda s: (s / "recipe.json").write_bytes(b"[1]\n"), Tampered, id="longer"),
        pytest.param(lambda s: (s / "recipe.json").unlink(), Tampered, id="missing"),
        pytest.param(lambda s: (s / ".hidden").write_bytes(b""), Tampered, id="unlisted"),
        pytest.param(lambda s: (s / "manifest.json").write_bytes(b"{}"), Tampered, id="other manifest"),
        pytest.param(lambda s: (s / "manifest.json").unlink(), NotFound, id="no manifest"),
    ],
)
def test_a_folder_that_is_not_what_its_manifest_says_is_not_sealed(
    artifacts: Artifacts, home: Path, change: Change, error: type[ApplianceError]
) -> None:
    with artifacts.staging() as staging:
        digest = fill(staging)
        change(staging)
        with pytest.raises(error):
            artifacts.seal(staging, digest)
    assert list((home / "artifacts").iterdir()) == []
    with pytest.raises(NotFound):
        artifacts.path(digest)


def test_only_a_staging_folder_of_this_store_is_sealed(artifacts: Artifacts, tmp_path: Path) -> None:
    digest = fill(tmp_path)
    with pytest.raises(BadInput, match="staging"):
        artifacts.seal(tmp_path, digest)


@pytest.mark.parametrize(
    "name", ["../x.json", "a/b.json", "", ".json", "SIGNATURE.JSON", "x" * 80 + ".json", "a\0.json"]
)
def test_a_file_beside_has_a_plain_name(artifacts: Artifacts, name: str) -> None:
    digest = seal(artifacts)
    with pytest.raises(BadInput):
        artifacts.read_beside(digest, name)


@pytest.mark.parametrize("digest", ["sha256:x", "../../etc", "sha256:" + "A" * 64, ""])
def test_a_digest_is_never_a_path(artifacts: Artifacts, digest: str) -> None:
    for method in (artifacts.path, partial(artifacts.upload, "olga"), artifacts.quarantine, artifacts.check):
        with pytest.raises(BadInput):
            method(digest)


# --- after sealing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*FILES, "manifest.json"])
def test_one_flipped_byte_of_any_file_is_named(artifacts: Artifacts, path: str) -> None:
    digest = seal(artifacts)
    file = artifacts.path(digest) / path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)
    with pytest.raises(Tampered, match=f"artifact {digest}, {path}: expected sha256"):
        artifacts.check(digest)


def test_a_hole_in_a_file_is_found_without_reading_it(artifacts: Artifacts) -> None:
    """A sparse file of 4 TiB takes no block of the disk, and days to hash."""
    digest, read = seal(artifacts), list[int]()
    file = artifacts.path(digest) / "config/adapter_config.json"
    file.chmod(0o600)
    os.truncate(file, 1 << 42)
    with pytest.raises(Tampered, match=f"expected {len(FILES['config/adapter_config.json'])} bytes, got {1 << 42}"):
        artifacts.check(digest, read.append)
    with pytest.raises(Tampered, match="bytes, got"):
        next(artifacts.read_lines(digest, "config/adapter_config.json"))
    assert sum(read) <= sum(map(len, FILES.values()))


def test_a_name_that_is_not_text_is_escaped_in_what_is_said_of_it(artifacts: Artifacts) -> None:
    digest = seal(artifacts)
    _writable(artifacts.path(digest))
    below = os.fsencode(artifacts.path(digest))
    for _ in range(20):
        below += b"/\xff"
        os.mkdir(below)
    with pytest.raises(Tampered, match=r"\\udcff: expected folders at most") as refused:
        artifacts.check(digest)
    assert refused.value.message.encode()


def test_a_mark_that_is_a_pipe_is_of_no_process(artifacts: Artifacts, home: Path) -> None:
    pending = seal_pending(artifacts)
    os.mkfifo(home / "artifacts" / f".pending-{'a' * 64}")
    (home / "artifacts" / f".pending-{'b' * 64}").symlink_to(home / "artifacts" / f".pending-{'a' * 64}")
    assert artifacts.pending() == (pending,)


def _writable(path: Path) -> None:
    path.chmod(0o700)


@pytest.mark.parametrize("kind", ["link", "link above", "pipe", "folder"])
def test_no_link_or_other_kind_is_read_in_a_files_place(artifacts: Artifacts, tmp_path: Path, kind: str) -> None:
    digest = seal(artifacts)
    folder = artifacts.path(digest)
    _writable(folder)
    (tmp_path / "adapter_config.json").write_bytes(b"{}")
    if kind == "link above":
        _writable(folder / "config")
        (folder / "config" / "adapter_config.json").unlink()
        (folder / "config").rmdir()
        (folder / "config").symlink_to(tmp_path)
    else:
        _writable(folder / "config")
        file = folder / "config" / "adapter_config.json"
        file.unlink()
        make = {"link": lambda p: p.symlink_to(tmp_path / p.name), "pipe": os.mkfifo, "folder": os.mkdir}[kind]
        make(file)
    for read in (
        lambda: artifacts.read(digest, "config/adapter_config.json"),
        lambda: artifacts.check(digest),
        *((lambda: artifacts.read_folder(digest),) if kind != "folder" else ()),
    ):
        with pytest.raises(Tampered):
            read()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "config/", "./recipe.json", "a\0b"])
def test_a_path_that_leaves_the_folder_is_refused(artifacts: Artifacts, path: str) -> None:
    digest = seal(artifacts)
    with pytest.raises(BadInput):
        artifacts.read(digest, path)


def test_a_file_over_the_limit_is_refused_before_it_is_in_memory(artifacts: Artifacts) -> None:
    digest = seal(artifacts)
    with pytest.raises(TooLarge):
        artifacts.read(digest, "adapter_model.safetensors", max_bytes=4999)
    with pytest.raises(TooLarge):
        artifacts.read_folder(digest, max_bytes=5001)
    assert len(artifacts.read(digest, "adapter_model.safetensors", max_bytes=5000)) == 5000


def test_a_quarantined_folder_is_kept_but_is_no_artifact(artifacts: Artifacts, home: Path) -> None:
    digest = seal(artifacts)
    aside = artifacts.quarantine(digest)
    assert aside is not None and (aside / "recipe.json").read_bytes() == b"[1]"
    with pytest.raises(NotFound):
        artifacts.read(digest, "recipe.json")
    assert artifacts.quarantine(digest) is None
    assert seal(artifacts) == digest, "the same bytes can be sealed again"


@pytest.mark.parametrize("vanished", ["folder", "mount"])
def test_a_folder_that_has_vanished_has_not_changed(artifacts: Artifacts, home: Path, vanished: str) -> None:
    """A disk that is not mounted must put nothing into quarantine."""
    digest = seal(artifacts)
    folder = home / "artifacts"
    gone = folder if vanished == "mount" else folder / digest.removeprefix("sha256:")
    gone.rename(home / "elsewhere")
    for read in (artifacts.check, artifacts.read_folder):
        with pytest.raises(Unavailable, match="expected a sealed folder, got none; see that its disk is mounted"):
            read(digest)
    (home / "elsewhere").rename(gone)
    artifacts.check(digest)


def test_a_sweep_removes_staging_and_uploads_and_sets_aside_what_no_entry_names(
    artifacts: Artifacts, home: Path
) -> None:
    digest = seal(artifacts)
    left = artifacts.staging()
    staging = left.__enter__()
    fill(staging)
    (staging / "outside").symlink_to(home)
    (home / "kept").write_bytes(b"kept")
    with artifacts.receive("olga", digest_bytes(b"abc"), 3) as upload:
        upload.write(b"abc")
        upload.finish()
    (home / "uploads" / ".partial-1").write_bytes(b"")
    (home / "artifacts" / ".partial-2").write_bytes(b"")
    assert artifacts.sweep(lambda: frozenset([digest])) == ()
    assert artifacts.check(digest)
    assert not staging.exists() and list((home / "uploads").iterdir()) == []
    assert (home / "kept").exists(), "no link was followed"
    assert artifacts.sweep(frozenset) == (digest,)
    with pytest.raises(NotFound):
        artifacts.path(digest)
    (aside,) = (home / "artifacts").glob(".unnamed-*")
    assert (aside / "recipe.json").read_bytes() == b"[1]"


def test_what_is_pending_is_removed_with_all_that_lies_beside_it(artifacts: Artifacts, home: Path) -> None:
    digest = seal_pending(artifacts)
    assert artifacts.pending() == (digest,)
    artifacts.discard_pending(digest)
    assert list((home / "artifacts").iterdir()) == []
    assert seal_pending(artifacts) == digest
    artifacts.settle(digest)
    artifacts.discard_pending(digest)
    assert artifacts.check(digest) and artifacts.pending() == (), "one that is settled stays"


def test_a_sweep_keeps_what_is_pending_and_named_and_removes_what_is_not(artifacts: Artifacts, home: Path) -> None:
    digest = seal_pending(artifacts)
    artifacts.sweep(lambda: frozenset([digest]))
    assert artifacts.check(digest) and artifacts.pending() == ()
    artifacts.sweep(frozenset)
    assert len(list((home / "artifacts").glob(".unnamed-*"))) == 1
    seal_pending(artifacts)
    assert artifacts.sweep(frozenset) == ()
    assert len(list((home / "artifacts").glob("*/recipe.json"))) == 1, "only the one that was moved aside is left"


def test_a_sweep_asks_what_is_named_once_it_knows_what_is_here(home: Path) -> None:
    """What another process seals and records after the answer is not among what is moved aside."""
    mine, other = Artifacts(home, process="a"), Artifacts(home, process="b")
    sealed: list[str] = []

    def named() -> frozenset[str]:
        sealed.append(seal(other))
        return frozenset()

    assert mine.sweep(named) == ()
    assert mine.check(*sealed)


def test_a_sweep_leaves_what_another_process_has_sealed_and_not_recorded(home: Path) -> None:
    mine, other = Artifacts(home, process="a"), Artifacts(home, process="b")
    digest = seal_pending(other)
    assert mine.sweep(frozenset) == ()
    assert mine.check(digest) and other.pending() == (digest,)


def test_a_sweep_asks_whether_it_is_alone_after_what_is_named(home: Path) -> None:
    mine, asked = Artifacts(home, process="a"), list[str]()
    digest = seal(mine)

    def named() -> frozenset[str]:
        asked.append("named")
        return frozenset()

    def alone() -> bool:
        asked.append("alone")
        return False

    assert mine.sweep(named, alone) == ()
    assert mine.check(digest) and asked == ["named", "alone"]


# --- uploads ------------------------------------------------------------------------------------------------------


def test_an_upload_stands_under_its_digest_once_it_is_finished(artifacts: Artifacts, home: Path) -> None:
    data = os.urandom(100_000)
    digest = digest_bytes(data)
    with artifacts.receive("olga", digest, len(data)) as upload:
        for start in range(0, len(data), 7_000):
            upload.write(data[start : start + 7_000])
        with pytest.raises(NotFound):
            artifacts.upload("olga", digest)
        assert upload.finish() == artifacts.upload("olga", digest)
    assert artifacts.upload("olga", digest).read_bytes() == data
    assert stat.S_IMODE(artifacts.upload("olga", digest).stat().st_mode) == 0o600
    artifacts.discard_upload("olga", digest, sent_by=artifacts.upload("olga", digest).stat().st_mtime - 1)
    assert artifacts.upload("olga", digest).read_bytes() == data, "it was sent later"
    artifacts.discard_upload("olga", digest)
    artifacts.discard_upload("olga", digest)
    assert list((home / "uploads").glob("*/*")) == []


def test_bytes_of_another_digest_are_not_kept(artifacts: Artifacts, home: Path) -> None:
    with (
        pytest.raises(BadInput, match="expected the bytes of sha256"),
        artifacts.receive("olga", digest_bytes(b"a"), 1) as upload,
    ):
        upload.write(b"b")
        upload.finish()
    assert list((home / "uploads").glob("*/*")) == []


def test_more_bytes_than_announced_are_refused_as_they_come(artifacts: Artifacts, home: Path) -> None:
    with pytest.raises(TooLarge), artifacts.receive("olga", digest_bytes(b"abcd"), 3) as upload:
        upload.write(b"ab")
        upload.write(b"cd")
    assert list((home / "uploads").glob("*/*")) == []


def test_an_upload_that_is_broken_off_leaves_nothing(artifacts: Artifacts, home: Path) -> None:
    with artifacts.receive("olga", digest_bytes(b"abcd"), 4) as upload:
        upload.write(b"ab")
    assert list((home / "uploads").glob("*/*")) == []


# --- the power goes -----------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Not an Exception: nothing cleans up after it on purpose; what does run is undone below."""


CALLS = ("open", "mkdir", "write", "fchmod", "fsync", "rename", "link", "unlink", "rmdir", "chmod", "ftruncate")


@contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[str]]:
    """From the `at`-th system call on, the machine is off: every further one does nothing but raise."""
    made: list[str] = []
    with monkeypatch.context() as patch:
        for name in CALLS:
            real = getattr(os, name)

            def call(*args: Any, _name: str = name, _real: Any = real, **kwargs: Any) -> Any:
                if len(made) >= at:
                    raise PowerCut
                made.append(_name)
                return _real(*args, **kwargs)

            patch.setattr(os, name, call)
        yield made


def run_until_cut(monkeypatch: pytest.MonkeyPatch, at: int, work: Callable[[], object]) -> bool:
    """Whether the work came to its end."""
    with power_cut(monkeypatch, at):
        try:
            work()
        except PowerCut:
            return False
    return True


@pytest.mark.essential
def test_a_power_cut_between_any_two_calls_leaves_an_artifact_whole_or_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = digest_bytes(manifest_of(FILES))
    whole = absent = 0
    for at in range(400):
        home = tmp_path / str(at)
        ended = run_until_cut(monkeypatch, at, lambda home=home: seal(Artifacts(home)))
        after = Artifacts(home)
        after.sweep(lambda: frozenset([digest]))
        try:
            after.check(digest)
        except Unavailable:
            assert not ended
            absent += 1
        else:
            assert {name: after.read_beside(digest, name) for name in BESIDE} == BESIDE
            whole += 1
        assert not list(home.glob("artifacts/.*")), "nothing half-made is left after the sweep"
        unnamed = Artifacts(tmp_path / f"{at}-unnamed")
        run_until_cut(monkeypatch, at, lambda unnamed=unnamed: seal_pending(unnamed))
        unnamed.sweep(frozenset)
        assert not list((tmp_path / f"{at}-unnamed" / "artifacts").iterdir()), "no entry names it, so nothing is left"
        assert seal(after) == digest
        after.check(digest)
        if ended:
            break
    assert ended and absent > 20 and whole >= 2


def test_a_power_cut_between_any_two_calls_leaves_an_upload_whole_or_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = b"x" * 1000
    digest = digest_bytes(data)

    def send(artifacts: Artifacts) -> None:
        with artifacts.receive("olga", digest, len(data)) as upload:
            upload.write(data[:500])
            upload.write(data[500:])
            upload.finish()

    for at in range(100):
        home = tmp_path / str(at)
        ended = run_until_cut(monkeypatch, at, lambda home=home: send(Artifacts(home)))
        try:
            assert Artifacts(home).upload("olga", digest).read_bytes() == data
        except NotFound:
            assert not ended
        if ended:
            break
    assert ended and at > 8


def test_everything_is_on_disk_before_the_name_that_shows_it(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A power cut loses what was not synced: each rename follows the sync of all it shows, and is synced itself."""
    artifacts = Artifacts(home)
    events: list[tuple[str, Any]] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(descriptor: int) -> None:
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def note_rename(source: Any, target: Any, **kwargs: Any) -> None:
        below = [path.stat().st_ino for path in (Path(source), *Path(source).rglob("*"))]
        events.append(("rename", (below, Path(target).parent.stat().st_ino)))
        rename(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    digest = seal(artifacts)
    with artifacts.receive("olga", digest_bytes(b"abc"), 3) as upload:
        upload.write(b"abc")
        upload.finish()
    artifacts.quarantine(digest)
    renames = [place for place, (kind, _) in enumerate(events) if kind == "rename"]
    assert len(renames) == 3 + len(BESIDE) + 1
    for place in renames:
        shown, parent = events[place][1]
        synced = {value for kind, value in events[:place] if kind == "fsync"}
        assert set(shown) <= synced
        assert ("fsync", parent) in events[place:]


def test_a_disk_that_fails_is_unavailable(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with artifacts.staging() as staging:
        digest = fill(staging)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(Unavailable, match="No space left"):
            artifacts.seal(staging, digest)
        with (
            pytest.raises(Unavailable, match="No space left"),
            artifacts.receive("olga", digest_bytes(b""), 0) as upload,
        ):
            upload.finish()
    with pytest.raises(NotFound):
        artifacts.path(digest)


def send(artifacts: Artifacts, data: bytes) -> str:
    with artifacts.receive("olga", digest_bytes(data), len(data)) as upload:
        upload.write(data)
        upload.finish()
    return digest_bytes(data)


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staging folders are on another file system than uploads."""

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)


def test_an_upload_is_placed_in_a_staging_folder_without_a_copy(artifacts: Artifacts) -> None:
    digest = send(artifacts, b"rows")
    with artifacts.staging() as staging:
        artifacts.place_upload("olga", digest, staging / "rows.csv")
        assert (staging / "rows.csv").samefile(artifacts.upload("olga", digest))


@pytest.mark.usefixtures("other_disk")
def test_an_upload_is_copied_to_a_staging_folder_on_another_disk(artifacts: Artifacts) -> None:
    data = os.urandom((2 << 20) + 5)
    digest = send(artifacts, data)
    with artifacts.staging() as staging:
        artifacts.place_upload("olga", digest, staging / "rows.csv")
        assert (staging / "rows.csv").read_bytes() == data
        assert stat.S_IMODE((staging / "rows.csv").stat().st_mode) == 0o600
        with pytest.raises(Unavailable, match="File exists"):
            artifacts.place_upload("olga", digest, staging / "rows.csv")


@pytest.mark.usefixtures("other_disk")
def test_a_copy_of_an_upload_has_the_bytes_of_its_digest(artifacts: Artifacts) -> None:
    digest = send(artifacts, b"rows")
    artifacts.upload("olga", digest).write_bytes(b"owls")
    with artifacts.staging() as staging, pytest.raises(Tampered, match="expected its bytes to be unchanged"):
        artifacts.place_upload("olga", digest, staging / "rows.csv")


def test_the_lines_of_a_file_are_read_one_by_one(artifacts: Artifacts) -> None:
    files = {"rows.jsonl": b"x" * 999 + b"\n" + (b"y" * 99 + b"\n") * 50_000 + b"z"}
    with artifacts.staging() as staging:
        digest = fill(staging, files)
        artifacts.seal(staging, digest, BESIDE)
    tracemalloc.start()
    try:
        lengths = [len(line) for line in artifacts.read_lines(digest, "rows.jsonl")]
        assert tracemalloc.get_traced_memory()[1] < 2_000_000 < len(files["rows.jsonl"])
    finally:
        tracemalloc.stop()
    assert (lengths[0], lengths[-1], len(lengths)) == (1_000, 1, 50_002)


@pytest.mark.parametrize("path", ["a" * 2_000, f"config/{'a' * 2_000}", "/".join(["config"] * 2_000)])
def test_a_name_that_is_too_long_is_the_name_of_no_file(artifacts: Artifacts, path: str) -> None:
    with pytest.raises(NotFound, match="expected a file, got none"):
        artifacts.read(seal(artifacts), path)
