"""The memory of the service and its workers, as the kernel counts it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.kit.warm import find_workers

LEAST_READINGS = 20
MOST_GROWTH_BYTES = 48 << 20
"""What allocators and caches may still take once everything has been asked for once; a leak of a request passes it."""


@dataclass(frozen=True)
class Growth:
    """Of one process, over the longest time that it lived: after its first half, and in the end. Beside other work a
    process may take many seconds to start."""

    name: str
    start_bytes: int
    end_bytes: int
    readings: int

    @property
    def is_leak(self) -> bool:
        return self.readings >= LEAST_READINGS and self.end_bytes - self.start_bytes > MOST_GROWTH_BYTES


class Memory(threading.Thread):
    """Reads every second until it is stopped."""

    def __init__(self, pids: Callable[[], dict[str, int]], every_s: float = 1.0) -> None:
        super().__init__(name="memory", daemon=True)
        self._pids, self._every_s = pids, every_s
        self._over = threading.Event()
        self._read: dict[tuple[str, int], list[int]] = {}

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            for name, pid in self._pids().items():
                if (found := resident_bytes(pid)) > 0:
                    self._read.setdefault((name, pid), []).append(found)

    def stop(self) -> list[Growth]:
        self._over.set()
        self.join()
        found = []
        for name in sorted({name for name, _ in self._read}):
            longest = max((read for (other, _), read in self._read.items() if other == name), key=len)
            found.append(Growth(name, longest[len(longest) // 2], longest[-1], len(longest)))
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
    """The process below the service that runs the module and holds the most memory; 0 where there is none."""
    return max(find_workers(service, module), key=resident_bytes, default=0)
