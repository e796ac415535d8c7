"""Tests of the sandbox from the inside: real escape attempts at live targets, before the worker does anything else.

Each probe returns "refused" or "open". The service gives the targets as the last argument: loopback listeners, Unix
sockets, the process id of the service, paths to read and folders to write to. Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

_PROBE_S = 60.0
"""Seconds after which an attempt that has not ended counts as open. A busy machine may hold up a refusal for some."""
_IO_URING_SETUP = 425
_PTRACE = {"x86_64": 101, "aarch64": 117}
_PROCESS_VM_READV = {"x86_64": 310, "aarch64": 270}
_PTRACE_SEIZE, _PTRACE_DETACH = 0x4206, 17
_CLONE_NEWUSER = 0x10000000
_X32_GETPID = 0x40000000 | 39
# mov eax, 20 (getpid in the i386 table); int 0x80; ret
_I386_GETPID = bytes.fromhex("b814000000cd80c3")
# A DNS query for the address of example.com.
_DNS_QUERY = bytes.fromhex("abcd01000001000000000000076578616d706c6503636f6d0000010001")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: int) -> int:
    result: int = _libc.syscall(*[ctypes.c_long(value) for value in (number, *arguments)])
    return result


def _tcp(targets: dict[str, Any]) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.settimeout(_PROBE_S)
        opened.connect(("127.0.0.1", targets["ports"]["tcp"]))
    return True


def _datagram(port: int, data: bytes) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(_PROBE_S)
        opened.sendto(data, ("127.0.0.1", port))
    return True


def _udp(targets: dict[str, Any]) -> bool:
    return _datagram(targets["ports"]["udp"], b"probe")


def _dns(targets: dict[str, Any]) -> bool:
    return _datagram(targets["ports"]["dns"], _DNS_QUERY)


def _unix(targets: dict[str, Any]) -> bool:
    """Try a socket pair, the socket at a path and the abstract socket; return True if any of them works."""
    is_open = False
    with contextlib.suppress(OSError):
        for opened in socket.socketpair():
            opened.close()
        is_open = True
    for address in (targets["unix_path"], "\0" + targets["unix_abstract"]):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
            opened.settimeout(_PROBE_S)
            opened.connect(address)
            is_open = True
    return is_open


def _vsock(_: dict[str, Any]) -> bool:
    """Create a vsock socket without connecting it: no namespace confines this family, and it would reach the
    hypervisor."""
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    return True


def _io_uring(_: dict[str, Any]) -> bool:
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
    ring = _call(_IO_URING_SETUP, 1, ctypes.addressof(parameters))
    if ring < 0:
        return False
    os.close(ring)
    return True


def _in_child(attempt: Callable[[], bool]) -> bool:
    """Run an attempt in a child process, since it may be fatal or change this process.

    An OSError, SIGSYS (the call filter) or SIGSEGV (a processor without such an entry point) means that it was refused.
    """
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if attempt() else 1
        except OSError:
            code = 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + _PROBE_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) not in (1, -signal.SIGSYS, -signal.SIGSEGV)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True  # timed out: the attempt was not refused


def _i386_call() -> bool:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_I386_GETPID)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    process: int = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    return process > 0


def _foreign_abi(_: dict[str, Any]) -> bool:
    """Try i386 system calls by int 0x80 and x32 numbers. 64-bit ARM cannot enter its 32-bit table without an exec."""
    if platform.machine() != "x86_64":
        return False
    return _in_child(_i386_call) or _in_child(lambda: _call(_X32_GETPID) > 0)


def _touch(path: str) -> bool:
    """Return True if the file or folder can be read."""
    if os.path.isdir(path):
        with contextlib.suppress(OSError):
            os.listdir(path)
            return True
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.close(descriptor)
    return True


def _create(folder: str, mark: str) -> bool:
    """Create a file in a folder and leave it, so that the service sees it, too."""
    os.close(os.open(f"{folder}/{mark}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return True


def _seize(process: int) -> bool:
    """Try ptrace, process_vm_readv and /proc/PID/mem on one process."""
    if process == os.getpid():  # inside a PID namespace, the id may be that of this process
        return False
    ptrace, read = _PTRACE[platform.machine()], _PROCESS_VM_READV[platform.machine()]
    if _call(ptrace, _PTRACE_SEIZE, process, 0, 0) == 0:
        _call(ptrace, _PTRACE_DETACH, process, 0, 0)
        return True
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 8)
    address = ctypes.addressof(vector)
    # The address is not mapped there, so EFAULT means that the kernel allowed the access.
    if _call(read, process, address, 1, address, 1, 0) >= 0 or ctypes.get_errno() == errno.EFAULT:
        return True
    with contextlib.suppress(OSError):
        os.close(os.open(f"/proc/{process}/mem", os.O_RDONLY | os.O_CLOEXEC))
        return True
    return False


def _ptrace_parent(targets: dict[str, Any]) -> bool:
    """Try the parent (init inside a PID namespace) and the process that has the service's process id here."""
    others = {os.getppid(), targets["service"]} - {0, os.getpid()}
    return any(_in_child(partial(_seize, process)) for process in sorted(others))


def _new_user_namespace(_: dict[str, Any]) -> bool:
    return _in_child(lambda: int(_libc.unshare(ctypes.c_int(_CLONE_NEWUSER))) == 0)


def _execute(_: dict[str, Any]) -> bool:
    """Try to execute the interpreter, the only program that is certainly visible in the sandbox."""

    def run() -> bool:
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", ""])

    return _in_child(run)


def _set_user_id(_: dict[str, Any]) -> bool:
    """Try to create a set-user-id file, which would run as the service's user."""
    path = os.path.join(tempfile.gettempdir(), "set-user-id")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o4700))
        return bool(os.stat(path).st_mode & stat.S_ISUID)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


_PROBES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "tcp": _tcp,
    "udp": _udp,
    "dns": _dns,
    "unix": _unix,
    "vsock": _vsock,
    "io_uring": _io_uring,
    "foreign-abi": _foreign_abi,
    "ptrace-parent": _ptrace_parent,
    "new-user-namespace": _new_user_namespace,
    "execute": _execute,
    "set-user-id": _set_user_id,
}


def _attempt(probe: Callable[[], bool]) -> str:
    """Return "refused" if the probe raises OSError or returns False, and "open" otherwise."""
    try:
        return "open" if probe() else "refused"
    except OSError:
        return "refused"


def run_probes(targets: dict[str, Any]) -> dict[str, str]:
    """Run every probe and return its result, "refused" or "open"; the service names the path probes."""
    results = {name: _attempt(partial(probe, targets)) for name, probe in _PROBES.items()}
    for name, path in targets["read"].items():
        results[name] = _attempt(partial(_touch, path))
    for name, folder in targets["write"].items():
        results[name] = _attempt(partial(_create, folder, targets["mark"]))
    return results
