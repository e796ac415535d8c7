"""A file is private or not, however its rights are written: as a mode or as a list."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from appliance.formats.core.acl import ATTRIBUTE, is_private, is_private_list

ME, ANOTHER, NOBODY = 1000, 1001, 0xFFFF_FFFF
OWNER, USER, OWN_GROUP, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
READ = 4


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


CREDENTIAL = ((OWNER, READ, NOBODY), (USER, READ, ME), (OWN_GROUP, 0, NOBODY), (MASK, READ, NOBODY), (OTHER, 0, NOBODY))
"""As systemd writes it."""


@pytest.mark.parametrize(
    ("entries", "private"),
    [
        (CREDENTIAL, True),
        ((*CREDENTIAL, (USER, READ, ANOTHER)), False),
        ((*CREDENTIAL, (USER, 0, ANOTHER)), True),
        ((*CREDENTIAL, (GROUP, READ, ME)), False),
        (((OWNER, READ, NOBODY), (OWN_GROUP, READ, NOBODY), (OTHER, 0, NOBODY)), False),
        (((OWNER, READ, NOBODY), (OWN_GROUP, 0, NOBODY), (OTHER, READ, NOBODY)), False),
        (((OWNER, READ, NOBODY), (OWN_GROUP, 0, NOBODY), (OTHER, 0, NOBODY)), True),
    ],
)
def test_a_list_is_private_if_it_gives_rights_to_its_owner_and_this_user(
    entries: tuple[tuple[int, int, int], ...], private: bool
) -> None:
    assert is_private_list(acl(*entries), ME) is private


@pytest.mark.parametrize("data", [b"", b"\2\0\0", acl(version=1), acl(*CREDENTIAL)[:-1], acl(*CREDENTIAL, version=3)])
def test_a_list_that_cannot_be_read_is_not_private(data: bytes) -> None:
    assert not is_private_list(data, ME)


def test_a_file_of_root_for_one_user_is_private_although_its_mode_says_otherwise(tmp_path: Path) -> None:
    """On a file system with lists; a file without one is judged by its mode."""
    path = tmp_path / "key"
    path.write_text("secret")
    with path.open() as file:
        for mode, private in ((0o600, True), (0o400, True), (0o440, False), (0o604, False)):
            path.chmod(mode)
            assert is_private(file.fileno(), ME) is private
        os.setxattr(path, ATTRIBUTE, acl(*CREDENTIAL))
        assert path.stat().st_mode & 0o777 == 0o440
        assert is_private(file.fileno(), ME)
        assert not is_private(file.fileno(), ANOTHER)
