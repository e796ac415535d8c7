"""Attacks on the sandbox, each a function that returns when it got through and raises OSError when it was refused."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.shmat.restype = ctypes.c_void_p
_libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]

X86 = platform.machine() == "x86_64"


def syscall(number: int, *arguments: Any) -> int:
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments)]
    result = _libc.syscall(*words)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def tcp(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), timeout=2).close()


def udp(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.sendto(b"query", ("127.0.0.1", port))


def unix(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.settimeout(2)
        opened.connect(address)


def socket_pair() -> None:
    for opened in socket.socketpair():
        opened.close()


def vsock() -> None:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


def netlink() -> None:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


def io_uring() -> None:
    os.close(syscall(425, 1, ctypes.create_string_buffer(120)))


def i386_call() -> None:
    """getpid by int 0x80, in the i386 table."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("b814000000cd80c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() == os.getpid()


def x32_call() -> None:
    """getpid with the x32 bit. A kernel without x32 answers ENOSYS, which is the kernel's answer, not the filter's."""
    try:
        syscall(0x40000000 | 39)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise


def _in_child(attack: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        try:
            attack()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def be_traced() -> None:
    """PTRACE_TRACEME: the one request that a process which may not be dumped can still make."""
    _in_child(lambda: syscall(101 if X86 else 117, 0, 0, 0, 0))


def trace(process: int) -> None:
    syscall(101 if X86 else 117, 0x4206, process, 0, 0)


def read_memory() -> None:
    """process_vm_readv of its own memory."""
    source, target = ctypes.create_string_buffer(b"12345678", 8), ctypes.create_string_buffer(8)
    there = (ctypes.c_ulong * 2)(ctypes.addressof(source), 8)
    here = (ctypes.c_ulong * 2)(ctypes.addressof(target), 8)
    syscall(310 if X86 else 270, os.getpid(), here, 1, there, 1, 0)


def new_user_namespace() -> None:
    syscall(272 if X86 else 97, 0x10000000)


def clone_into_namespace() -> None:
    child = syscall(56 if X86 else 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def clone3() -> None:
    arguments = (ctypes.c_ulong * 8)(0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    child = syscall(435, arguments, ctypes.sizeof(arguments))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def add_key() -> None:
    syscall(248 if X86 else 217, b"user", b"attack", b"payload", 7, -2)


def user_faults() -> None:
    os.close(syscall(323 if X86 else 282, 1))  # UFFD_USER_MODE_ONLY


def file_handle(path: str) -> None:
    handle = (ctypes.c_uint * 40)(128)
    mount = ctypes.c_int()
    syscall(303 if X86 else 264, -100, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0)


def process_handle() -> None:
    os.close(os.pidfd_open(os.getpid()))


def shared_memory(identifier: int) -> None:
    if _libc.shmat(identifier, None, 0o10000) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "shmat")


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def list_folder(path: str) -> None:
    os.listdir(path)


def see(path: str) -> None:
    os.stat(path)


def create(path: str) -> None:
    with open(path, "xb"):
        pass


def overwrite(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(b"overwritten")


def truncate(path: str) -> None:
    os.truncate(path, 0)


def empty_log() -> None:
    os.write(2, b"words\n")
    os.ftruncate(2, 0)


def empty_log_by_name() -> None:
    os.close(os.open("/proc/self/fd/2", os.O_WRONLY | os.O_TRUNC))


def chmod(path: str) -> None:
    os.chmod(path, 0o777)


def set_time(path: str) -> None:
    os.utime(path, (0, 0))


def remove(path: str) -> None:
    os.unlink(path)


def move_away(path: str) -> None:
    os.rename(path, "taken")


def hard_link(path: str) -> None:
    os.link(path, "linked")


def symbolic_link(path: str) -> None:
    os.symlink(path, "link")


def pipe_in_output() -> None:
    os.mkfifo("pipe")


def run_from_output() -> None:
    """Run a program that the worker wrote itself. It is a script, so that the kernel decides, not a loader."""
    with open(os.open("program", os.O_CREAT | os.O_WRONLY, 0o755), "w") as file:
        file.write(f"#!{sys.executable}\n")
    subprocess.run([os.path.abspath("program")], check=True, stdout=subprocess.DEVNULL)


def run_from_memory() -> None:
    """Run a program that the worker wrote outside of all folders, into memory that is a file."""
    memory = os.memfd_create("program", 0)
    os.write(memory, f"#!{sys.executable} -S\n".encode())
    _in_child(lambda: os.execv(f"/proc/self/fd/{memory}", ["program"]))


def run_interpreter() -> None:
    """Run a program that is shown to the worker, by its name."""
    _in_child(lambda: os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", ""]))


def memory_file() -> None:
    os.close(os.memfd_create("memory"))


def set_user_id_file(mode: int) -> None:
    os.close(os.open("program", os.O_CREAT | os.O_WRONLY, mode))


def set_user_id_by_openat2() -> None:
    how = (ctypes.c_uint64 * 3)(os.O_CREAT | os.O_WRONLY, 0o6777, 0)
    os.close(syscall(437, -100, b"program", how, ctypes.sizeof(how)))


def sticky_folder() -> None:
    os.mkdir("shared", 0o1777)


def leave_device() -> None:
    """RENAME_WHITEOUT: the old name becomes a character device."""
    old = os.urandom(8).hex()
    create(old)
    syscall(316 if X86 else 276, -100, old.encode(), -100, b"new", 4)


def lease() -> None:
    """Who opens the file for reading then waits 45 s."""
    with open("leased", "wb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)


def map_from_output() -> None:
    """Machine code mapped from a file of its own: what a loader does with a library."""
    with open("library", "w+b") as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()


def become_root(program: str) -> None:
    """Run a set-user-id program that prints its effective user id."""
    done = subprocess.run([program, "-u"], check=True, capture_output=True, text=True)
    if done.stdout.strip() != "0":
        raise PermissionError(errno.EPERM, f"ran as {done.stdout.strip()}")


def signal_process(process: int) -> None:
    os.kill(process, 0)


def name_thread() -> None:
    """As glibc names a thread for another one, and a card's driver its own: by /proc/self/task/*/comm."""
    waits, threads = threading.Event(), set(os.listdir("/proc/self/task"))
    thread = threading.Thread(target=waits.wait, daemon=True)
    thread.start()
    try:
        (number,) = set(os.listdir("/proc/self/task")) - threads
        descriptor = os.open(f"/proc/self/task/{number}/comm", os.O_RDWR)
        os.write(descriptor, b"named")
        os.close(descriptor)
        assert Path(f"/proc/self/task/{number}/comm").read_text() == "named\n"
    finally:
        waits.set()
        thread.join()


def write_to(path: str, text: str) -> None:
    with open(path, "r+") as file:
        file.write(text)


def find_writable_kernel() -> None:
    """Find a part of /proc that is no process's and that no mount protects from writes, whatever Landlock says."""
    for name in os.listdir("/proc"):
        path = f"/proc/{name}"
        if not name.isdigit() and not os.path.islink(path) and not os.statvfs(path).f_flag & os.ST_RDONLY:
            return
    raise OSError(errno.EROFS, "every part is read-only")


def read_environment(process: int) -> None:
    with open(f"/proc/{process}/environ", "rb") as file:
        assert file.read(1)


def leave_session() -> None:
    _in_child(os.setsid)


def become_dumpable() -> None:
    syscall(157 if X86 else 167, 4, 1, 0, 0, 0)


def change_kernel_setting() -> None:
    """Write a kernel setting, since the worker's user is the host's root if the service's is."""
    with open("/proc/sys/kernel/printk", "r+") as file:
        file.write(file.read())


def fill_file(size: int) -> None:
    with open("large", "wb") as file:
        os.truncate(file.fileno(), size)


def take_memory(size: int) -> None:
    try:
        bytearray(size)
    except MemoryError:
        raise OSError(errno.ENOMEM, "no memory") from None


def open_many(count: int) -> None:
    descriptors = []
    try:
        for _ in range(count):
            descriptors.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def fork_many(count: int) -> None:
    children = []
    try:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def burn(seconds: int) -> None:
    import time

    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
