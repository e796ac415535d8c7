"""Workers and programs of a forked service, as forks of a process that has imported what they need already.

The launcher's own code builds the sandbox around the fork: namespaces, root, limits, Landlock, both call filters. Only
the exec at its end is left out where the process already is what the exec would make: `enter.py` then runs the module
in it. A worker that was given another environment, or a module of another package, is started in the usual way.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from appliance.sandbox import enter, launcher, local, processes, program
from appliance.sandbox.description import PACKAGE, Sandbox
from scripts.kit import forks

FOLDERS = frozenset({"HOME", "TMPDIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH"})
"""The variables that are another worker's."""
_SERVICE = "service="
_execve = os.execve


def environment() -> dict[str, str]:
    """Return a worker's environment for the process that forks workers, with one thread: a fork keeps no others."""
    shared = local._environment(Sandbox(read=(), write=(Path("/"),)))
    return {**shared, "GOMP_SPINCOUNT": "2000", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# --- the service's side -----------------------------------------------------------------------------------------------


class _Launchers:
    """`subprocess`, as the launcher uses it."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self, ask: Callable[[], forks.Forks]) -> None:
        self._ask = ask

    def Popen(
        self, _: Sequence[str], *, stdin: int, stdout: int, stderr: int, pass_fds: tuple[int, int], **__: Any
    ) -> forks.Forked:
        asked = self._ask()
        with open(os.devnull, "r+b") as nothing:
            streams = [nothing.fileno() if one == self.DEVNULL else one for one in (stdin, stdout, stderr)]
            return forks.Forked(asked, asked.ask({"launch": os.getpid()}, *streams, *pass_fds))


class _Program(forks.Forked):
    """A forked program with a pipe to it and one from it, as Popen has them."""

    def __init__(self, asked: forks.Forks, command: Sequence[str], environment: Mapping[str, str], log: int) -> None:
        (theirs, stdin), (stdout, back) = os.pipe(), os.pipe()
        request = {"command": command, "environment": dict(environment), "is_program": True}
        super().__init__(asked, asked.ask(request, theirs, back, log))
        os.close(theirs)
        os.close(back)
        self.stdin, self.stdout = os.fdopen(stdin, "wb", buffering=0), os.fdopen(stdout, "rb", buffering=0)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdin.close()
        self.stdout.close()
        self.wait()


class _Programs:
    """`subprocess`, as the runner of programs uses it."""

    PIPE, TimeoutExpired = subprocess.PIPE, subprocess.TimeoutExpired

    def __init__(self, ask: Callable[[], forks.Forks]) -> None:
        self._ask = ask

    def Popen(self, command: Sequence[str], *, stderr: int, env: Mapping[str, str], **_: Any) -> _Program:
        return _Program(self._ask(), ["-m", command[-1]], env, stderr)


def fork_workers(asked: forks.Forks) -> None:
    """From here on this process's workers are forks of the one that is asked."""
    changed: Any = launcher
    changed.subprocess = _Launchers(lambda: asked)


@contextmanager
def forked_workers(imported: tuple[str, ...] = forks.TORCH) -> Iterator[None]:
    """For a test that is the service itself."""
    changed: Any = launcher
    fork_workers(forks._forks(imported))
    try:
        yield
    finally:
        changed.subprocess = subprocess


@contextmanager
def forked_programs() -> Iterator[None]:
    """For a test that is the service itself: a program's imports take most of its time."""
    changed: Any = program
    before, changed.subprocess = changed.subprocess, _Programs(partial(forks._forks, forks.SERVICE))
    try:
        yield
    finally:
        changed.subprocess = before


def fork_all(asked: forks.Forks) -> None:
    """Fork workers and their programs; torch is imported for the first worker."""
    changed: Any = launcher
    changed.subprocess = _Launchers(cache(asked.workers))
    changed = program
    changed.subprocess = _Programs(lambda: asked)


# --- the worker's side ------------------------------------------------------------------------------------------------


def launch(service: int, descriptors: Sequence[int]) -> None:
    """In a fork: the launcher's whole work, for this service.

    `descriptors`: 0, 1, 2, the parent-death pipe and the report.
    """
    os.setsid()
    os.chdir("/")
    forks.take_streams(descriptors[:3])
    forks.take_environment({"LANG": "C.UTF-8"})
    _name(f"{_SERVICE}{service}")
    changed: Any = os
    changed.execve = _become
    processes.main([str(descriptor) for descriptor in descriptors[3:]])


def _become(path: str, command: Sequence[str], variables: Mapping[str, str]) -> None:
    if not is_ready(command, variables):
        _execve(path, command, variables)
    os.closerange(3, 1 << 10)
    forks.run_as_process(partial(_enter, command, variables))


def is_ready(command: Sequence[str], variables: Mapping[str, str]) -> bool:
    """Return True if an exec of the command would give the same process: this one has read the same variables."""
    usual = local._environment(Sandbox(read=(), write=(Path(variables["HOME"]),)))
    given = {name: value for name, value in variables.items() if name != enter.FILTERED}
    return command[-4] == str(PACKAGE) and given == usual


def _enter(command: Sequence[str], variables: Mapping[str, str]) -> None:
    _name(*command)
    forks.take_environment(variables)
    tempfile.tempdir = None
    changed: Any
    if "torch" in sys.modules:
        # Two threads take a third more of the processor than one, and other tests want the second core.
        changed = sys.modules["torch"]
        changed.set_num_threads(1)
        changed.set_num_threads = lambda count: None
    sys.path[:] = [path for path in sys.path if path not in ("", str(forks.ROOT))]
    code, entry, module, targets = command[-4:]
    sys.argv = [entry, module, targets]
    changed = enter
    changed._register = lambda folder: None  # it is imported
    enter._run(code, entry)


def _name(*words: str) -> None:
    """Replace this process's command line by these words, as far as there is room."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    size = end - start
    ctypes.memmove(start, "\0".join(words).encode()[: size - 1].ljust(size, b"\0"), size)


# --- who is whose -----------------------------------------------------------------------------------------------------


def find_workers(service: int, module: str) -> list[int]:
    """List living processes below a service that run the module, or one whose name begins so, the outermost first."""
    parents: dict[int, int] = {}
    words: dict[int, list[str]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            told = (place / "cmdline").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        pid = int(place.name)
        parents[pid] = int(told[0].removeprefix(_SERVICE)) if told[0].startswith(_SERVICE) else parent
        words[pid] = told
    found, level = [], [service]
    while level:
        level = [pid for pid, parent in sorted(parents.items()) if parent in level]
        found += [pid for pid in level if any(word.startswith(module) for word in words[pid])]
    return found


def find_engine(service: int, module: str) -> int:
    """Return the process below a service that holds the model. Its launchers and tokenizers run the same module."""
    return max(find_workers(service, module), key=_resident_pages)


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
