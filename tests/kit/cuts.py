"""Power cuts: an act in a process that dies, without cleanup, in each state of the disk that the act goes through."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

CUT = 9
Place = tuple[str, int, int]
"""A file, the number of a line in it, and how many times an act reached the line."""


def find_cuts(folder: Path, files: frozenset[str], act: Callable[[], object]) -> list[Place]:
    """Return the first place in each state of a folder that an act reaches before a line of these files.

    A process that dies between two changes of the disk leaves the same state wherever it dies, so one place is enough.
    """
    states: dict[frozenset[tuple[str, int, int, bytes]], Place] = {}
    _trace_lines(files, lambda place: states.setdefault(_read_state(folder), place), act)
    return list(states.values())


def cut_at(wanted: Place, files: frozenset[str], act: Callable[[], object]) -> bool:
    """Run an act in a process that dies, without cleanup, at a place. Return False if it never reached the place."""
    child = os.fork()
    if child == 0:
        try:
            _trace_lines(files, lambda place: os._exit(CUT) if place == wanted else None, act)
            os._exit(0)
        finally:
            os._exit(1)  # never back into the tests
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, CUT)
    return code == CUT


def _trace_lines(files: frozenset[str], note: Callable[[Place], object], act: Callable[[], object]) -> None:
    """Call `note` with the place before each line of these files that an act reaches."""
    visits: Counter[tuple[str, int]] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            line = frame.f_code.co_filename, frame.f_lineno
            visits[line] += 1
            note((*line, visits[line]))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)


def _read_state(folder: Path) -> frozenset[tuple[str, int, int, bytes]]:
    """Return the path, inode, mode and content of all that is in a folder."""
    found = []
    for path in folder.rglob("*"):
        status = path.lstat()
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found.append((str(path), status.st_ino, status.st_mode, content))
    return frozenset(found)
