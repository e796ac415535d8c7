"""A file in the shared folder is used only if it matches its digest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import Tampered, Unavailable
from appliance.formats.core.digest import digest_bytes
from appliance.sandbox.output import ConfinedPath
from appliance.slurm.objects import get_file, has_file, put_file

DATA = b"weights" * 1000


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    folder = tmp_path / "objects"
    folder.mkdir()
    return folder


def put(objects: Path, data: bytes = DATA) -> Path:
    source = objects.parent / "source"
    source.write_bytes(data)
    descriptor = os.open(source, os.O_RDONLY)
    try:
        digest, size = put_file(descriptor, ConfinedPath(objects))
    finally:
        os.close(descriptor)
    assert (digest, size) == (digest_bytes(data), len(data))
    return objects / digest.removeprefix("sha256:")


def test_a_file_comes_out_as_it_was_put_in(objects: Path, tmp_path: Path) -> None:
    put(objects)
    get_file(ConfinedPath(objects), digest_bytes(DATA), len(DATA), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == DATA
    assert os.listdir(objects) == [digest_bytes(DATA).removeprefix("sha256:")]


@pytest.mark.parametrize("spoilt", [DATA[:-1], DATA + b"more", DATA[:-1] + b"X", b""])
def test_other_bytes_are_tampered_and_leave_nothing(objects: Path, tmp_path: Path, spoilt: bytes) -> None:
    put(objects).write_bytes(spoilt)
    assert not has_file(ConfinedPath(objects), digest_bytes(DATA), len(DATA))
    with pytest.raises(Tampered, match="shared folder, sha256:"):
        get_file(ConfinedPath(objects), digest_bytes(DATA), len(DATA), tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_no_bytes_are_unavailable(objects: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="expected its bytes, got none") as gone:
        get_file(ConfinedPath(objects), digest_bytes(DATA), len(DATA), tmp_path / "got")
    assert gone.value.code == "shared-folder"
    assert not (tmp_path / "got").exists()


def test_a_link_in_a_files_place_is_not_followed(objects: Path, tmp_path: Path) -> None:
    path = put(objects)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Tampered):
        get_file(ConfinedPath(objects), digest_bytes(DATA), len(DATA), tmp_path / "got")


def test_rotten_bytes_are_replaced_when_the_file_is_put_there_again(objects: Path) -> None:
    put(objects).write_bytes(b"rot")
    assert put(objects).read_bytes() == DATA
