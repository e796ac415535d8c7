"""What runs in the launcher: three processes, each with less than the one before.

outer   enters the namespaces, waits, passes the exit code on; holds nothing
init    the first process of the PID namespace: makes the root, drops privileges, then holds the leash. When the
        leash ends, or init dies in whatever way, the kernel kills every process of the namespace
worker  limits, Landlock, the call filter; reports which walls stand; then exec, or nothing where one is missing
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
from collections.abc import Iterator
from typing import Any, NoReturn

from appliance.runners.walls import enter, landlock, mounts, namespaces, privileges, seccomp

LAYERS = frozenset({*namespaces.FLAGS, "no-new-privs", "landlock", "seccomp"})
PAUSE, RESUME = b"p", b"r"

_RIGHTS = {"run": landlock.RUN, "read": landlock.READ, "write": landlock.WRITE, "device": landlock.DEVICE}
# Before ABI 3 Landlock lets a file be emptied that it would not let be written.
_LEAST_ABI_ALONE = 3


class Walls:
    """The description from the service, and what stands so far."""

    def __init__(self, description: dict[str, Any], standing: set[str], reasons: dict[str, str]) -> None:
        self.description = description
        self.standing = standing
        self.reasons = reasons
        self.landlock_abi = 0

    def wants(self, layer: str) -> bool:
        return layer in self.description["layers"]

    def failure(self) -> str | None:
        """The walls that are missing and that nobody accepted, as a sentence; None where the worker may start."""
        missing = LAYERS - self.standing - set(self.description["accepted_missing"])
        if not missing:
            return None
        why = (f"{name} ({self.reasons.get(name, 'not built')})" for name in sorted(missing))
        return f"sandbox: expected every wall that policy does not excuse, missing {', '.join(why)}"


def _read_description(control: int) -> dict[str, Any]:
    def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = os.read(control, size - len(data))
            if not chunk:
                raise SystemExit("the service ended before it described the worker")
            data += chunk
        return data

    (length,) = struct.unpack(">I", read(4))
    value: dict[str, Any] = json.loads(read(length))
    return value


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> NoReturn:
    """Arguments: the descriptors of the leash and of the status pipe."""
    control, status = int(arguments[0]), int(arguments[1])
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.set_inheritable(control, False)
    os.set_inheritable(status, False)
    privileges.go_first_when_memory_runs_out()
    description = _read_description(control)
    walls = Walls(description, *namespaces.unshare(name for name in namespaces.FLAGS if name in description["layers"]))
    init = os.fork()
    if init == 0:
        _run_init(walls, control, status, nothing)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.closerange(3, 1 << 20)
    privileges.drop_capabilities()
    privileges.forbid_dumps()
    os._exit(_exit_code(os.waitpid(init, 0)[1]))


def _run_init(walls: Walls, control: int, status: int, nothing: int) -> NoReturn:
    privileges.die_with_parent()
    _make_root(walls)
    if walls.wants("no-new-privs"):
        with _layer(walls, "no-new-privs"):
            privileges.forbid_new_privileges()
    privileges.drop_capabilities()
    privileges.forbid_dumps()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    worker = os.fork()
    if worker == 0:
        _run_worker(walls, status)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(status)
    os._exit(_hold_control(control, woken, worker))


@contextlib.contextmanager
def _layer(walls: Walls, name: str) -> Iterator[None]:
    """Counts a wall as standing when its block ends well; an OSError becomes the reason why it does not."""
    walls.standing.discard(name)
    try:
        yield
    except OSError as error:
        walls.reasons[name] = str(error)
    else:
        walls.standing.add(name)


def _make_root(walls: Walls) -> None:
    if "mount-ns" not in walls.standing:
        return
    places = [mounts.Place(*place) for place in walls.description["places"]]
    with _layer(walls, "mount-ns"):
        fresh = "pid-ns" in walls.standing
        mounts.enter_root(places, walls.description["folder"], fresh_proc=fresh, names_threads=_names_threads(walls))


def _names_threads(walls: Walls) -> bool:
    """Whether a card's driver is to name its threads, by writing to /proc/self/task/*/comm: cuInit fails where it
    cannot. Only Landlock can allow that and nothing beside it."""
    if not walls.description["devices"] or not walls.wants("landlock"):
        return False
    try:
        return landlock.abi() >= _LEAST_ABI_ALONE
    except OSError:
        return False


def _hold_control(control: int, woken: int, worker: int) -> int:
    """Ends when the worker ends, and ends the worker when the service does; pauses and resumes it as told."""
    code: int | None = None
    told = select.poll()  # select takes no descriptor above 1023, and the leash has its number from the service
    for descriptor in (control, woken):
        told.register(descriptor, select.POLLIN)
    while code is None:
        if woken in dict(told.poll()):
            os.read(woken, 4096)
            code = _reap(worker)
        elif order := os.read(control, 1):
            _signal_group(worker, signal.SIGSTOP if order == PAUSE else signal.SIGCONT)
        else:
            code = 128 + signal.SIGKILL
    # Without a PID namespace the group is all there is; the worker cannot leave it (setsid and setpgid are refused).
    _signal_group(worker, signal.SIGKILL)
    return code


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _reap(worker: int) -> int | None:
    """Collects every ended child, orphans of the namespace too; the worker's exit code once it is among them."""
    code = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if ended == 0:
            return code
        if ended == worker:
            code = _exit_code(status)


def _run_worker(walls: Walls, status: int) -> NoReturn:
    description = walls.description
    privileges.die_with_parent()
    os.setsid()
    os.chdir(description["folder"])
    os.closerange(3, status)
    os.closerange(status + 1, 1 << 20)
    privileges.forget_inherited_state()
    privileges.limit(description["limits"])
    _restrict(walls)
    failure = walls.failure()
    report = {
        "layers": {name: name in walls.standing for name in sorted(LAYERS)},
        "reasons": walls.reasons,
        "landlock_abi": walls.landlock_abi,
        "failure": failure,
    }
    os.write(status, json.dumps(report).encode() + b"\n")
    command = description["command"]
    if failure is not None or command is None:
        os._exit(1 if failure else 0)
    try:
        environment = {**description["environment"], enter.FILTERED: "1" if "seccomp" in walls.standing else ""}
        os.execve(command[0], command, environment)
    except OSError as error:
        os.write(status, json.dumps({"failure": f"sandbox, {command[0]}: {error}"}).encode())
    os._exit(1)


def _restrict(walls: Walls) -> None:
    description = walls.description
    if walls.wants("landlock"):
        rules = [(path, _RIGHTS[kind]) for path, kind in description["places"]]
        if _names_threads(walls):
            # This process's own, which its exec does not change; other processes' are no part of it.
            rules.append(("/proc/self/task", landlock.WRITE_FILE))
        with _layer(walls, "landlock"):
            walls.landlock_abi = landlock.restrict([*rules, ("/proc", landlock.READ)])
            if walls.landlock_abi < _LEAST_ABI_ALONE and "mount-ns" not in walls.standing:
                raise OSError(f"Landlock ABI {walls.landlock_abi} alone: expected {_LEAST_ABI_ALONE}")
    if walls.wants("seccomp"):
        with _layer(walls, "seccomp"):
            seccomp.install_filter(devices=description["devices"])
