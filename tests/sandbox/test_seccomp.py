"""The call filter, run here instruction by instruction as the kernel would, for both architectures."""

from __future__ import annotations

import errno
import struct

import pytest

from appliance.sandbox.seccomp import ALLOWED, assemble_exec_filter, assemble_filter, number_of

ALLOW, KILL = "allow", "kill"
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = tuple(ARCHITECTURES)

# Copied from the kernel's tables by hand, apart from the list under test. None: the architecture has no such call.
FORBIDDEN = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "sendto": (44, 206), "sendmsg": (46, 211),
    "recvmsg": (47, 212), "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199), "sendmmsg": (307, 269),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_setup": (206, 0), "io_submit": (209, 2), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272), "bpf": (321, 280),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "userfaultfd": (323, 282),
    "perf_event_open": (298, 241), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "create_module": (174, None), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "mq_unlink": (241, 181), "setuid": (105, 146),
    "setgid": (106, 144), "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159),
    "capset": (126, 91), "setsid": (112, 157), "setpgid": (109, 154), "setrlimit": (160, 164),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "execveat": (322, 281),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None),
    "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utimensat": (280, 88),
    "setxattr": (188, 5), "removexattr": (197, 14), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "vmsplice": (278, 75), "splice": (275, 76), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "landlock_create_ruleset": (444, 444), "seccomp": (317, 277), "memfd_secret": (447, 447),
}  # fmt: skip


def run(code: bytes, machine: int, number: int, arguments: tuple[int, ...] = ()) -> str:
    """Run classic BPF over struct seccomp_data, and return the verdict."""
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, machine, 0, *arguments, *([0] * (6 - len(arguments))))
    steps = list(struct.iter_unpack("=HBBI", code))
    register = position = 0
    jumps = {
        0x15: lambda k: register == k,
        0x25: lambda k: register > k,
        0x35: lambda k: register >= k,
        0x45: lambda k: bool(register & k),
    }
    while True:
        operation, if_true, if_false, k = steps[position]
        position += 1
        if operation == 0x20:
            register = int.from_bytes(data[k : k + 4], "little")
        elif operation == 0x06:
            return {0x7FFF0000: ALLOW, 0x80000000: KILL}.get(k) or errno.errorcode[k - 0x00050000]
        else:
            position += if_true if jumps[operation](k) else if_false


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def verdict(machine: str, name: str, *arguments: int, devices: bool = False) -> str:
    number = number_of(name, machine)
    assert number is not None
    return run(assemble_filter(machine, devices=devices), ARCHITECTURES[machine], number, arguments)


def test_every_forbidden_call_is_refused(machine: str) -> None:
    code = assemble_filter(machine, devices=True)
    column = MACHINES.index(machine)
    numbers = {name: pair[column] for name, pair in FORBIDDEN.items() if pair[column] is not None}
    got = {name: run(code, ARCHITECTURES[machine], number) for name, number in numbers.items()}
    assert got == dict.fromkeys(numbers, "EPERM")


def test_every_listed_call_is_allowed(machine: str) -> None:
    code = assemble_filter(machine, devices=False)
    numbers = {name: number_of(name, machine) for name in ALLOWED}
    known = {name: number for name, number in numbers.items() if number is not None}
    got = {name: run(code, ARCHITECTURES[machine], number) for name, number in known.items()}
    assert got == dict.fromkeys(known, ALLOW)
    assert len(known) > 120


def test_exactly_the_listed_numbers_are_allowed(machine: str) -> None:
    code = assemble_filter(machine, devices=False)
    allowed = {number for number in range(1024) if run(code, ARCHITECTURES[machine], number) == ALLOW}
    listed = {number_of(name, machine) for name in ALLOWED} - {None}
    # With all arguments zero these are harmless, and allowed.
    harmless = ("clone", "creat", "fcntl", "mkdir", "mkdirat", "open", "openat", "prlimit64", "renameat2")
    assert allowed == listed | {number_of(name, machine) for name in harmless} - {None}


def test_calls_of_the_future_do_not_exist(machine: str) -> None:
    code = assemble_filter(machine, devices=False)
    assert {run(code, ARCHITECTURES[machine], number) for number in range(463, 1024)} == {"ENOSYS"}


def test_foreign_architectures_kill(machine: str) -> None:
    """i386, 32-bit ARM, x32's neighbours: also for a number that is allowed in the worker's own table."""
    code = assemble_filter(machine, devices=False)
    foreign = {0x40000003, 0x40000028, *ARCHITECTURES.values()} - {ARCHITECTURES[machine]}
    assert {run(code, other, number) for other in foreign for number in (0, 20, 39, 64, 359)} == {KILL}


def test_x32_numbers_kill() -> None:
    code = assemble_filter("x86_64", devices=False)
    numbers = (0x40000000, 0x40000000 | 39, 0x7FFFFFFF, 0xFFFFFFFF)
    assert {run(code, ARCHITECTURES["x86_64"], number) for number in numbers} == {KILL}


@pytest.mark.parametrize("bit", [17, 25, 26, 27, 28, 29, 30])
def test_clone_makes_no_namespace(machine: str, bit: int) -> None:
    assert verdict(machine, "clone", 1 << bit | 17) == "EPERM"


def test_clone_makes_processes_and_threads(machine: str) -> None:
    thread = 0x003D0F00  # glibc's flags for pthread_create
    assert verdict(machine, "clone", 17) == verdict(machine, "clone", thread) == ALLOW


def test_clone3_does_not_exist(machine: str) -> None:
    assert verdict(machine, "clone3", 0, 88) == "ENOSYS"


@pytest.mark.parametrize("bit", [0o4000, 0o2000, 0o1000])
def test_no_special_mode_is_asked_for(machine: str, bit: int) -> None:
    creating, unnamed = 0o101, 0o20200001
    for mode, expected in ((0o777, ALLOW), (0o777 | bit, "EPERM")):
        assert verdict(machine, "openat", 0, 0, creating, mode) == expected
        assert verdict(machine, "openat", 0, 0, unnamed, mode) == expected
        assert verdict(machine, "mkdirat", 0, 0, mode) == expected
    assert verdict(machine, "openat", 0, 0, 0, 0o777 | bit) == ALLOW  # whatever lies there: nothing is created


def test_no_file_is_opened_behind_a_pointer(machine: str) -> None:
    assert verdict(machine, "openat2", 0, 0, 0, 24) == "ENOSYS"


def test_no_rename_leaves_a_device(machine: str) -> None:
    got = [verdict(machine, "renameat2", 0, 0, 0, 0, flags) for flags in (0, 1, 2, 4, 5)]
    assert got == [ALLOW, ALLOW, ALLOW, "EPERM", "EPERM"]


@pytest.mark.parametrize("command", [8, 10, 15, 1024, 1026])
def test_a_file_has_no_lease_and_sends_no_signal(machine: str, command: int) -> None:
    """SETOWN, SETSIG, SETOWN_EX, SETLEASE, NOTIFY."""
    assert verdict(machine, "fcntl", 3, command) == "EPERM"


def test_memory_that_is_a_file_is_for_workers_with_devices(machine: str) -> None:
    assert verdict(machine, "memfd_create") == "EPERM"
    assert verdict(machine, "memfd_create", devices=True) == ALLOW


def test_the_second_filter_refuses_every_exec_and_nothing_else(machine: str) -> None:
    """execveat is refused by the first."""
    code = assemble_exec_filter(machine)
    refused = {number for number in range(1024) if run(code, ARCHITECTURES[machine], number) == "EPERM"}
    assert refused == {number_of("execve", machine)}


def test_limits_are_read_not_set(machine: str) -> None:
    assert verdict(machine, "prlimit64", 0, 7, 0, 4096) == ALLOW
    assert verdict(machine, "prlimit64", 0, 7, 4096, 0) == "EPERM"
    assert verdict(machine, "prlimit64", 0, 7, 1 << 32, 0) == "EPERM"


def test_a_process_may_stop_being_dumpable_only(machine: str) -> None:
    assert verdict(machine, "prctl", 4, 0) == ALLOW
    assert verdict(machine, "prctl", 4, 1) == "EPERM"


@pytest.mark.parametrize("option", [1, 8, 24, 28, 35, 36, 47, 53, 57, 59, 0x59616D61])
def test_other_process_controls_are_refused(machine: str, option: int) -> None:
    """Among them PDEATHSIG, CAPBSET_DROP, SECUREBITS, MM, CAP_AMBIENT, SYSCALL_USER_DISPATCH and PTRACER."""
    assert verdict(machine, "prctl", option) == "EPERM"


@pytest.mark.parametrize("request_number", [0x5412, 0x541C])
@pytest.mark.parametrize("devices", [False, True])
def test_no_input_is_pushed_into_a_terminal(machine: str, request_number: int, devices: bool) -> None:
    assert verdict(machine, "ioctl", 0, request_number, devices=devices) == "EPERM"


def test_device_requests_are_for_workers_with_devices(machine: str) -> None:
    nvidia = 0xC020462A
    assert verdict(machine, "ioctl", 3, nvidia) == "EPERM"
    assert verdict(machine, "ioctl", 3, nvidia, devices=True) == ALLOW
    assert verdict(machine, "ioctl", 0, 0x5401) == ALLOW


def test_the_filter_fits_the_kernel(machine: str) -> None:
    assert len(assemble_filter(machine, devices=True)) // 8 < 4096
