"""Appends that wait for one durable commit: the first caller commits for all that came meanwhile.

A single append does not wait. While a commit runs, further appends queue up; the first of them runs the next commit,
for the whole queue. A caller whose append is settled waits only for its own signal.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from appliance.domain.core.entry import Draft, Entry
from appliance.domain.core.state import State
from appliance.errors import ApplianceError, Unavailable

Guard = Callable[[State, str], None]
"""Raises what refuses the append; sees the state that the entry would follow, which it must not change, and the entry's
time."""


class Appended(NamedTuple):
    """A durable entry, and the signed checkpoint of a log that holds it: the first that was signed since."""

    entry: Entry
    entry_bytes: bytes
    checkpoint: bytes


@dataclass(eq=False)
class Waiting:
    """What one caller appends, all of it or nothing, until it is settled: durable, refused, or failed."""

    drafts: tuple[Draft, ...]
    guard: Guard | None
    settled: bool = False
    _appended: list[Appended] | None = None
    _error: BaseException | None = None
    _signal: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._signal.acquire()

    def succeed(self, appended: list[Appended]) -> None:
        self._appended, self.settled = appended, True
        self._signal.release()

    def fail(self, error: BaseException) -> None:
        self._error, self.settled = error, True
        self._signal.release()

    def wait(self) -> None:
        self._signal.acquire()

    def outcome(self) -> list[Appended]:
        """Of a settled append. Each thread raises an error of its own: a traceback belongs to one."""
        if self._appended is not None:
            return self._appended
        if isinstance(self._error, ApplianceError):
            raise copy.copy(self._error)
        got = type(self._error).__name__
        raise Unavailable(f"ledger: expected the commit that this entry shared to end, got {got}") from self._error


class Queue:
    """The appends that wait, and which thread commits next. The committing thread holds `lock`, which is re-entrant."""

    def __init__(self, lock: threading.RLock, commit: Callable[[list[Waiting]], None]) -> None:
        """`commit` settles every append that it is given; it is called with the lock held."""
        self._lock = lock
        self._commit = commit
        self._waiting: list[Waiting] = []
        self._mutex = threading.Lock()
        self._next_is_there = False

    def append(self, waiting: Waiting) -> list[Appended]:
        # At once when no thread commits, or when this very thread holds the lock around its append.
        is_held = self._lock.acquire(blocking=False)
        with self._mutex:
            self._waiting.append(waiting)
        if is_held or self._take_turn():
            try:
                # Also when this one was settled meanwhile: others may have left theirs to it.
                with self._mutex:
                    taken, self._waiting = self._waiting, []
                if taken:
                    self._commit(taken)
            finally:
                self._lock.release()
        else:
            waiting.wait()
        return waiting.outcome()

    def _take_turn(self) -> bool:
        """True, with the lock, for the first thread that comes while it is held; False for the others, whose appends
        that thread commits."""
        with self._mutex:
            if self._next_is_there:
                return False
            self._next_is_there = True
        try:
            self._lock.acquire()
        finally:
            with self._mutex:
                self._next_is_there = False
        return True
