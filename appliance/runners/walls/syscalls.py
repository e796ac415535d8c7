"""Which system calls a worker may make, and their numbers: from the kernel's unistd.h, x86_64 and the generic table.

An allow-list: what is not named here is refused, and so is a call that a future kernel adds. Left out on purpose: every
socket call, io_uring, ptrace and process_vm_*, bpf, keys, userfaultfd, perf, mounts, unshare and setns, file handles,
modules, kexec, System V and POSIX queues, links and device nodes, changes of owner, mode, time and attributes (Landlock
does not govern those), changes of identity, session and process group, pidfds, and raising limits.
"""

from __future__ import annotations

# A number above these is younger than this list: it answers ENOSYS, so that libraries fall back.
LAST_KNOWN = {"x86_64": 462, "aarch64": 462}

# Allowed for some arguments only, or refused from some moment on: seccomp.py has the rules.
FILTERED = frozenset(
    {"clone", "clone3", "creat", "fcntl", "ioctl", "memfd_create", "mkdir", "mkdirat", "open", "openat", "openat2"}
    | {"prctl", "prlimit64", "renameat2"}
)
EXEC = frozenset({"execve"})  # execveat is in no table below

# name: (x86_64, aarch64); None where the architecture has no such call.
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
    """The number of a call on `machine` (as `uname -m` names it), or None where it does not exist."""
    return _NUMBERS[name][_COLUMN[machine]]
