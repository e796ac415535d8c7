"""Raw system calls: the few that Python's standard library does not offer, by number, with errno as an OSError."""

from __future__ import annotations

import ctypes
import os
import sys

from appliance.errors import Unavailable

MACHINE = os.uname().machine

# name: (x86_64, aarch64)
_NUMBERS = {
    "capset": (126, 91),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "unshare": (272, 97),
    "sethostname": (170, 161),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_COLUMNS = {"x86_64": 0, "aarch64": 1}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def call(name: str, *arguments: Argument) -> int:
    """Makes one system call; bytes are passed as a NUL-terminated string, buffers by address.

    Raises OSError with the call's name, and ENOSYS where this architecture's table is unknown to us.
    """
    column = _COLUMNS.get(MACHINE)
    if column is None or sys.platform != "linux":
        raise Unavailable(f"sandbox: expected Linux on x86_64 or aarch64, got {sys.platform} on {MACHINE}")
    # A Python int would be passed as a 32-bit int: every argument register is filled whole.
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(_NUMBERS[name][column]), *words)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: Argument) -> int:
    """prctl(2) with unused arguments zero, as several options demand."""
    return call("prctl", option, *arguments, *([0] * (4 - len(arguments))))
