"""The record of a run: its figures, and its violations."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Given:
    """An answer that reached its client, whole or in part."""

    request: str
    adapter: str
    whole: bool


@dataclass
class Record:
    """Shared by everybody who asks and everybody who disturbs."""

    figures: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    revoked: dict[str, float] = field(default_factory=dict)
    """When the order's answer had come: from then on no request may be answered by it."""
    latencies: dict[str, list[float]] = field(default_factory=dict)
    _down: list[list[float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self._lock:
            self.figures[what] += 1

    def violate(self, what: str) -> None:
        with self._lock:
            self.violations.append(what)

    def keep(self, given: Given) -> None:
        with self._lock:
            self.given.append(given)

    def time(self, what: str, seconds: float) -> None:
        with self._lock:
            self.latencies.setdefault(what, []).append(seconds)

    def goes_down(self) -> None:
        """From here on the service cannot be reached, on purpose."""
        self._down.append([time.monotonic(), float("inf")])

    def is_up(self) -> None:
        self._down[-1][1] = time.monotonic()

    def wait_until_up(self, longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while self.was_down(time.monotonic()) and time.monotonic() < deadline:
            time.sleep(0.05)

    def was_down(self, since: float) -> bool:
        """Whether the service was ended on purpose at some time since then."""
        return any(end >= since for _, end in self._down)
