"""Recognises dm-crypt below a folder from the kernel's own description of its block devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.store.files.disk import is_encrypted


def describe(node: Path, uuid: str | None, *lower: Path) -> Path:
    """Make the description of a block device on others, as the kernel has it in /sys."""
    (node / "slaves").mkdir(parents=True)
    if uuid is not None:
        (node / "dm").mkdir()
        (node / "dm" / "uuid").write_text(f"{uuid}\n", "ascii")
    for one in lower:
        (node / "slaves" / one.name).symlink_to(one)
    return node


@pytest.fixture
def name(tmp_path: Path) -> str:
    device = os.stat(tmp_path).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


@pytest.mark.parametrize(
    ("disks", "expected"),
    [
        (("CRYPT-LUKS2-1",), True),
        (("CRYPT-LUKS2-1", "CRYPT-PLAIN-2"), True),
        (("CRYPT-LUKS2-1", None), False),
        ((None,), False),
        ((), False),
    ],
)
def test_a_volume_is_encrypted_if_all_disks_below_it_are(
    tmp_path: Path, name: str, disks: tuple[str | None, ...], expected: bool
) -> None:
    lower = [describe(tmp_path / f"dm-{number}", uuid) for number, uuid in enumerate(disks)]
    describe(tmp_path / name, "LVM-volume" if disks else None, *lower)
    assert is_encrypted(tmp_path, tmp_path) is expected


def test_an_encrypted_device_itself_is_recognised(tmp_path: Path, name: str) -> None:
    describe(tmp_path / name, "CRYPT-LUKS2-1", describe(tmp_path / "sda", None))
    assert is_encrypted(tmp_path, tmp_path) is True


def test_a_file_system_without_a_block_device_is_unknown(tmp_path: Path) -> None:
    assert is_encrypted(tmp_path, tmp_path) is None
