"""The host's clock, as far as a log can trust it. In a log, time decreases only where two administrators set it back,
and no entry can be removed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import lru_cache

from appliance.domain.core.names import add_seconds
from appliance.domain.core.state import State
from appliance.errors import Unavailable
from appliance.formats.core.timestamp import encode_time


class LogClock:
    """Gives the time of the next entry."""

    def __init__(self, now: Callable[[], datetime], longest_pause_days: int | None = None) -> None:
        self._now = now
        self._longest_pause_days = longest_pause_days
        self._pause_after = ""
        self.ahead_ms: int | None = None
        """How far it is ahead of the database server's, where other processes append by clocks of their own."""

    def accept_pause(self, last_time: str) -> None:
        """A person confirms that the clock is right, however long ago the last entry (which has this time) is."""
        self._pause_after = last_time

    def read(self, state: State) -> str:
        """The time now; Unavailable, with the code `clock`, where the next entry must not have it.

        With a clock that is behind the last entry by more than `clock_skew_s`, approvals and tokens would not expire. A
        clock that is ahead of it by more than the longest pause may be set wrong, and an entry with a future time would
        block all later ones until that time.
        """
        now, last = encode_time(self._now()), state.last_time
        if is_behind(state, now):
            said = f"expected a time after the last entry's, {last}, got {now}"
            ends = (
                "nothing is appended until it is set or, if it is right, two administrators type: appliance clock reset"
            )
            raise Unavailable(f"clock: {said}; {ends}", code="clock")
        ahead_s = abs(self.ahead_ms or 0) / 1000
        if ahead_s and ahead_s > (skew_s := state.parameters.clock_skew_s):
            got = f"{ahead_s:.0f} s {'after' if (self.ahead_ms or 0) > 0 else 'before'} it"
            said = f"expected a time within {skew_s} s (clock_skew_s) of the database server's, got one {got}"
            raise Unavailable(f"clock: {said}; this process appends nothing until one of the two is set", code="clock")
        days = self._longest_pause_days
        if days is not None and last not in ("", self._pause_after) and now[:10] > _day_after(last[:10], days):
            said = f"expected a time at most {days} days after the last entry's, {last}, got {now}"
            ends = "nothing is appended until it is set or, if it is right, the service starts with --after-pause"
            raise Unavailable(f"clock: {said}; {ends}", code="clock")
        return now

    def read_behind(self, state: State) -> str | None:
        """The time now, where the clock is so far behind that the log's time can be set back to it; else None."""
        now = encode_time(self._now())
        return now if is_behind(state, now) else None


def is_behind(state: State, now: str) -> bool:
    """Whether this time is behind the last entry's by more than the policy's `clock_skew_s`."""
    return now < state.last_time and add_seconds(now, state.parameters.clock_skew_s) < state.last_time


@lru_cache(maxsize=8)
def _day_after(day: str, days: int) -> str:
    try:
        return (date.fromisoformat(day) + timedelta(days)).isoformat()
    except OverflowError:
        return date.max.isoformat()
