"""System call filters: classic BPF, assembled here and installed without a library (seccomp(2), filter mode).

The first filter applies before the worker's exec; the second, after it, refuses any further exec. Foreign architectures
(i386 by int 0x80, 32-bit ARM) and x32 numbers kill the process, since their numbers mean other calls. Calls newer than
the table return ENOSYS, and all others that are not listed EPERM.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from appliance.sandbox import kernel

# Higher numbers are newer than this list and return ENOSYS, so that libraries fall back.
LAST_KNOWN = {"x86_64": 462, "aarch64": 462}

# Calls that are allowed for some arguments only, or refused after the exec; the rules are below.
FILTERED = frozenset(
    {"clone", "clone3", "creat", "fcntl", "ioctl", "memfd_create", "mkdir", "mkdirat", "open", "openat", "openat2"}
    | {"prctl", "prlimit64", "renameat2"}
)
EXEC = frozenset({"execve"})  # execveat is in no table below

# name: (x86_64, aarch64); None if the architecture has no such call.
# fmt: off
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "access": (21, None), "alarm": (37, None), "arch_prctl": (158, None), "brk": (12, 214), "capget": (125, 90),
    "chdir": (80, 49), "clock_getres": (229, 114), "clock_gettime": (228, 113), "clock_nanosleep": (230, 115),
    "clone": (56, 220), "clone3": (435, 435), "close": (3, 57), "close_range": (436, 436),
    "copy_file_range": (326, 285), "creat": (85, None), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441), "epoll_wait": (232, None), "eventfd": (284, None), "eventfd2": (290, 19),
    "execve": (59, 221), "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48),
    "faccessat2": (439, 439), "fadvise64": (221, 223), "fallocate": (285, 47), "fchdir": (81, 50),
    "fcntl": (72, 25), "fdatasync": (75, 83), "flock": (73, 32), "fork": (57, None), "fstat": (5, 80),
    "fstatfs": (138, 44), "fsync": (74, 82), "ftruncate": (77, 46), "futex": (202, 98), "futex_requeue": (456, 456),
    "futex_wait": (455, 455), "futex_waitv": (449, 449), "futex_wake": (454, 454), "get_mempolicy": (239, 236),
    "get_robust_list": (274, 100), "getcpu": (309, 168), "getcwd": (79, 17), "getdents": (78, None),
    "getdents64": (217, 61), "getegid": (108, 177), "geteuid": (107, 175), "getgid": (104, 176),
    "getgroups": (115, 158), "getitimer": (36, 102), "getpgid": (121, 155), "getpgrp": (111, None),
    "getpid": (39, 172), "getppid": (110, 173), "getpriority": (140, 141), "getrandom": (318, 278),
    "getresgid": (120, 150), "getresuid": (118, 148), "getrlimit": (97, 163), "getrusage": (98, 165),
    "getsid": (124, 156), "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174), "ioctl": (16, 29),
    "kill": (62, 129), "lseek": (8, 62), "lstat": (6, None), "madvise": (28, 233), "map_shadow_stack": (453, 453),
    "mbind": (237, 235), "membarrier": (324, 283), "memfd_create": (319, 279), "mincore": (27, 232),
    "mkdir": (83, None), "mkdirat": (258, 34), "mlock": (149, 228), "mlock2": (325, 284), "mlockall": (151, 230),
    "mmap": (9, 222), "mprotect": (10, 226), "mremap": (25, 216), "msync": (26, 227), "munlock": (150, 229),
    "munlockall": (152, 231), "munmap": (11, 215), "nanosleep": (35, 101), "newfstatat": (262, 79),
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "pause": (34, None), "pipe": (22, None),
    "pipe2": (293, 59), "pkey_alloc": (330, 289), "pkey_free": (331, 290), "pkey_mprotect": (329, 288),
    "poll": (7, None), "ppoll": (271, 73), "prctl": (157, 167), "pread64": (17, 67), "preadv": (295, 69),
    "preadv2": (327, 286), "prlimit64": (302, 261), "pselect6": (270, 72), "pwrite64": (18, 68),
    "pwritev": (296, 70), "pwritev2": (328, 287), "read": (0, 63), "readahead": (187, 213), "readlink": (89, None),
    "readlinkat": (267, 78), "readv": (19, 65), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "restart_syscall": (219, 128), "rmdir": (84, None), "rseq": (334, 293),
    "rt_sigaction": (13, 134), "rt_sigpending": (127, 136), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "sched_getaffinity": (204, 123), "sched_getattr": (315, 275),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "sched_rr_get_interval": (148, 127),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_yield": (24, 124), "select": (23, None), "sendfile": (40, 71),
    "set_mempolicy": (238, 237), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "setitimer": (38, 103),
    "setpriority": (141, 140), "sigaltstack": (131, 132), "signalfd4": (289, 74), "stat": (4, None),
    "statfs": (137, 43), "statx": (332, 291), "sync_file_range": (277, 84), "syncfs": (306, 267),
    "sysinfo": (99, 179), "tgkill": (234, 131), "time": (201, None), "timer_create": (222, 107),
    "timer_delete": (226, 111), "timer_getoverrun": (225, 109), "timer_gettime": (224, 108),
    "timer_settime": (223, 110), "timerfd_create": (283, 85), "timerfd_gettime": (287, 87),
    "timerfd_settime": (286, 86), "times": (100, 153), "tkill": (200, 130), "truncate": (76, 45),
    "umask": (95, 166), "uname": (63, 160), "unlink": (87, None), "unlinkat": (263, 35), "vfork": (58, None),
    "wait4": (61, 260), "waitid": (247, 95), "write": (1, 64), "writev": (20, 66),
}
# fmt: on

ALLOWED = frozenset(_NUMBERS) - FILTERED

_COLUMN = {"x86_64": 0, "aarch64": 1}


def number_of(name: str, machine: str) -> int | None:
    """Return the number of a call on `machine` (as `uname -m` names it), or None if it does not exist."""
    return _NUMBERS[name][_COLUMN[machine]]


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
# GETPIPE_SZ. Leases (which block other processes), signals to others and folder notifications are not allowed.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032)
_MAKES_FILE = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE
_SPECIAL_MODE = 0o7000
_RENAME_WHITEOUT = 4  # creates a character device
# TCGETS, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: none of them reaches a device.
_IOCTLS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

Instruction = tuple[int, int, int, int]


def _argument(index: int, *, high: bool = False) -> Instruction:
    """Load one half of a 64-bit argument from struct seccomp_data (little-endian on both architectures)."""
    return (_LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _either(values: tuple[int, ...], action: int, default_action: int) -> list[Instruction]:
    steps: list[Instruction] = []
    for value in values:
        steps += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, action)]
    return [*steps, (_RETURN, 0, 0, default_action)]


def _when(number: int, steps: list[Instruction]) -> list[Instruction]:
    """Run `steps`, which must end with a return, for one system call."""
    return [(_EQUAL, 0, len(steps), number), *steps]


def _plain_mode(mode: int, flags: int | None = None) -> list[Instruction]:
    """Refuse set-user-id, set-group-id and sticky bits in this argument if the flags make the kernel use it."""
    check: list[Instruction] = [
        _argument(mode),
        (_ANY_BIT, 0, 1, _SPECIAL_MODE),
        (_RETURN, 0, 0, REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    if flags is None:
        return check
    return [_argument(flags), (_ANY_BIT, 1, 0, _MAKES_FILE), (_RETURN, 0, 0, _ALLOW), *check]


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
        # Their flags are behind a pointer, which a filter cannot read; glibc falls back to clone and openat.
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
        # Memory as a file does not count as the worker's own and can be executed. A GPU driver may share memory
        # by it.
        "memfd_create": [(_RETURN, 0, 0, _ALLOW if devices else REFUSE)],
        "ioctl": [_argument(1), *ioctl],
        "prctl": [_argument(0), *not_dumpable, *_either(_PRCTL_OPTIONS, _ALLOW, REFUSE)],
        # Allow reading limits only: the new limit must be a null pointer.
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
    known = {name: number_of(name, machine) for name in sorted(names)}
    return {name: number for name, number in known.items() if number is not None}


def assemble_filter(machine: str, *, devices: bool) -> bytes:
    """Assemble the first filter as an array of struct sock_filter; `devices` allows ioctl, which a GPU driver needs."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    program += [(_GREATER, 0, 1, LAST_KNOWN[machine]), (_RETURN, 0, 0, ABSENT)]
    for first, last in _ranges(list(_numbers(ALLOWED, machine).values())):
        program += [(_AT_LEAST, 0, 2, first), (_GREATER, 1, 0, last), (_RETURN, 0, 0, _ALLOW)]
    conditions = _conditions(devices)
    for name, number in _numbers(FILTERED, machine).items():
        program += _when(number, conditions[name])
    return _encode([*program, (_RETURN, 0, 0, REFUSE)])


def assemble_exec_filter(machine: str) -> bytes:
    """Assemble the second filter, which refuses to run programs; the first has already checked the architecture."""
    numbers = tuple(_numbers(EXEC, machine).values())
    return _encode([(_LOAD, 0, 0, 0), *_either(numbers, REFUSE, _ALLOW)])


def _encode(program: list[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def install_filter(*, devices: bool) -> None:
    """Install the first filter for this process and its children, irrevocably; it requires no_new_privs.

    Raises:
        OSError: the kernel does not support it.
    """
    if kernel.MACHINE not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"seccomp: no table for {kernel.MACHINE}")
    _install(assemble_filter(kernel.MACHINE, devices=devices))


def forbid_exec() -> None:
    """Install the second filter.

    Raises:
        OSError: the kernel does not support it.
    """
    _install(assemble_exec_filter(kernel.MACHINE))


def _install(code: bytes) -> None:
    instructions = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    kernel.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.create_string_buffer(header, len(header)))
