"""Limits of a unit's requests: concurrent, per minute and per day.

Limits share the engine among the units. Approvals do not depend on them. This service alone counts them, in memory, so
a restart begins with full buckets.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.domain.core.names import Value
from appliance.errors import RateLimited
from appliance.workflows.serving.places import SharedPlaces

MINUTE_S, DAY_S = 60.0, 86_400.0
EVERYBODY = ""
"""Key, in the table of limits, for all units without a row of their own."""


@dataclass(frozen=True)
class UnitLimits:
    """The limits of one unit. 0 means no limit. Tokens are those read and those written."""

    concurrent: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    tokens_per_day: int = 0


class Bucket:
    """A token bucket of `most` per `seconds`, which fills evenly.

    A response can take more than is left. Then the level is negative until the bucket has filled again.
    """

    def __init__(self, most: int, seconds: float, now: float) -> None:
        self._most = most
        self._per_s = most / seconds
        self._level = float(most)
        self._at = now

    def take(self, amount: int, now: float) -> None:
        """Take an amount, even if it makes the level negative."""
        self._fill(now)
        self._level -= amount

    def wait_s(self, now: float, amount: int = 1) -> float:
        """Return the seconds until `amount` is available, or 0 if it is available now."""
        self._fill(now)
        return max(0.0, (amount - self._level) / self._per_s)

    def left(self, now: float) -> int:
        """Return the amount that can be taken now, at least 0."""
        self._fill(now)
        return max(0, int(self._level))

    def _fill(self, now: float) -> None:
        self._level = min(float(self._most), self._level + (now - self._at) * self._per_s)
        self._at = now


class UsageMeter:
    """The usage of one unit. Its methods are called while the lock of `Quotas` is held."""

    def __init__(self, unit: str, limits: UnitLimits, now: float) -> None:
        self.unit = unit
        self.limits = limits
        self.running = 0
        wanted, minute, day = limits.requests_per_minute, limits.tokens_per_minute, limits.tokens_per_day
        self.requests = Bucket(wanted, MINUTE_S, now) if wanted else None
        self.minute = Bucket(minute, MINUTE_S, now) if minute else None
        self.day = Bucket(day, DAY_S, now) if day else None

    @property
    def tokens(self) -> list[Bucket]:
        """The buckets of tokens that the unit has."""
        return [bucket for bucket in (self.minute, self.day) if bucket is not None]

    def usage(self, now: float) -> tuple[Usage, ...]:
        """Return each limit and how much of it is left."""
        limits = self.limits
        return (
            Usage(name="requests at once", most=limits.concurrent, left=self._places_left()),
            *(
                Usage(name=name, most=most, left=None if bucket is None else bucket.left(now))
                for name, most, bucket in (
                    ("requests in a minute", limits.requests_per_minute, self.requests),
                    ("tokens in a minute", limits.tokens_per_minute, self.minute),
                    ("tokens in a day", limits.tokens_per_day, self.day),
                )
            ),
        )

    def _places_left(self) -> int | None:
        return max(0, self.limits.concurrent - self.running) if self.limits.concurrent else None

    def enter(self, now: float) -> None:
        """Count a new request.

        Raises: RateLimited, with the seconds to wait, if a limit is reached. Then nothing is counted.
        """
        if self.limits.concurrent and self.running >= self.limits.concurrent:
            raise RateLimited(
                f"{self.unit}: expected at most {self.limits.concurrent} requests at once, got one more",
                code="concurrent-limit",
            )
        waits = [("requests a minute", "rate-limit", self.requests)] if self.requests else []
        waits += [("tokens", "token-limit", bucket) for bucket in self.tokens]
        for what, code, bucket in waits:
            wait_s = bucket.wait_s(now)
            if wait_s > 0:
                again = math.ceil(wait_s)
                raise RateLimited(
                    f"{self.unit}, {what}: expected none in the next {again} s, since the limit is reached, got one",
                    code=code,
                    retry_after_s=again,
                )
        if self.requests is not None:
            self.requests.take(1, now)
        self.running += 1


class Usage(Value):
    """One limit of a unit. If there is none, `most` is 0 and `left` is None."""

    name: str
    most: int
    left: int | None


class RequestPlace:
    """A running request of a unit. It is a context manager that ends the request exactly once."""

    def __init__(self, quotas: Quotas, meter: UsageMeter) -> None:
        self._quotas = quotas
        self._meter = meter

    def __enter__(self) -> RequestPlace:
        return self

    def __exit__(self, *_: object) -> None:
        self._quotas.leave(self._meter)

    def spend_frame(self, done: Mapping[str, Any], pieces: int) -> None:
        """Count the tokens of a response from `done`, its last frame. If that is empty, count the pieces."""
        tokens = int(done["prompt_tokens"]) + int(done["completion_tokens"]) if done else pieces
        self._quotas.spend(self._meter, tokens)


class Quotas:
    """The meters of all units. `clock` is monotonic, in seconds."""

    def __init__(self, table: Mapping[str, UnitLimits], places: SharedPlaces, clock: Callable[[], float]) -> None:
        """Create meters from `table` (limits by unit; EVERYBODY for the others) and `places` (shared by all units)."""
        self._table = table
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        self._meters: dict[str, UsageMeter] = {}

    def enter(self, unit: str) -> RequestPlace:
        """Begin a request of the unit and return its place.

        Raises: RateLimited if a limit is reached.
        """
        with self._lock:
            now = self._clock()
            meter = self._meter(unit, now)
            self._places.enter(unit)
            try:
                meter.enter(now)
            except BaseException:
                self._places.leave(unit)
                raise
        return RequestPlace(self, meter)

    def _meter(self, unit: str, now: float) -> UsageMeter:
        """Return the unit's meter. The lock is held."""
        meter = self._meters.get(unit)
        if meter is None:
            limits = self._table.get(unit) or self._table.get(EVERYBODY) or UnitLimits()
            meter = self._meters[unit] = UsageMeter(unit, limits, now)
        return meter

    def usage(self, unit: str) -> tuple[Usage, ...]:
        """Return the unit's limits and what is left of each now."""
        with self._lock:
            now = self._clock()
            return self._meter(unit, now).usage(now)

    @property
    def running(self) -> int:
        """Number of requests of all units that are running now."""
        return self._places.taken

    def running_by_unit(self) -> dict[str, int]:
        """Return the number of running requests by unit."""
        with self._lock:
            return {unit: meter.running for unit, meter in self._meters.items()}

    def leave(self, meter: UsageMeter) -> None:
        """End a request of the meter's unit."""
        with self._lock:
            meter.running -= 1
            self._places.leave(meter.unit)

    def spend(self, meter: UsageMeter, tokens: int) -> None:
        """Take tokens from the buckets of the meter."""
        with self._lock:
            for bucket in meter.tokens:
                bucket.take(tokens, self._clock())
