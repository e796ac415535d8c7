"""System calls that Python's standard library lacks: by number, for Landlock, capabilities and limits."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterable

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
    """Make one system call; bytes are passed as a NUL-terminated string, buffers by address.

    Raises:
        OSError: the call failed; the message has its name.
        Unavailable: the platform is not Linux on x86_64 or aarch64.
    """
    column = _COLUMNS.get(MACHINE)
    if column is None or sys.platform != "linux":
        raise Unavailable(f"sandbox: expected Linux on x86_64 or aarch64, got {sys.platform} on {MACHINE}")
    # ctypes would pass a Python int as 32 bits, so convert it to fill the whole register.
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(_NUMBERS[name][column]), *words)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: Argument) -> int:
    """Call prctl(2) with unused arguments set to zero, as several options require."""
    return call("prctl", option, *arguments, *([0] * (4 - len(arguments))))


_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1
_LOG_NEW_EXEC_ON = 2  # ABI 7: log denied accesses after the worker's exec in the kernel's audit log

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG, REFER, TRUNCATE, IOCTL_DEV = 1 << 7, 1 << 8, 1 << 13, 1 << 14, 1 << 15

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
# A worker may create plain files and folders, but no links, sockets, pipes or device nodes.
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

# File system rights by ABI: all bits below this one (linux/landlock.h).
_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NEWEST = 7
_TCP = 0b11  # bind and connect, ABI 4
_SCOPES = 0b11  # abstract Unix sockets and signals, ABI 6


def abi() -> int:
    """Return the kernel's Landlock ABI, at most the newest that this file supports.

    Raises:
        OSError: the kernel has no Landlock.
    """
    return min(_NEWEST, call("landlock_create_ruleset", None, 0, _CREATE_VERSION))


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
        call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(descriptor)


def restrict(rules: Iterable[tuple[str, int]]) -> int:
    """Restrict this process and its children to `rules` (path, rights) and return the ABI; it requires no_new_privs."""
    version = abi()
    attributes = _attributes(version)
    ruleset = call(
        "landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0
    )
    try:
        handled = struct.unpack_from("=Q", attributes)[0]
        for path, rights in rules:
            _add(ruleset, path, rights, handled)
        call("landlock_restrict_self", ruleset, _LOG_NEW_EXEC_ON if version >= 7 else 0)
    finally:
        os.close(ruleset)
    return version


_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 4, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 38, 39, 47, 4
# NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each locked, so that user id 0 has no privileges.
_SECUREBITS = 0b11 | 0b1100 | 0b11000000
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_GRACE_S = 5


def has_capability(number: int) -> bool:
    """Return True if this process has the capability in its effective set."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def die_with_parent() -> None:
    """Request SIGKILL when the parent's thread ends; only reliable if the parent has one thread, as the launcher
    has."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def forbid_dumps() -> None:
    """Forbid core dumps and ptrace by processes of the same user; /proc/PID then belongs to root.

    An exec resets this, so `enter` repeats it.
    """
    prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """Set no_new_privs, after which set-user-id files and file capabilities have no effect."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        raise OSError(errno.EPERM, "no_new_privs: set, and not found set")


def drop_capabilities() -> None:
    """Clear the bounding, ambient, inheritable, permitted and effective capability sets irrevocably."""
    for number in range(_LAST_CAPABILITY + 1):
        try:
            prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # above the kernel's last capability
                break
            if error.errno == errno.EPERM:  # not permitted to drop it, so it cannot be used either
                break
            raise
    with contextlib.suppress(PermissionError):
        prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    empty = bytes(24)
    call("capset", ctypes.create_string_buffer(header, 8), ctypes.create_string_buffer(empty, 24))


def limit(limits: dict[str, int | None]) -> None:
    """Set hard and soft limits by their RLIMIT_ name; None keeps the service's own limit.

    At its CPU limit a process gets SIGXCPU, so that its exit code shows the reason; if it ignores the signal, it is
    killed afterwards.
    """
    fixed: dict[str, int | None] = {"CORE": 0, "MSGQUEUE": 0, "RTPRIO": 0, "NICE": 0}
    for name, value in {**limits, **fixed}.items():
        if value is None:
            continue
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        last = value + _GRACE_S if name == "CPU" else value
        ceiling = last if hard == resource.RLIM_INFINITY else min(last, hard)
        resource.setrlimit(kind, (min(value, ceiling), ceiling))


def go_first_when_memory_runs_out() -> None:
    """Make the kernel prefer this process and its children to the service when memory runs out."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("500")


def forget_inherited_state() -> None:
    """Reset signal handlers and the signal mask, and set a private umask."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o077)
