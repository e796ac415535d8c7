"""A worker's output is listed before it is hashed, so that many or sparse files do not block the service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import BadInput
from appliance.workflows.data import folders
from appliance.workflows.data.folders import list_files


def test_a_file_with_more_bytes_than_the_disk_is_refused_before_it_is_hashed(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    for name in "ab":
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, disk.f_blocks * disk.f_frsize // 2 + disk.f_frsize)
    with pytest.raises(BadInput, match="no more bytes than the disk has"):
        list_files(tmp_path, "base", 1)


def test_more_files_than_a_manifest_has_are_refused_before_they_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_FILES", 3)
    (tmp_path / "0").mkdir()
    for name in "abc":
        (tmp_path / name).touch()
    with pytest.raises(BadInput, match="at most 3 files"):
        list_files(tmp_path, "base", 1)


@pytest.mark.parametrize("name", ["two\nlines", "caf\udce9", "-rf", ".hidden", "a b"])
def test_a_name_that_is_not_plain_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(BadInput):
        list_files(tmp_path, "base", 1)
