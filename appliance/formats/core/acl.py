"""The access control list of a file, as the kernel stores it in the attribute `system.posix_acl_access`.

Format: u32 version 2, then entries of u16 tag, u16 rights, u32 id, little-endian (linux/posix_acl_xattr.h).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection

ATTRIBUTE = "system.posix_acl_access"
"""Name of the extended attribute that holds a POSIX access control list."""
_VERSION = 2
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NO_ID = 0xFFFF_FFFF
"""The id of an entry that names no user and no group."""
_READ_AND_WRITE = 6


def is_private(descriptor: int, user: int) -> bool:
    """Return True if only the owner of an open file and `user` can read, write or run it.

    systemd gives a credential to a service's user by such a list. The mode of such a file shows the list's mask in
    place of its group's rights.
    """
    try:
        acl = os.getxattr(descriptor, ATTRIBUTE)
    except OSError:  # the file has no list, or its file system has none
        return not os.fstat(descriptor).st_mode & 0o077
    return is_private_list(acl, user)


def is_private_list(acl: bytes, user: int) -> bool:
    """Return True if a list gives rights only to the owner and to `user`. A list that cannot be read gives them to
    others.
    """
    if len(acl) % 8 != 4 or struct.unpack_from("<I", acl) != (_VERSION,):
        return False
    entries = list(struct.iter_unpack("<HHI", acl[4:]))
    return all(
        not rights or tag in (_OWNER, _MASK) or (tag == _USER and identity == user) for tag, rights, identity in entries
    )


def encode_shared_list(users: Collection[int]) -> bytes:
    """Encode a list by which the owner and these users alone can read and write."""
    entries = [
        (_OWNER, _READ_AND_WRITE, _NO_ID),
        *((_USER, _READ_AND_WRITE, user) for user in sorted(users)),
        (_GROUP, 0, _NO_ID),
        (_MASK, _READ_AND_WRITE, _NO_ID),
        (_OTHERS, 0, _NO_ID),
    ]
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
