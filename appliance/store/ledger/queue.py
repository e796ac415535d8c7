"""The queue of appends, in which one caller commits for all that are waiting, and the log's clock.

A single append does not wait. While a commit runs, further appends queue up; the first of them then commits the whole
queue. A caller waits only until its own append is settled.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from appliance.domain.core.entry import Entry, EntryDraft
from appliance.domain.core.names import add_seconds
from appliance.domain.core.state import State
from appliance.errors import ApplianceError, Unavailable
from appliance.formats.core.timestamp import encode_time

Guard = Callable[[State, str], None]
"""Function (state, time) that raises an error to refuse an append.

It gets the state before the entry, which it must not change, and the entry's time.
"""


class AppendedEntry(NamedTuple):
    """A durable entry, and the first signed checkpoint that covers it."""

    entry: Entry
    entry_bytes: bytes
    checkpoint: bytes


@dataclass(eq=False)
class WaitingDrafts:
    """The drafts of one caller, which are appended all or not at all, until they are durable, refused or failed."""

    drafts: tuple[EntryDraft, ...]
    guard: Guard | None
    settled: bool = False
    _appended: list[AppendedEntry] | None = None
    _error: BaseException | None = None
    _signal: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._signal.acquire()

    def succeed(self, appended: list[AppendedEntry]) -> None:
        """Settle the append with its durable entries."""
        self._appended, self.settled = appended, True
        self._signal.release()

    def fail(self, error: BaseException) -> None:
        """Settle the append with an error."""
        self._error, self.settled = error, True
        self._signal.release()

    def wait(self) -> None:
        self._signal.acquire()

    def outcome(self) -> list[AppendedEntry]:
        """Return the result of a settled append or raise its error, as a copy, since each thread needs its own
        traceback."""
        if self._appended is not None:
            return self._appended
        if isinstance(self._error, ApplianceError):
            raise copy.copy(self._error)
        got = type(self._error).__name__
        raise Unavailable(f"ledger: expected the commit that this entry shared to end, got {got}") from self._error


class AppendQueue:
    """The waiting appends. The thread that commits holds `lock`, which is re-entrant."""

    def __init__(self, lock: threading.RLock, commit: Callable[[list[WaitingDrafts]], None]) -> None:
        """Create a queue; `commit` is called with the lock held and settles every append that it is given."""
        self._lock = lock
        self._commit = commit
        self._waiting: list[WaitingDrafts] = []
        self._mutex = threading.Lock()
        self._has_next = False

    def append(self, waiting: WaitingDrafts) -> list[AppendedEntry]:
        # This succeeds if no thread commits, or if this thread already holds the lock.
        is_held = self._lock.acquire(blocking=False)
        with self._mutex:
            self._waiting.append(waiting)
        if is_held or self._take_turn():
            try:
                # Commit even if this append was settled meanwhile, since other threads may rely on this one.
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
        """Return True, with the lock, for the first thread that comes while the lock is held.

        Return False for the others, whose appends that thread commits.
        """
        with self._mutex:
            if self._has_next:
                return False
            self._has_next = True
        try:
            self._lock.acquire()
        finally:
            with self._mutex:
                self._has_next = False
        return True


class LogClock:
    """The clock that gives the time of the next entry."""

    def __init__(self, now: Callable[[], datetime], longest_pause_days: int | None = None) -> None:
        self._now = now
        self._longest_pause_days = longest_pause_days
        self._pause_after = ""
        self.ahead_ms: int | None = None
        """Milliseconds by which this clock is ahead of the database server's, if other processes append by their own
        clocks."""

    def accept_pause(self, last_time: str) -> None:
        """Accept that the clock is right, although the last entry (which has this time) is long ago; a person
        confirmed it."""
        self._pause_after = last_time

    def read(self, state: State) -> str:
        """Return the current time.

        With a clock that is behind the last entry by more than `clock_skew_s`, approvals and tokens would not expire. A
        clock that is ahead of it by more than the longest pause may be wrong, and an entry with a future time would
        block all later ones until that time.

        Raises:
            Unavailable: the next entry must not have this time (code `clock`).
        """
        now, last = encode_time(self._now()), state.last_time
        if is_behind(state, now):
            problem = f"expected a time after the last entry's, {last}, got {now}"
            remedy = (
                "nothing is appended until it is set or, if it is right, two administrators type: appliance clock reset"
            )
            raise Unavailable(f"clock: {problem}; {remedy}", code="clock")
        ahead_s = abs(self.ahead_ms or 0) / 1000
        if ahead_s and ahead_s > (skew_s := state.parameters.clock_skew_s):
            got = f"{ahead_s:.0f} s {'after' if (self.ahead_ms or 0) > 0 else 'before'} it"
            problem = f"expected a time within {skew_s} s (clock_skew_s) of the database server's, got one {got}"
            raise Unavailable(
                f"clock: {problem}; this process appends nothing until one of the two is set", code="clock"
            )
        days = self._longest_pause_days
        if days is not None and last not in ("", self._pause_after) and now[:10] > _day_after(last[:10], days):
            problem = f"expected a time at most {days} days after the last entry's, {last}, got {now}"
            remedy = "nothing is appended until it is set or, if it is right, the service starts with --after-pause"
            raise Unavailable(f"clock: {problem}; {remedy}", code="clock")
        return now

    def read_behind(self, state: State) -> str | None:
        """Return the current time if the clock is so far behind that the log's time can be set back to it; otherwise
        None."""
        now = encode_time(self._now())
        return now if is_behind(state, now) else None


def is_behind(state: State, now: str) -> bool:
    """Return True if this time is behind the last entry's by more than the policy's `clock_skew_s`."""
    return now < state.last_time and add_seconds(now, state.parameters.clock_skew_s) < state.last_time


@lru_cache(maxsize=8)
def _day_after(day: str, days: int) -> str:
    try:
        return (date.fromisoformat(day) + timedelta(days)).isoformat()
    except OverflowError:
        return date.max.isoformat()
