"""Landlock by raw system calls: what the worker may open, and nothing else (landlock(7), ABI 1 to 7).

A rule grants rights below one path; every right that the kernel has is handled, so what has no rule is refused.
Landlock does not govern stat, chmod, chown, utimes and links' metadata: the call filter and the mount namespace do.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from appliance.runners.walls import kernel

_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1
_LOG_NEW_EXEC_ON = 2  # ABI 7: the kernel's audit log names what the worker was refused after its exec

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG, REFER, TRUNCATE, IOCTL_DEV = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
# No links, sockets, pipes or device nodes: a worker makes plain files and folders.
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

# Rights of the file system by ABI: all bits below this one.
_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NEWEST = 7
_TCP = 0b11  # bind and connect, ABI 4
_SCOPES = 0b11  # abstract Unix sockets and signals, ABI 6


def abi() -> int:
    """The kernel's Landlock ABI, at most the newest that this file supports; OSError where there is none."""
    return min(_NEWEST, kernel.call("landlock_create_ruleset", None, 0, _CREATE_VERSION))


def _attributes(version: int) -> bytes:
    handled = (1 << _BITS[min(version, 5)]) - 1
    if version < 4:
        return struct.pack("=Q", handled)
    if version < 6:
        return struct.pack("=QQ", handled, _TCP)
    return struct.pack("=QQQ", handled, _TCP, _SCOPES)


def _add(ruleset: int, path: str, rights: int, handled: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights & handled, descriptor)
        kernel.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(descriptor)


def restrict(rules: Iterable[tuple[str, int]]) -> int:
    """Binds this process and all it starts to `rules` (path, rights); returns the ABI. Needs no_new_privs."""
    version = abi()
    attributes = _attributes(version)
    ruleset = kernel.call(
        "landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0
    )
    try:
        handled = struct.unpack_from("=Q", attributes)[0]
        for path, rights in rules:
            _add(ruleset, path, rights, handled)
        kernel.call("landlock_restrict_self", ruleset, _LOG_NEW_EXEC_ON if version >= 7 else 0)
    finally:
        os.close(ruleset)
    return version
