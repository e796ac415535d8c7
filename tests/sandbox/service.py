"""A small service for the tests, in this process or as a program: starts a worker that attacks, and says how it went.

As a program: `service.py ORDER`, ORDER being JSON with the fields of `Order`; it prints JSON. With `user`, it becomes
that user first; the interpreter is then shown to it even where root's home is closed (in a mount namespace of its own).
With `absent`, the kernel answers ENOSYS or EPERM to the system calls named there, as an older or a stricter one would.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import appliance
from appliance.errors import ApplianceError
from appliance.sandbox import kernel
from appliance.sandbox.description import ResourceLimits, Sandbox, detect_layers
from appliance.sandbox.local import Worker, start_worker
from appliance.sandbox.processes import LAYERS

INMATES = Path(__file__).resolve().parent / "inmates"
SERVICE = "the process id of the service"
_CALLS = {"landlock_create_ruleset": 444, "unshare": 272 if kernel.MACHINE == "x86_64" else 97}


@dataclass(frozen=True)
class Order:
    folder: str
    module: str = "inmates.attempt"
    attempts: list[list[Any]] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    user: int | None = None
    absent: dict[str, str] = field(default_factory=dict)
    detect: bool = False
    state: bool = False
    devices: bool = False
    code: str = str(INMATES)
    groups: list[int] | None = None
    linger: bool = False


def begin(order: Order) -> Worker:
    folder = Path(order.folder)
    sandbox = Sandbox(
        read=tuple(map(Path, order.read)),
        write=(folder / "output",),
        limits=ResourceLimits(**order.limits),
        devices=order.devices,
    )
    return start_worker(
        order.module,
        sandbox,
        entry=order.module,
        log=folder / "log",
        accepted_missing=frozenset(order.accepted),
        layers=LAYERS - set(order.without),
        code=Path(order.code),
    )


def attempt(worker: Worker, name: str, arguments: Iterable[Any]) -> str:
    """ "open", the name of the error, or "killed N"."""
    given = [os.getpid() if argument == SERVICE else argument for argument in arguments]
    worker.send({"attack": name, "arguments": given})
    frame = worker.receive(60)
    return f"killed {worker.wait(60) - 128}" if frame is None else str(frame[0]["outcome"])


def carry_out(order: Order) -> Any:
    """Each attack in a worker of its own, so that none helps the next."""
    if order.detect:
        return detect_layers()
    if order.state:
        with begin(order) as worker:
            frame = worker.receive(60)
            assert frame is not None
            return frame[0]
    outcomes = []
    for name, arguments in order.attempts:
        with begin(order) as worker:
            outcomes.append(attempt(worker, name, arguments))
    return outcomes


def show_to_everyone(paths: list[str]) -> None:
    """In a mount namespace of its own, puts a folder that all may pass in place of every closed one above `paths`."""
    kernel.call("unshare", 0x00020000)
    kernel.call("mount", None, b"/", None, 0x4000 | 1 << 18, None)
    closed = {str(parent) for path in paths for parent in Path(path).parents if not parent.stat().st_mode & 0o001}
    tops = sorted(top for top in closed if not any(Path(top).is_relative_to(other) for other in closed - {top}))
    below = [path for path in paths if any(Path(path).is_relative_to(top) for top in tops)]
    trees = [(path, kernel.call("open_tree", -100, path.encode(), 1 | os.O_CLOEXEC | 0x8000)) for path in below]
    for top in tops:
        kernel.call("mount", b"tmpfs", top.encode(), b"tmpfs", 0, b"mode=0755")
    for path, tree in trees:
        with suppress(FileExistsError):
            Path(path).mkdir(parents=True)
        kernel.call("move_mount", tree, b"", -100, path.encode(), 4)
        os.close(tree)


def become(user: int, folder: str) -> None:
    """Become an ordinary user who owns the order's folder."""
    show_to_everyone([sys.base_prefix, sys.prefix, str(Path(appliance.__file__).parents[1])])
    for path in (Path(folder), *Path(folder).rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kernel.prctl(4, 1)  # dumpable again, as a service is that an ordinary user started


def take_away(absent: dict[str, str]) -> None:
    """Install a call filter over this process, so that the named calls do not exist or are not permitted."""
    steps = [(0x20, 0, 0, 0)]
    for name, error in absent.items():
        steps += [(0x15, 0, 1, _CALLS[name]), (0x06, 0, 0, 0x00050000 | getattr(errno, error))]
    code = b"".join(struct.pack("=HBBI", *step) for step in [*steps, (0x06, 0, 0, 0x7FFF0000)])
    instructions = ctypes.create_string_buffer(code, len(code))
    kernel.prctl(38, 1)
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    kernel.prctl(22, 2, ctypes.create_string_buffer(header, len(header)))


def main() -> None:
    # Started from a shell's background job, the tests ignore SIGINT, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    order = Order(**json.loads(sys.argv[1]))
    if order.user is not None:
        become(order.user, order.folder)
    if order.groups is not None:
        os.setgroups(order.groups)
    if order.absent:
        take_away(order.absent)
    try:
        if order.linger:
            worker = begin(order)
            assert worker.receive(60) is not None
            print(json.dumps({"outer": worker.pid}), flush=True)
            time.sleep(60)
        print(json.dumps(carry_out(order)))
    except ApplianceError as error:
        print(json.dumps({"code": error.code, "message": error.message}))


if __name__ == "__main__":
    main()
