"""Runs a command in a network namespace of its own, which has only a loopback.

python tests/kit/alone.py COMMAND [ARGUMENT ...]

As root, or where the kernel lets everybody make user namespaces. Whatever the command starts is in there too.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x1000_0000, 0x4000_0000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SIOCSIFADDR = 0x8916
OWN = "192.0.2.1"
"""A second address of the loopback. Where there is none but 127.0.0.1, names are not looked up for a program that asks
for the families of the machine's addresses (AI_ADDRCONFIG), as Slurm's do."""


def enter() -> None:
    """Put this process into a network of its own. Raise OSError if the kernel refuses."""
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET if user == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if ctypes.CDLL(None, use_errno=True).unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace: expected the kernel to make one, got {os.strerror(number)}")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(OWN)))


if __name__ == "__main__":
    try:
        enter()
    except OSError as error:
        sys.exit(f"alone: {error}")
    os.execvp(sys.argv[1], sys.argv[1:])
