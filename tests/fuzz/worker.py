"""A process that tries parsers under a limit of memory: `python -m tests.fuzz.worker FOLDER CURRENT SECONDS SEED`.

The names of the parsers are lines of its input.

During each call the file CURRENT has its input, so that the process that watches it knows the input of a call
that does not return, or ends this process. Each line of its output is a JSON object.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.errors import Flaky, FlakyFailure

from tests.fuzz.inputs import inputs
from tests.fuzz.judging import CORPUS, judge, keep, list_kept
from tests.fuzz.target import TARGETS

MEMORY_BYTES = 512 << 20
"""Most memory that this process may take beyond what it has when it begins."""
EXAMPLES = 80
"""Inputs of a target in one round."""
ROUND_S = 4.0
"""Most seconds of a target in one round."""
KEPT = 40
"""Most inputs of earlier rounds among a target's good inputs."""


class Found(Exception):
    """An input that did what a parser must not do. Hypothesis makes it smaller."""


class Worker:
    """The rounds over some parsers, until a time."""

    def __init__(self, folder: Path, current: Path, until: float, seed: int, out: TextIO) -> None:
        self._folder, self._until, self._out = folder, until, out
        self._random = random.Random(seed)
        self._current = os.open(current, os.O_RDWR | os.O_CREAT, 0o600)
        self._ways: dict[str, set[str]] = {}
        self._seeds: dict[str, list[bytes]] = {}

    def run(self, names: Sequence[str]) -> None:
        """Try the parsers in turns."""
        names = list(names)
        while time.monotonic() < self._until:
            self._random.shuffle(names)
            for name in names:
                if time.monotonic() >= self._until:
                    break
                self.try_once(name)

    def _tell(self, **values: object) -> None:
        print(json.dumps(values), file=self._out, flush=True)

    def try_once(self, name: str) -> None:
        """Do one round of a target."""
        target, until = TARGETS[name], min(time.monotonic() + ROUND_S, self._until)
        ways = self._ways.setdefault(name, set())
        kept = list(list_kept(self._folder / "corpus", name))
        kept = self._random.sample(kept, min(KEPT, len(kept)))
        if name not in self._seeds:
            self._seeds[name] = [*target.seeds(), *list_kept(CORPUS, name)]
        seeds = [*self._seeds[name], *kept]
        found: dict[str, tuple[str, bytes]] = {}
        calls: list[int] = []

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=DirectoryBasedExampleDatabase(self._folder / "examples"),
            suppress_health_check=list(HealthCheck),
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
        )
        @given(inputs(target.form, seeds))
        def act(data: bytes) -> None:
            if time.monotonic() >= until and not found:
                return
            self._write(name, data)
            outcome = judge(target, data)
            os.ftruncate(self._current, 0)
            calls.append(len(data))
            if outcome.problem:
                smallest = found.get(outcome.way)
                if smallest is None or len(data) < len(smallest[1]):
                    found[outcome.way] = outcome.problem, data
                raise Found(outcome.way)
            if outcome.way not in ways:
                ways.add(outcome.way)
                if len(data) <= 1 << 16:
                    keep(self._folder / "corpus", name, data)

        with contextlib.suppress(Found, Flaky, FlakyFailure):
            act()
        for problem, data in found.values():
            self._tell(parser=name, problem=problem, input=str(keep(self._folder / "found", name, data)))
        self._tell(parser=name, calls=len(calls), ways=len(ways))

    def _write(self, name: str, data: bytes) -> None:
        header = name.encode() + b"\n"
        os.pwrite(self._current, header + data, 0)


def main() -> None:
    folder, current, seconds, seed = sys.argv[1:]
    names = sys.stdin.read().splitlines()
    warnings.simplefilter("ignore")
    for name in names:
        for data in TARGETS[name].seeds():  # what is imported at the first call does not count
            judge(TARGETS[name], data)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    out, sys.stdout = sys.stdout, sys.stderr
    Worker(Path(folder), Path(current), time.monotonic() + float(seconds), int(seed), out).run(names)


if __name__ == "__main__":
    importlib.import_module("tests.fuzz.targets")  # It adds every target.
    main()
