"""The rules that go to the kernel: every right of each ABI is handled, and a file is given no folder's rights."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from appliance.sandbox import kernel, mounts


@pytest.mark.parametrize(
    ("abi", "size", "rights"),
    [(1, 8, 13), (2, 8, 14), (3, 8, 15), (4, 16, 15), (5, 16, 16), (6, 24, 16), (7, 24, 16)],
)
def test_every_right_that_an_abi_knows_is_handled(abi: int, size: int, rights: int) -> None:
    """A kernel refuses a structure with bits it does not know, and leaves open what is not handled."""
    attributes = kernel._attributes(abi)
    assert len(attributes) == size
    words = struct.unpack(f"={size // 8}Q", attributes)
    assert words == ((1 << rights) - 1, 3, 3)[: size // 8]


def test_a_worker_makes_plain_files_and_folders_only() -> None:
    made = {bit for bit in range(16) if kernel.WRITE >> bit & 1}
    assert made == {1, 2, 3, 4, 5, 7, 8, 13, 14}  # not to run, nor devices, sockets, pipes, links, ioctl


def test_this_kernels_abi_is_one_we_speak() -> None:
    assert 1 <= kernel.abi() <= 7


def test_a_path_is_followed_and_its_links_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real" / "lib").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "lib64").symlink_to("lib")
    (tmp_path / "far").symlink_to(tmp_path / "link" / "lib64")
    base = Path(mounts.follow(str(tmp_path))[0])
    path, links = mounts.follow(str(base / "far"))
    assert path == str(base / "real" / "lib")
    assert links == {
        str(base / "far"): str(tmp_path / "link" / "lib64"),
        str(base / "link"): "real",
        str(base / "real" / "lib64"): "lib",
    }


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="links"):
        mounts.follow(str(tmp_path / "a"))
