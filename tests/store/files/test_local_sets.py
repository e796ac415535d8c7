"""Tasks and metrics in the home: named by their folders, known by the digest of their files, copied whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.domain.core.records.data import LocalSet
from appliance.errors import BadInput, NotFound, Tampered, TooLarge
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes
from appliance.store.files import local_sets as subject
from appliance.store.files.local_sets import LocalSets

YAML, ROWS = b"task: colours\n", b'{"question": "?"}\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    task, metric = tmp_path / "harness/colours", tmp_path / "metrics/shout"
    for folder in (task / "data", task / "__pycache__", metric, tmp_path / "harness/empty"):
        folder.mkdir(parents=True)
    (task / "colours.yaml").write_bytes(YAML)
    (task / "data/test.jsonl").write_bytes(ROWS)
    (task / "__pycache__/evaluate.pyc").write_bytes(b"left by an interpreter")
    (metric / "shout.py").write_bytes(b"")
    return tmp_path


def test_a_set_is_a_folder_with_the_file_of_its_name_and_has_the_digest_of_all_its_files(home: Path) -> None:
    found = {one.set: one.digest for one in LocalSets(home).list()}
    listed = {"colours.yaml": digest_bytes(YAML), "data/test.jsonl": digest_bytes(ROWS)}
    assert found.keys() == {"harness-colours", "metric-shout"}
    assert found["harness-colours"] == digest_bytes(encode_canonical(listed))


def test_a_copy_has_the_files_that_the_digest_is_of_and_no_others(home: Path, tmp_path: Path) -> None:
    (bound,) = [one for one in LocalSets(home).list() if one.set == "harness-colours"]
    copy = tmp_path / "copy"
    copy.mkdir()
    LocalSets(home).copy(bound, copy)
    files = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert files == {"colours.yaml": YAML, "data/test.jsonl": ROWS}


def test_files_that_changed_or_are_gone_are_not_copied(home: Path, tmp_path: Path) -> None:
    (bound,) = [one for one in LocalSets(home).list() if one.set == "harness-colours"]
    (home / "harness/colours/data/test.jsonl").write_bytes(ROWS + ROWS)
    with pytest.raises(Tampered, match=f"set harness-colours: expected the files of {bound.digest}, which the order"):
        LocalSets(home).copy(bound, tmp_path)
    (home / "harness/colours/colours.yaml").unlink()
    with pytest.raises(
        NotFound, match=r"expected the file harness/colours/colours\.yaml in the home, got sets metric-"
    ):
        LocalSets(home).copy(bound, tmp_path)


@pytest.mark.parametrize("name", ["link.jsonl", "data/link"])
def test_a_set_with_a_link_in_its_folder_is_left_out(home: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (bound,) = [one for one in LocalSets(home).list() if one.set == "harness-colours"]
    (home / "harness/colours" / name).symlink_to(home)
    assert [one.set for one in LocalSets(home).list()] == ["metric-shout"]
    assert "set harness-colours, " in caplog.text and "expected regular files and folders alone" in caplog.text
    with pytest.raises(BadInput, match="expected regular files and folders alone"):
        LocalSets(home).copy(bound, home)


def test_more_files_than_a_set_may_have_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bound,) = [one for one in LocalSets(home).list() if one.set == "harness-colours"]
    monkeypatch.setattr(subject, "MOST_FILES", 1)
    with pytest.raises(TooLarge, match="expected at most 1 files"):
        LocalSets(home).copy(bound, home)


def test_a_folder_whose_name_is_no_name_of_a_set_is_left_out(home: Path) -> None:
    (home / "metrics/My_Metric").mkdir()
    (home / "metrics/My_Metric/My_Metric.py").write_bytes(b"")
    assert {one.set for one in LocalSets(home).list()} == {"harness-colours", "metric-shout"}


def test_a_home_without_such_folders_has_no_sets(tmp_path: Path) -> None:
    assert LocalSets(tmp_path).list() == []
    with pytest.raises(NotFound, match="got sets none"):
        LocalSets(tmp_path).copy(LocalSet(set="metric-shout", digest=digest_bytes(b"")), tmp_path)
