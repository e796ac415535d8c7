"""How much a unit may ask: at once, in a minute, in a day. Operations, not invariants: no approval rests on a limit.

Counted in memory, by this service alone: a restart begins with full buckets.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from appliance.errors import TooMany

MINUTE_S, DAY_S = 60.0, 86_400.0
EVERYBODY = ""
"""In the table of limits: every unit that has no row of its own."""


@dataclass(frozen=True)
class Limits:
    """0: none. Tokens are those read and those written."""

    concurrent: int = 16
    requests_per_minute: int = 1_200
    tokens_per_minute: int = 0
    tokens_per_day: int = 0


class Bucket:
    """Fills evenly, up to what is allowed in its time; what an answer took may leave a debt, which is waited out."""

    def __init__(self, most: int, seconds: float, now: float) -> None:
        self._most = most
        self._per_s = most / seconds
        self._level = float(most)
        self._at = now

    def take(self, amount: int, now: float) -> None:
        self._fill(now)
        self._level -= amount

    def wait_s(self, now: float, amount: int = 1) -> float:
        """How long until there is as much; 0 when there is."""
        self._fill(now)
        return max(0.0, (amount - self._level) / self._per_s)

    def left(self, now: float) -> int:
        """What may be taken now; nothing while a debt is paid back."""
        self._fill(now)
        return max(0, int(self._level))

    def _fill(self, now: float) -> None:
        self._level = min(float(self._most), self._level + (now - self._at) * self._per_s)
        self._at = now


class Meter:
    """What one unit has asked for; its methods are called with the lock of `Quotas` held."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.running = 0
        wanted, minute, day = limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day
        self.requests = Bucket(wanted, MINUTE_S, now) if wanted else None
        self.minute = Bucket(minute, MINUTE_S, now) if minute else None
        self.day = Bucket(day, DAY_S, now) if day else None

    @property
    def tokens(self) -> list[Bucket]:
        return [bucket for bucket in (self.minute, self.day) if bucket is not None]

    def usage(self, now: float) -> tuple[Usage, ...]:
        limits = self.limits
        return (
            Usage("requests at once", limits.concurrent, self._places()),
            *(
                Usage(name, most, None if bucket is None else bucket.left(now))
                for name, most, bucket in (
                    ("requests in a minute", limits.requests_per_minute, self.requests),
                    ("tokens in a minute", limits.tokens_per_minute, self.minute),
                    ("tokens in a day", limits.tokens_per_day, self.day),
                )
            ),
        )

    def _places(self) -> int | None:
        return max(0, self.limits.concurrent - self.running) if self.limits.concurrent else None

    def enter(self, unit: str, now: float) -> None:
        """TooMany, with the time to wait, where anything is used up; then nothing is taken."""
        if self.limits.concurrent and self.running >= self.limits.concurrent:
            raise TooMany(
                f"{unit}: expected at most {self.limits.concurrent} requests at once, got one more",
                code="concurrent-limit",
            )
        waits = [("requests a minute", "rate-limit", self.requests)] if self.requests else []
        waits += [("tokens", "token-limit", bucket) for bucket in self.tokens]
        for what, code, bucket in waits:
            wait_s = bucket.wait_s(now)
            if wait_s > 0:
                again = math.ceil(wait_s)
                raise TooMany(
                    f"{unit}, {what}: expected none within the next {again} s, since the limit is reached, got one",
                    code=code,
                    retry_after_s=again,
                )
        if self.requests is not None:
            self.requests.take(1, now)
        self.running += 1


class Usage(NamedTuple):
    """One limit of a unit: `most` is 0 where there is none, and `left` is then None."""

    name: str
    most: int
    left: int | None


class Place:
    """One request that is under way; left once, whatever becomes of it."""

    def __init__(self, quotas: Quotas, meter: Meter) -> None:
        self._quotas = quotas
        self._meter = meter

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._quotas.leave(self._meter)

    def spend_frame(self, done: Mapping[str, Any], pieces: int) -> None:
        """The tokens of an answer's last frame; of an answer that was left, as many as pieces came."""
        tokens = int(done["prompt_tokens"]) + int(done["completion_tokens"]) if done else pieces
        self._quotas.spend(self._meter, tokens)


class Quotas:
    """A meter for each unit; `clock` is monotonic, in seconds."""

    def __init__(self, table: Mapping[str, Limits], most: int, clock: Callable[[], float]) -> None:
        """`table`: unit to limits, under EVERYBODY those of the rest; `most` requests at once, of all together."""
        self._table = table
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._meters: dict[str, Meter] = {}
        self.running = 0

    def enter(self, unit: str) -> Place:
        with self._lock:
            now = self._clock()
            meter = self._meter(unit, now)
            if self.running >= self._most:
                raise TooMany(f"units' API: expected at most {self._most} requests at once, got one more")
            meter.enter(unit, now)
            self.running += 1
        return Place(self, meter)

    def _meter(self, unit: str, now: float) -> Meter:
        """With the lock held."""
        meter = self._meters.get(unit)
        if meter is None:
            limits = self._table.get(unit) or self._table.get(EVERYBODY) or Limits()
            meter = self._meters[unit] = Meter(limits, now)
        return meter

    def usage(self, unit: str) -> tuple[Usage, ...]:
        """The unit's limits, and what is left of each now."""
        with self._lock:
            now = self._clock()
            return self._meter(unit, now).usage(now)

    def running_by_unit(self) -> dict[str, int]:
        with self._lock:
            return {unit: meter.running for unit, meter in self._meters.items()}

    def leave(self, meter: Meter) -> None:
        with self._lock:
            meter.running -= 1
            self.running -= 1

    def spend(self, meter: Meter, tokens: int) -> None:
        with self._lock:
            for bucket in meter.tokens:
                bucket.take(tokens, self._clock())
