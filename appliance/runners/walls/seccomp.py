"""The system call filters: classic BPF, assembled here and installed without a library (seccomp(2), filter mode).

The first binds the worker before its exec; the second, after it, refuses every other exec. Foreign architectures (i386
by int 0x80, 32-bit ARM) and x32 numbers kill the process: the table below would read them as other calls. Calls younger
than the table answer ENOSYS, all others that are not listed EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from appliance.runners.walls import kernel, syscalls

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL, _GREATER, _AT_LEAST, _ANY_BIT = 0x15, 0x25, 0x35, 0x45  # BPF_JMP | BPF_J* | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
REFUSE = _ERRNO | errno.EPERM
ABSENT = _ERRNO | errno.ENOSYS

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NAMESPACE_FLAGS = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
# GET_PDEATHSIG, GET_DUMPABLE, NAME (set, get), SECCOMP (get, set: a second filter can only tighten),
# CAPBSET_READ, TIMERSLACK (set, get), NO_NEW_PRIVS (set, get), THP_DISABLE (set, get), SET_VMA (glibc names its heaps)
_PRCTL_OPTIONS = (2, 3, 15, 16, 21, 22, 23, 29, 30, 38, 39, 41, 42, 0x53564D41)
_PR_SET_DUMPABLE = 4
# DUPFD, GETFD, SETFD, GETFL, SETFL, GETLK, SETLK, SETLKW, the same three of open files, DUPFD_CLOEXEC, SETPIPE_SZ,
# GETPIPE_SZ. No leases, which block other processes that open the file, no signals to others, no watching of folders.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032)
_MAKES_FILE = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE
_SPECIAL_MODE = 0o7000
_RENAME_WHITEOUT = 4  # leaves a character device behind
# TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: none of them reaches a device.
_IOCTLS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

Instruction = tuple[int, int, int, int]


def _argument(index: int, *, high: bool = False) -> Instruction:
    """Loads one half of a 64-bit argument from struct seccomp_data (little-endian on both architectures)."""
    return (_LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _either(values: tuple[int, ...], found: int, otherwise: int) -> list[Instruction]:
    steps: list[Instruction] = []
    for value in values:
        steps += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, found)]
    return [*steps, (_RETURN, 0, 0, otherwise)]


def _when(number: int, steps: list[Instruction]) -> list[Instruction]:
    """Runs `steps` for one call; they must end in a return."""
    return [(_EQUAL, 0, len(steps), number), *steps]


def _plain_mode(mode: int, flags: int | None = None) -> list[Instruction]:
    """Allows no set-user-id, set-group-id or sticky bit in this argument, where the flags make the kernel use it."""
    judge: list[Instruction] = [
        _argument(mode),
        (_ANY_BIT, 0, 1, _SPECIAL_MODE),
        (_RETURN, 0, 0, REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    if flags is None:
        return judge
    return [_argument(flags), (_ANY_BIT, 1, 0, _MAKES_FILE), (_RETURN, 0, 0, _ALLOW), *judge]


def _conditions(devices: bool) -> dict[str, list[Instruction]]:
    ioctl = _either(_TERMINAL_INJECTION, REFUSE, _ALLOW) if devices else _either(_IOCTLS, _ALLOW, REFUSE)
    not_dumpable: list[Instruction] = [
        (_EQUAL, 0, 3, _PR_SET_DUMPABLE),
        _argument(1),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        _argument(0),
    ]
    return {
        "clone": [
            _argument(0),
            (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS),
            (_RETURN, 0, 0, REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ],
        # Their flags are behind a pointer, which no filter can follow: glibc falls back to clone and openat.
        "clone3": [(_RETURN, 0, 0, ABSENT)],
        "openat2": [(_RETURN, 0, 0, ABSENT)],
        "open": _plain_mode(2, flags=1),
        "openat": _plain_mode(3, flags=2),
        "creat": _plain_mode(1),
        "mkdir": _plain_mode(1),
        "mkdirat": _plain_mode(2),
        "renameat2": [
            _argument(4),
            (_ANY_BIT, 0, 1, _RENAME_WHITEOUT),
            (_RETURN, 0, 0, REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ],
        "fcntl": [_argument(1), *_either(_FCNTL_COMMANDS, _ALLOW, REFUSE)],
        # Memory that is a file: not counted as the worker's own, and a program where it is run. A GPU's driver may
        # share memory by it.
        "memfd_create": [(_RETURN, 0, 0, _ALLOW if devices else REFUSE)],
        "ioctl": [_argument(1), *ioctl],
        "prctl": [_argument(0), *not_dumpable, *_either(_PRCTL_OPTIONS, _ALLOW, REFUSE)],
        # Reading limits only: the new limit must be a null pointer.
        "prlimit64": [
            _argument(2),
            (_EQUAL, 0, 3, 0),
            _argument(2, high=True),
            (_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, REFUSE),
        ],
    }


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _numbers(names: frozenset[str], machine: str) -> dict[str, int]:
    known = {name: syscalls.number_of(name, machine) for name in sorted(names)}
    return {name: number for name, number in known.items() if number is not None}


def assemble_filter(machine: str, *, devices: bool) -> bytes:
    """The filter as an array of struct sock_filter; `devices` opens ioctl, which a GPU driver needs."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    program += [(_GREATER, 0, 1, syscalls.LAST_KNOWN[machine]), (_RETURN, 0, 0, ABSENT)]
    for first, last in _ranges(list(_numbers(syscalls.ALLOWED, machine).values())):
        program += [(_AT_LEAST, 0, 2, first), (_GREATER, 1, 0, last), (_RETURN, 0, 0, _ALLOW)]
    conditions = _conditions(devices)
    for name, number in _numbers(syscalls.FILTERED, machine).items():
        program += _when(number, conditions[name])
    return _encode([*program, (_RETURN, 0, 0, REFUSE)])


def assemble_exec_filter(machine: str) -> bytes:
    """The second filter: no program is run any more. The first has said which table the numbers are of."""
    numbers = tuple(_numbers(syscalls.EXEC, machine).values())
    return _encode([(_LOAD, 0, 0, 0), *_either(numbers, REFUSE, _ALLOW)])


def _encode(program: list[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def install_filter(*, devices: bool) -> None:
    """Binds this process and all that it starts, irrevocably; needs no_new_privs. OSError where the kernel cannot."""
    if kernel.MACHINE not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"seccomp: no table for {kernel.MACHINE}")
    _install(assemble_filter(kernel.MACHINE, devices=devices))


def forbid_exec() -> None:
    """Adds the second filter. OSError where the kernel cannot."""
    _install(assemble_exec_filter(kernel.MACHINE))


def _install(code: bytes) -> None:
    instructions = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    kernel.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))
