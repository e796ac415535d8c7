"""Namespaces of its own for the worker: user, network, PID, IPC, mount, UTS. No helper program, root or not.

With a user namespace, root is not needed. Where the kernel forbids one and the service is root, the others are made
without it. Each is tried alone, so that a missing one is named.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from appliance.runners.walls import kernel, privileges

FLAGS = {
    "user-ns": 0x10000000,
    "mount-ns": 0x00020000,
    "uts-ns": 0x04000000,
    "ipc-ns": 0x08000000,
    "pid-ns": 0x20000000,
    "network-ns": 0x40000000,
}
# Inside, the worker is an ordinary user even if the service is root outside, so that no program treats it as root.
INNER_ID = 1000
_CAP_SETGID = 6


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    kernel.call("unshare", FLAGS["user-ns"])
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INNER_ID} {user} 1")
    _write("/proc/self/gid_map", f"{INNER_ID} {group} 1")


def unshare(wanted: Iterable[str]) -> tuple[set[str], dict[str, str]]:
    """Enters the wanted namespaces one by one: those that it entered, and the reason for each that it could not.

    The PID namespace begins with the next child.
    """
    wanted = set(wanted)
    standing: set[str] = set()
    reasons: dict[str, str] = {}
    if privileges.has_capability(_CAP_SETGID):  # the service's other groups, docker's for one
        os.setgroups([])
    for name, flag in FLAGS.items():
        if name not in wanted:
            continue
        try:
            if name == "user-ns":
                _enter_user_namespace()
            else:
                kernel.call("unshare", flag)
            standing.add(name)
        except OSError as error:
            reasons[name] = str(error)
    if "uts-ns" in standing:
        with contextlib.suppress(OSError):
            kernel.call("sethostname", b"worker", len(b"worker"))
    return standing, reasons
