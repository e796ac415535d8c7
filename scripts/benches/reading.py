"""Benches of proofs and searches in an existing ledger."""

from __future__ import annotations

import random
import statistics
from typing import Any

from appliance.domain.core.entry import parse_entry
from scripts.benches.logs import Log
from scripts.benches.measure import Measure, Row, measure_interleaved, row, wall_ms

Search = dict[str, Any]


def measure_proofs(log: Log, rounds: int, count: int) -> list[Row]:
    """Measure inclusion proofs of random entries in the log, and consistency proofs from random smaller sizes."""
    found = measure_interleaved(
        rounds, inclusion=measure_inclusion(log, count), consistency=measure_consistency(log, count)
    )
    at = f"{log.size:,} entries"
    return [
        row(f"inclusion proof, {at}", found["inclusion"], "ms", at_most=2),
        row(f"consistency proof, {at}", found["consistency"], "ms", at_most=2),
    ]


def measure_inclusion(log: Log, count: int) -> Measure:
    chosen = random.Random(1)
    return lambda: [
        wall_ms(lambda: log.ledger.inclusion_proof(chosen.randrange(log.size), log.size)) for _ in range(count)
    ]


def measure_consistency(log: Log, count: int) -> Measure:
    chosen = random.Random(2)
    return lambda: [
        wall_ms(lambda: log.ledger.consistency_proof(chosen.randrange(1, log.size), log.size)) for _ in range(count)
    ]


def list_searches(log: Log) -> dict[str, Search]:
    """Return searches as people make them, each for a page of 100 entries. The last three find no entry."""
    entry = parse_entry(log.ledger.entry_bytes(log.size // 2))
    later = parse_entry(log.ledger.entry_bytes(min(log.size // 2 + 500, log.size - 1)))
    between = {"since": entry.time, "until": later.time}
    adapter = next(key for key, _ in log.ledger.state.adapters.items())
    return {
        "type + actor": {"types": ["review.recorded"], "actor": "rita"},
        "subject": {"subjects": [f"adapter:{adapter}"]},
        "unit": {"unit": "claims", "after": log.size // 2},
        "time": between,
        "outcome": {"outcome": "failure"},
        "subject + type": {"subjects": [f"adapter:{adapter}"], "types": ["review.recorded"]},
        "unit + time + outcome": {"unit": "legal", "outcome": "failure", "since": entry.time},
        "type + actor + unit + outcome + time": {
            **{"types": ["request.finished"], "actor": "legal", "unit": "legal", "outcome": "failure"},
            **between,
        },
        "type + outcome, none such": {"types": ["request.admitted"], "outcome": "failure"},
        "type + actor + unit, none such": {"types": ["request.finished"], "actor": "legal", "unit": "sales"},
        "subject + outcome, none such": {"subjects": ["unit:legal"], "outcome": "pending"},
    }


def measure_searches(log: Log, rounds: int, count: int) -> list[Row]:
    """Measure every search, one row each."""
    wanted = list_searches(log)
    found = measure_interleaved(rounds, **{name: _time_search(log, search, count) for name, search in wanted.items()})
    return [row(f"question: {name}, {log.size:,} entries", ms, "ms", at_most=50) for name, ms in found.items()]


def _time_search(log: Log, search: Search, count: int) -> Measure:
    return lambda: [wall_ms(lambda: log.ledger.find(**search)) for _ in range(count)]


def time_slowest_search(log: Log) -> list[float]:
    """Return the milliseconds of the slowest search, each as the median of three."""
    return [max(statistics.median(_time_search(log, search, 3)()) for search in list_searches(log).values())]
