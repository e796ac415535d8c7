"""Power cuts: an act in a process that dies, cleaning up nothing, when it reaches a line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

CUT = 9
Line = tuple[str, int]
"""A file and the number of a line in it."""


def cut_at(place: Line, files: frozenset[str], act: Callable[[], object]) -> bool:
    """Run an act in a process that dies, cleaning up nothing, when it first reaches this line of a file.

    Return True if it died, False if it never reached the line.
    """
    child = os.fork()
    if child == 0:

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename not in files:
                return None
            if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == place:
                os._exit(CUT)
            return trace

        try:
            sys.settrace(trace)
            act()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, CUT)
    return code == CUT


def lines_of(files: frozenset[str], functions: frozenset[str], act: Callable[[], object]) -> list[Line]:
    """Each line of these functions, or of all, that the act reaches, once."""
    seen: dict[Line, None] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and (not functions or frame.f_code.co_name in functions):
            seen[frame.f_code.co_filename, frame.f_lineno] = None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return list(seen)
