"""Tries all parsers in processes of their own, and reports what ended one of these or held it up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.judging import keep

HANG_S = 60.0
"""Seconds after which a call counts as one that does not return."""
STEP_S = 0.5


@dataclass(frozen=True)
class Finding:
    """A defect, its place, and the input that repeats it."""

    where: str
    problem: str
    input: str


@dataclass
class Tried:
    """The findings, the number of calls, and the paths through the code that were seen, by parser."""

    findings: list[Finding]
    calls: dict[str, int]
    ways: dict[str, int]


def try_parsers(
    folder: Path, seconds: float, seed: int, names: Sequence[str], processes: int = 1, module: str = "tests.fuzz.worker"
) -> Tried:
    """Try parsers for so many seconds. `folder` keeps the corpus and the inputs of findings."""
    names = list(names)
    tried = Tried([], {}, {})
    watchers = [
        _Watcher(folder / f"worker-{place}", folder, names[place::processes], time.monotonic() + seconds, tried, module)
        for place in range(processes)
    ]
    threads = [threading.Thread(target=watcher.run, args=(seed + place,)) for place, watcher in enumerate(watchers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tried


class _Watcher:
    """Starts a worker, and another one when it has ended before its time."""

    def __init__(self, own: Path, folder: Path, names: list[str], until: float, tried: Tried, module: str) -> None:
        own.mkdir(parents=True, exist_ok=True)
        self._folder, self._names, self._until, self._tried = folder, names, until, tried
        self._current, self._module = own / "current", module

    def run(self, seed: int) -> None:
        while (left := self._until - time.monotonic()) > 0 and self._names:
            self._current.write_bytes(b"")
            code = self._watch(self._start(left, seed))
            if code == 0:
                return
            seed += 1_000
            name, _, data = self._current.read_bytes().partition(b"\n")
            if not name:
                errors = self._current.parent / "errors"
                self._tried.findings.append(Finding("worker", f"it ended with {code} outside of a call", str(errors)))
                return
            place = keep(self._folder / "found", name.decode(), data)
            ended = "the call did not return" if code is None else f"the process ended with {code}"
            self._tried.findings.append(Finding(name.decode(), ended, str(place)))
            self._names.remove(name.decode())

    def _start(self, seconds: float, seed: int) -> subprocess.Popen[bytes]:
        words = [str(self._folder), str(self._current), str(seconds), str(seed)]
        errors = (self._current.parent / "errors").open("ab")
        with errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", self._module, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert worker.stdin is not None
        with worker.stdin as names:
            names.write("\n".join(self._names).encode())
        return worker

    def _watch(self, worker: subprocess.Popen[bytes]) -> int | None:
        """Return the worker's exit code, or None if it had to be killed in a call."""
        reader = threading.Thread(target=self._read, args=(worker,))
        reader.start()
        code: int | None = None
        while (code := worker.poll()) is None:
            time.sleep(STEP_S)
            if self._current.stat().st_size and time.time() - self._current.stat().st_mtime > HANG_S:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                break
        reader.join()
        assert worker.stdout is not None
        worker.stdout.close()
        return code

    def _read(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            said = json.loads(line)
            if "problem" in said:
                found = Finding(said["parser"], said["problem"], said["input"])
                self._tried.findings += [] if found in self._tried.findings else [found]
                continue
            name = said["parser"]
            self._tried.calls[name] = self._tried.calls.get(name, 0) + said["calls"]
            self._tried.ways[name] = max(self._tried.ways.get(name, 0), said["ways"])


def list_new(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield one finding of each kind at a place, that with the shortest input."""
    shortest: dict[tuple[str, str], Finding] = {}
    for one in findings:
        key = (one.where, one.problem.partition(":")[0])
        with contextlib.suppress(OSError):
            if key not in shortest or os.stat(one.input).st_size < os.stat(shortest[key].input).st_size:
                shortest[key] = one
    yield from shortest.values()
