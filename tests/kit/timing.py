"""The processor time of what a test repeats, as a quiet processor would take it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

ROUNDS, SERIES = 20, 3
REFERENCE_MS = 7.0
"""Milliseconds of `_work` on a quiet core of an AMD EPYC, for which the limits are meant."""


def is_within(limit_ms: float, act: Callable[[], object]) -> bool:
    """Return True if 19 of 20 calls take less than these milliseconds of this process, in one of three series.

    A slower processor, and other programs that take its caches, make calls and `_work` slower alike, and the limit is
    that much longer.
    """
    return any(_measure_series(act) < limit_ms * _measure_slowness() for _ in range(SERIES))


def _measure_series(act: Callable[[], object]) -> float:
    return sorted(_measure(act) for _ in range(ROUNDS))[-2]


def _measure_slowness() -> float:
    """Return how much longer this core takes now than the reference, at least 1."""
    return max(1.0, sorted(_measure(_work) for _ in range(ROUNDS))[ROUNDS // 2] / REFERENCE_MS)


def _measure(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return (time.process_time() - began) * 1e3


def _work() -> None:
    rows = [{"name": f"row-{number}", "values": list(range(8)), "text": "x" * 40} for number in range(1500)]
    for row in json.loads(json.dumps(rows)):
        row["sum"] = sum(row["values"]) + len(row["text"])
