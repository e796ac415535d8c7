"""Files that a person's commands write: whole, or not there and said."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from appliance.client.support import files
from appliance.errors import BadInput, Unavailable


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
