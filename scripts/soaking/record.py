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
    engine: str = "builtin"


@dataclass
class Record:
    """Shared by the clients and the changes."""

    figures: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    revoked: dict[str, float] = field(default_factory=dict)
    """When the order's answer had come: from then on no request may be answered by it."""
    latencies: dict[str, list[float]] = field(default_factory=dict)
    restarting: set[str] = field(default_factory=set)
    """Gateways whose worker starts anew; until one of their answers has come."""
    _down: dict[str, list[list[float]]] = field(default_factory=dict)
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

    def goes_down(self, name: str) -> None:
        """From here on this process cannot be reached, on purpose."""
        self._down.setdefault(name, []).append([time.monotonic(), float("inf")])

    def is_up(self, name: str) -> None:
        self._down[name][-1][1] = time.monotonic()

    def wait_until_up(self, name: str, longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while self.was_down(name, time.monotonic()) and time.monotonic() < deadline:
            time.sleep(0.05)

    def was_down(self, name: str, since: float) -> bool:
        """Return True if the process was ended on purpose at some time since then."""
        return any(end >= since for _, end in self._down.get(name, []))
