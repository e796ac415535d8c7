"""What a process gives up before it runs a worker: capabilities, new privileges, dumps, limits, inherited state."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct

from appliance.runners.walls import kernel

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 4, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 38, 39, 47, 4
# NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each with its lock: user id 0 is worth nothing.
_SECUREBITS = 0b11 | 0b1100 | 0b11000000
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_GRACE_S = 5


def has_capability(number: int) -> bool:
    """Whether this process holds one capability in its effective set."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def die_with_parent() -> None:
    """SIGKILL when the parent's thread ends: sound only where the parent has one thread, as the launcher has."""
    kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def forbid_dumps() -> None:
    """No core, no ptrace by equals, /proc/PID owned by root. An exec undoes it: `enter` repeats it."""
    kernel.prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """Set-user-id files and file capabilities are worth nothing from here on."""
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if kernel.prctl(_PR_GET_NO_NEW_PRIVS) != 1:
        raise OSError(errno.EPERM, "no_new_privs: set, and not found set")


def drop_capabilities() -> None:
    """Empties the bounding, ambient, inheritable, permitted and effective sets, irrevocably."""
    for number in range(_LAST_CAPABILITY + 1):
        try:
            kernel.prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:  # above the kernel's last capability
                break
            if error.errno == errno.EPERM:  # not ours to drop, hence not ours to use
                break
            raise
    with contextlib.suppress(PermissionError):
        kernel.prctl(_PR_SET_SECUREBITS, _SECUREBITS)
    kernel.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    empty = bytes(24)
    kernel.call("capset", ctypes.create_string_buffer(header, 8), ctypes.create_string_buffer(empty, 24))


def limit(limits: dict[str, int | None]) -> None:
    """Sets hard and soft limits by their RLIMIT_ name; None leaves the service's own limit.

    At its CPU limit a process gets SIGXCPU, whose exit code shows why it ended; a process that ignores it is killed
    afterwards.
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
    """The kernel shall end the worker, not the service; inherited by what this process starts."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("500")


def forget_inherited_state() -> None:
    """Default signal handling, nothing blocked, a private umask."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o077)
