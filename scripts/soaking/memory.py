"""The memory of the service and its workers, as the kernel counts it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.kit.warm import find_workers

LEAST_REQUESTS = 200
"""Requests after which a process has taken what it keeps, however slow the machine is."""
MOST_GROWTH_BYTES = 48 << 20
"""Bytes that allocators and caches may still take after them; a leak of a request passes it."""

Reading = tuple[int, int]
"""Requests that were asked until then, and the bytes that the process had resident."""


@dataclass(frozen=True)
class Growth:
    """The memory of one process after the first half of the requests of its life, and after all of them. `requests`:
    of each half."""

    name: str
    start_bytes: int
    end_bytes: int
    requests: int

    @property
    def is_leak(self) -> bool:
        """Return True if it grew, and had enough requests before to be warm."""
        return self.requests >= LEAST_REQUESTS and self.end_bytes - self.start_bytes > MOST_GROWTH_BYTES


def compare_halves(name: str, readings: Sequence[Reading]) -> Growth:
    """Return the growth of a process between equal numbers of requests, in whatever time they were asked."""
    (first, _), (last, end_bytes) = readings[0], readings[-1]
    middle = next(reading for reading in readings if 2 * reading[0] >= first + last)
    return Growth(name, middle[1], end_bytes, min(middle[0] - first, last - middle[0]))


class Memory(threading.Thread):
    """Reads every second until it is stopped; `asked` counts the requests so far."""

    def __init__(self, pids: Callable[[], dict[str, int]], asked: Callable[[], int], every_s: float = 1.0) -> None:
        super().__init__(name="memory", daemon=True)
        self._pids, self._asked, self._every_s = pids, asked, every_s
        self._over = threading.Event()
        self._read: dict[tuple[str, int], list[Reading]] = {}

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            for name, pid in self._pids().items():
                if (found := resident_bytes(pid)) > 0:
                    self._read.setdefault((name, pid), []).append((self._asked(), found))

    def stop(self) -> list[Growth]:
        self._over.set()
        self.join()
        found = []
        for name in sorted({name for name, _ in self._read}):
            lives = [read for (other, _), read in self._read.items() if other == name]
            found.append(compare_halves(name, max(lives, key=lambda read: read[-1][0] - read[0][0])))
        return found


def resident_bytes(pid: int) -> int:
    """0 where the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def age_s(pid: int) -> float:
    """Seconds since the process began; 0 where it has ended."""
    try:
        return time.time() - Path(f"/proc/{pid}").stat().st_mtime
    except OSError:
        return 0.0


def find_worker(service: int, module: str) -> int:
    """Return the process below the service that runs the module with the most memory, or 0."""
    return max(find_workers(service, module), key=resident_bytes, default=0)
