"""Services and workers that start at once: forks of a process that has imported the program already.

The import takes a second of each start, with torch five, and the suite starts some hundreds. A fork runs the same
program with its own environment and streams. A service's own programs and workers are forks too (warm.py): around a
worker the launcher's code builds every layer of the sandbox.

Two processes fork: one for services, and one for workers, which has torch and is started by the first when somebody
wants a worker. Both end with the process that uses them.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
SERVICE = (
    *("appliance.cli.main", "appliance.wiring"),
    *("appliance.workflows.queries.verification_program", "appliance.workflows.evaluation.verdict_program"),
)
TORCH = (
    *("appliance.ml.training.methods", "appliance.ml.training.loop", "appliance.ml.training.loss"),
    *("appliance.ml.serving.engine", "appliance.ml.evaluation.sets", "appliance.ml.model.convert"),
    *("transformers.models.llama.modeling_llama", "appliance.domain.evaluation.items"),
)
_MOST = 1 << 20


class Forked:
    """A forked process, with as much of Popen's interface as tests and the runner use. Its parent, which is not
    this process, reports how it ended."""

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
                raise subprocess.TimeoutExpired(["a fork"], timeout or 0.0)
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
        with self._forks.lock:
            if self.returncode is None:
                self.returncode = self._forks.ask({"ended": self.pid})
                os.close(self._ended)


class Forks:
    """Somebody's connection to a process that has imported the program."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self.lock = connection, threading.RLock()

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: Mapping[str, Any], *descriptors: int) -> int:
        with self.lock:
            self._socket.sendmsg([json.dumps(request).encode()], _rights(descriptors))
            return int(json.loads(self._socket.recv(_MOST)))

    def workers(self) -> Forks:
        """Return the second process, which has imported torch."""
        ours, theirs = _pair()
        with theirs:
            self.ask({"worker": True}, theirs.fileno())
        return Forks(ours)


def _rights(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _start(modules: Sequence[str], environment: Mapping[str, str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a process that imports these modules and forks on request. It ends with the socket."""
    ours, theirs = _pair()
    with theirs:
        # The last argument is room for the command lines of its forks.
        command = [sys.executable, "-m", "scripts.kit.forks", str(theirs.fileno()), *modules, " " * 4096]
        return ours, subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()])


@cache
def _forks(modules: tuple[str, ...]) -> Forks:
    if modules == TORCH:
        forks = _forks(SERVICE).workers()
        atexit.register(forks.close)
        return forks
    connection, process = _start(modules, os.environ)
    atexit.register(process.wait, 60)
    atexit.register(connection.close)
    return Forks(connection)


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


# --- the process that forks -------------------------------------------------------------------------------------------


class Server:
    """`first` and every socket that comes with a request may request forks; the server ends with `first`."""

    def __init__(self, first: socket.socket, *, services: bool) -> None:
        self._first, self._services = first, services
        self._asking = selectors.DefaultSelector()
        self._asking.register(first, selectors.EVENT_READ, self._answer)
        self._torch: socket.socket | None = None
        self._started: dict[socket.socket, set[int]] = {first: set()}
        self._orphans: set[int] = set()

    def serve(self) -> None:
        while self._first in self._started:
            for key, _ in self._asking.select():
                key.data(key.fileobj)
            self._bury()

    def _answer(self, asking: socket.socket) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(asking, _MOST, 8)
        except ConnectionResetError:  # it was killed with an answer unread
            data, descriptors = b"", []
        if not data:
            self._orphans |= self._started.pop(asking)
            self._forget(asking)
            return
        request = json.loads(data)
        if "ended" in request:
            self._started[asking].discard(request["ended"])
            answer = os.waitstatus_to_exitcode(os.waitpid(request["ended"], 0)[1])
        elif "worker" in request:
            self._hand_over(descriptors[0])
            answer = 0
        elif "asks" in request:
            self._welcome(socket.socket(fileno=descriptors[0]))
            return
        else:
            answer = self._fork(request, descriptors)
            self._started[asking].add(answer)
        with suppress(BrokenPipeError):  # it was killed meanwhile
            asking.send(json.dumps(answer).encode())

    def _forget(self, asking: socket.socket) -> None:
        self._asking.unregister(asking)
        asking.close()

    def _welcome(self, asking: socket.socket) -> None:
        self._started[asking] = set()
        self._asking.register(asking, selectors.EVENT_READ, self._answer)

    def _bury(self) -> None:
        """Collect the ended processes whose exit status is not asked for any more."""
        for pid in list(self._orphans):
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                self._orphans.discard(pid)

    # Workers are forked elsewhere.

    def _hand_over(self, descriptor: int) -> None:
        """Pass a socket to the process that has torch, which may still be importing."""
        from scripts.kit import warm

        if self._torch is None:
            self._torch, _ = _start(TORCH, warm.environment())
        self._torch.sendmsg([json.dumps({"asks": True}).encode()], _rights([descriptor]))
        os.close(descriptor)

    # In the fork.

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> int:
        ours, theirs = _pair() if self._services else (None, None)
        pid = os.fork()
        if pid == 0:
            self._close()
            if "launch" in request:
                from scripts.kit import warm

                run_as_process(partial(warm.launch, request["launch"], descriptors))
            run_as_process(partial(_begin, request, descriptors, theirs))
        for descriptor in descriptors:
            os.close(descriptor)
        if ours is not None and theirs is not None:
            theirs.close()
            self._welcome(ours)
        return pid

    def _close(self) -> None:
        for key in list(self._asking.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._asking.close()
        if self._torch is not None:
            self._torch.close()


def run_as_process(program: Callable[[], None]) -> NoReturn:
    """As a process of its own: never back into the loop that forked it."""
    code = 1
    try:
        program()
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


def _begin(request: Mapping[str, Any], streams: list[int], asking: socket.socket | None) -> None:
    """`asking`: where a service's own programs and workers are asked for."""
    command: list[str] = request["command"]
    take_streams(streams)
    take_environment(request["environment"])
    if asking is not None:
        from scripts.kit import warm

        warm.fork_all(Forks(asking))
    is_module = command[0] == "-m"
    sys.argv = command[1:] if is_module else command
    if request.get("is_program"):
        os.setsid()
        os.chdir("/")
        sys.modules.pop(command[1], None)
    if is_module:
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(command[0], run_name="__main__")


def take_streams(streams: Sequence[int]) -> None:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)


def take_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()


def main(first: socket.socket, modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    if tuple(modules) == SERVICE:
        from scripts.kit import prepared

        prepared.prepare()
    gc.freeze()  # else a fork's first collection would copy all of it
    Server(first, services=tuple(modules) == SERVICE).serve()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as first_asking:
        main(first_asking, sys.argv[2:-1])
