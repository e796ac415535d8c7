"""The processes of the launcher: three, each with fewer privileges than the one before.

outer   enters the namespaces, waits, and passes the exit code on; it holds no data
init    first process of the PID namespace: builds the root, drops privileges, then watches the parent-death pipe.
        When the pipe closes, or init dies, the kernel kills every process of the namespace
worker  sets limits, Landlock and the call filter, and reports the layers in force; then it calls exec, or exits
        if a required layer is missing
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from appliance.sandbox import enter, kernel, mounts, seccomp

FLAGS = {
    "user-ns": 0x10000000,
    "mount-ns": 0x00020000,
    "uts-ns": 0x04000000,
    "ipc-ns": 0x08000000,
    "pid-ns": 0x20000000,
    "network-ns": 0x40000000,
}
# In the sandbox, the worker has an ordinary user id even if the service is root, so that no program treats it as root.
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
    """Enter the wanted namespaces one by one; return those that were entered, and the reason for each that was not.

    The PID namespace applies from the next child on.
    """
    wanted = set(wanted)
    active: set[str] = set()
    reasons: dict[str, str] = {}
    if kernel.has_capability(_CAP_SETGID):  # drop the service's supplementary groups, such as docker's
        os.setgroups([])
    for name, flag in FLAGS.items():
        if name not in wanted:
            continue
        try:
            if name == "user-ns":
                _enter_user_namespace()
            else:
                kernel.call("unshare", flag)
            active.add(name)
        except OSError as error:
            reasons[name] = str(error)
    if "uts-ns" in active:
        with contextlib.suppress(OSError):
            kernel.call("sethostname", b"worker", len(b"worker"))
    return active, reasons


LAYERS = frozenset({*FLAGS, "no-new-privs", "landlock", "seccomp"})
PAUSE, RESUME = b"p", b"r"

_RIGHTS = {"run": kernel.RUN, "read": kernel.READ, "write": kernel.WRITE, "device": kernel.DEVICE}
# Before ABI 3, Landlock does not prevent truncating a file that it protects from writing.
_LEAST_ABI_ALONE = 3


class SandboxBuild:
    """The service's description of the sandbox, and the layers that are in force so far."""

    def __init__(self, description: dict[str, Any], active: set[str], reasons: dict[str, str]) -> None:
        self.description = description
        self.active = active
        self.reasons = reasons
        self.landlock_abi = 0

    def wants(self, layer: str) -> bool:
        """Return True if the service asked for this layer."""
        return layer in self.description["layers"]

    def failure(self) -> str | None:
        """Return a sentence with the missing layers that were not accepted, or None if the worker may start."""
        missing = LAYERS - self.active - set(self.description["accepted_missing"])
        if not missing:
            return None
        why = (f"{name} ({self.reasons.get(name, 'not built')})" for name in sorted(missing))
        return f"sandbox: expected every layer that policy does not excuse, missing {', '.join(why)}"


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
    """Run the launcher; the arguments are the descriptors of the parent-death pipe and of the status pipe."""
    control, status = int(arguments[0]), int(arguments[1])
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    os.set_inheritable(control, False)
    os.set_inheritable(status, False)
    kernel.go_first_when_memory_runs_out()
    description = _read_description(control)
    build = SandboxBuild(description, *unshare(name for name in FLAGS if name in description["layers"]))
    init = os.fork()
    if init == 0:
        _run_init(build, control, status, nothing)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.closerange(3, 1 << 20)
    kernel.drop_capabilities()
    kernel.forbid_dumps()
    os._exit(_exit_code(os.waitpid(init, 0)[1]))


def _run_init(build: SandboxBuild, control: int, status: int, nothing: int) -> NoReturn:
    kernel.die_with_parent()
    _make_root(build)
    if build.wants("no-new-privs"):
        with _layer(build, "no-new-privs"):
            kernel.forbid_new_privileges()
    kernel.drop_capabilities()
    kernel.forbid_dumps()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    worker = os.fork()
    if worker == 0:
        _run_worker(build, status)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(status)
    os._exit(_watch_control(control, woken, worker))


@contextlib.contextmanager
def _layer(build: SandboxBuild, name: str) -> Iterator[None]:
    """Mark a layer as in force if the block succeeds; an OSError becomes the reason why it is not."""
    build.active.discard(name)
    try:
        yield
    except OSError as error:
        build.reasons[name] = str(error)
    else:
        build.active.add(name)


def _make_root(build: SandboxBuild) -> None:
    if "mount-ns" not in build.active:
        return
    places = [mounts.VisiblePath(*place) for place in build.description["places"]]
    with _layer(build, "mount-ns"):
        fresh = "pid-ns" in build.active
        mounts.enter_root(places, build.description["folder"], fresh_proc=fresh, names_threads=_names_threads(build))


def _names_threads(build: SandboxBuild) -> bool:
    """Return True if a GPU driver must be able to name its threads by writing to /proc/self/task/*/comm.

    cuInit fails without that. Only Landlock can allow exactly this.
    """
    if not build.description["devices"] or not build.wants("landlock"):
        return False
    try:
        return kernel.abi() >= _LEAST_ABI_ALONE
    except OSError:
        return False


def _watch_control(control: int, woken: int, worker: int) -> int:
    """Wait for the end of the worker or of the service, pause and resume the worker on request, and return the exit
    code.

    When the service ends, the worker is killed.
    """
    code: int | None = None
    ready = select.poll()  # select supports no descriptor above 1023, and the service chose the pipe's number
    for descriptor in (control, woken):
        ready.register(descriptor, select.POLLIN)
    while code is None:
        if woken in dict(ready.poll()):
            os.read(woken, 4096)
            code = _reap(worker)
        elif order := os.read(control, 1):
            _signal_group(worker, signal.SIGSTOP if order == PAUSE else signal.SIGCONT)
        else:
            code = 128 + signal.SIGKILL
    # Without a PID namespace, kill the process group; the worker cannot leave it, since setsid and setpgid are refused.
    _signal_group(worker, signal.SIGKILL)
    return code


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _reap(worker: int) -> int | None:
    """Collect all ended children, including orphans of the namespace; return the worker's exit code if it is among
    them."""
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


def _run_worker(build: SandboxBuild, status: int) -> NoReturn:
    description = build.description
    kernel.die_with_parent()
    os.setsid()
    os.chdir(description["folder"])
    os.closerange(3, status)
    os.closerange(status + 1, 1 << 20)
    kernel.forget_inherited_state()
    kernel.limit(description["limits"])
    _restrict(build)
    failure = build.failure()
    report = {
        "layers": {name: name in build.active for name in sorted(LAYERS)},
        "reasons": build.reasons,
        "landlock_abi": build.landlock_abi,
        "failure": failure,
    }
    os.write(status, json.dumps(report).encode() + b"\n")
    command = description["command"]
    if failure is not None or command is None:
        os._exit(1 if failure else 0)
    try:
        environment = {**description["environment"], enter.FILTERED: "1" if "seccomp" in build.active else ""}
        os.execve(command[0], command, environment)
    except OSError as error:
        os.write(status, json.dumps({"failure": f"sandbox, {command[0]}: {error}"}).encode())
    os._exit(1)


def _restrict(build: SandboxBuild) -> None:
    description = build.description
    if build.wants("landlock"):
        rules = [(path, _RIGHTS[kind]) for path, kind in description["places"]]
        if _names_threads(build):
            # The folder of this process, which exec does not change; it does not include other processes.
            rules.append(("/proc/self/task", kernel.WRITE_FILE))
        with _layer(build, "landlock"):
            build.landlock_abi = kernel.restrict([*rules, ("/proc", kernel.READ)])
            if build.landlock_abi < _LEAST_ABI_ALONE and "mount-ns" not in build.active:
                raise OSError(f"Landlock ABI {build.landlock_abi} alone: expected {_LEAST_ABI_ALONE}")
    if build.wants("seccomp"):
        with _layer(build, "seccomp"):
            seccomp.install_filter(devices=description["devices"])
