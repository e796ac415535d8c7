"""A worker's output is read without trusting a name in it: plain files, no link followed, never more than asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import NotFound, Tampered, TooLarge
from appliance.sandbox.output import list_output, open_output, read_output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "below").mkdir(parents=True)
    (folder / "adapter").write_bytes(b"weights")
    (folder / "below" / "file").write_bytes(b"deep")
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


def test_plain_files_are_read(output: Path) -> None:
    assert read_output(output, "adapter", 100) == b"weights"
    assert read_output(output, "below/file", 4) == b"deep"


def test_a_file_over_the_limit_is_refused(output: Path) -> None:
    assert read_output(output, "adapter", 7) == b"weights"
    with pytest.raises(TooLarge):
        read_output(output, "adapter", 6)


def test_a_link_to_a_file_is_refused(output: Path) -> None:
    (output / "link").symlink_to(output.parent / "secret")
    with pytest.raises(Tampered):
        read_output(output, "link", 100)


def test_a_link_to_a_folder_on_the_way_is_refused(output: Path) -> None:
    (output / "away").symlink_to(output.parent)
    with pytest.raises(Tampered):
        read_output(output, "away/secret", 100)


def test_the_folder_itself_may_not_be_a_link(output: Path) -> None:
    (output.parent / "other").symlink_to(output)
    with pytest.raises(Tampered):
        read_output(output.parent / "other", "adapter", 100)


@pytest.mark.parametrize("name", ["../secret", "below/../../secret", "/etc/passwd", "", "."])
def test_a_name_that_leads_out_is_refused(output: Path, name: str) -> None:
    with pytest.raises(Tampered):
        read_output(output, name, 100)


def test_a_pipe_neither_opens_nor_blocks(output: Path) -> None:
    os.mkfifo(output / "pipe")
    with pytest.raises(Tampered):
        read_output(output, "pipe", 100)


def test_a_folder_is_not_a_file(output: Path) -> None:
    with pytest.raises(Tampered):
        open_output(output, "below")


def test_a_second_name_of_a_foreign_file_is_refused(output: Path) -> None:
    (output / "linked").hardlink_to(output.parent / "secret")
    with pytest.raises(Tampered):
        read_output(output, "linked", 100)


def test_a_missing_file_is_not_found(output: Path) -> None:
    for name in ("absent", "absent/file"):
        with pytest.raises(NotFound):
            read_output(output, name, 100)


def test_the_list_names_links_and_does_not_follow_them(output: Path) -> None:
    (output / "away").symlink_to("/etc")
    assert list_output(output) == ("adapter", "away", "below/", "below/file")


def test_a_list_without_end_is_refused(output: Path) -> None:
    deep = output
    for _ in range(20):
        deep = deep / "d"
        deep.mkdir()
    with pytest.raises(TooLarge, match="deep"):
        list_output(output)
    with pytest.raises(TooLarge, match="names"):
        list_output(output, max_names=3)


def test_nothing_stays_open(output: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (output / "link").symlink_to("/etc/passwd")
    for name in ("adapter", "link", "below", "absent", "below/absent"):
        try:
            read_output(output, name, 100)
        except (Tampered, NotFound):
            continue
    assert len(os.listdir("/proc/self/fd")) == before
