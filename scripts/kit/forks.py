"""Services and workers that start at once: forks of a process that has imported the program already.

The import takes a second of each start, with torch three, and the suite starts some hundreds. A fork runs the same
program with its own environment and streams. Programs that it starts itself are started in the usual way. The process
that forks ends with the one that uses it.
"""

from __future__ import annotations

import array
import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ("appliance.cli.main", "appliance.wiring")
TORCH = ("appliance.ml.training.methods", "appliance.ml.serving.engine")
_MOST = 1 << 20


class Forked:
    """A forked service, with as much of Popen's interface as tests use. Its parent, which is not this process, says how
    it ended."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self.pid, self.returncode = pid, None
        self._forks, self._ended = forks, os.pidfd_open(pid)

    returncode: int | None

    def poll(self) -> int | None:
        if self.returncode is None and self._ends_within(0):
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not self._ends_within(timeout):
                raise subprocess.TimeoutExpired(["a forked service"], timeout or 0.0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._ended, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ends_within(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1_000))

    def _end(self) -> None:
        self.returncode = self._forks.ask({"ended": self.pid})
        os.close(self._ended)


class Forks:
    """The process that has imported the program."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "scripts.kit.forks", str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])

    def close(self) -> None:
        self._socket.close()
        self._process.wait(60)

    def ask(self, request: Mapping[str, Any], *descriptors: int) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self._socket.sendmsg([json.dumps(request).encode()], rights)
        answer = self._socket.recv(_MOST)
        return int(json.loads(answer))


@cache
def _forks(modules: tuple[str, ...]) -> Forks:
    forks = Forks(modules)
    atexit.register(forks.close)
    return forks


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    streams: tuple[int, int, int],
    imported: tuple[str, ...] = SERVICE,
) -> Forked:
    """`python COMMAND`, which is a file or `-m` and a module, and what is behind it, with these as its descriptors 0, 1
    and 2."""
    forks = _forks(imported)
    return Forked(forks, forks.ask({"command": command, "environment": dict(environment)}, *streams))


def main(wanted: socket.socket, modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    while True:
        data, descriptors, _, _ = socket.recv_fds(wanted, _MOST, 3)
        if not data:
            return
        request = json.loads(data)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            wanted.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            wanted.close()
            _run(request["command"], request["environment"], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        wanted.send(json.dumps(pid).encode())


def _run(command: list[str], environment: dict[str, str], streams: list[int]) -> NoReturn:
    """As a process of its own: never back into the loop that forked it."""
    code = 1
    try:
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        is_module = command[0] == "-m"
        sys.argv = command[1:] if is_module else command
        if is_module:
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    finally:
        if (error := sys.exc_info()[1]) is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as wanted_on:
        main(wanted_on, sys.argv[2:])
