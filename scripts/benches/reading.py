"""Proofs and questions over an existing ledger."""

from __future__ import annotations

import random
import statistics
from typing import Any

from appliance.domain.core.entry import parse_entry
from scripts.benches.logs import Log
from scripts.benches.measure import Measure, Row, interleaved, row, wall_ms

Question = dict[str, Any]


def proofs(log: Log, rounds: int, count: int) -> list[Row]:
    """Inclusion of random entries in the whole log, and consistency from random earlier sizes to it."""
    found = interleaved(rounds, inclusion=inclusion(log, count), consistency=consistency(log, count))
    at = f"{log.size:,} entries"
    return [
        row(f"inclusion proof, {at}", found["inclusion"], "ms", at_most=2),
        row(f"consistency proof, {at}", found["consistency"], "ms", at_most=2),
    ]


def inclusion(log: Log, count: int) -> Measure:
    chosen = random.Random(1)
    return lambda: [
        wall_ms(lambda: log.ledger.inclusion_proof(chosen.randrange(log.size), log.size)) for _ in range(count)
    ]


def consistency(log: Log, count: int) -> Measure:
    chosen = random.Random(2)
    return lambda: [
        wall_ms(lambda: log.ledger.consistency_proof(chosen.randrange(1, log.size), log.size)) for _ in range(count)
    ]


def questions(log: Log) -> dict[str, Question]:
    """Return the searches that people make, in pages of 100. The last three find little, and must end as quickly."""
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


def ask(log: Log, rounds: int, count: int) -> list[Row]:
    """Every question by itself, the slowest one named with the goal that all have."""
    wanted = questions(log)
    found = interleaved(rounds, **{name: _asking(log, question, count) for name, question in wanted.items()})
    return [row(f"question: {name}, {log.size:,} entries", ms, "ms", at_most=50) for name, ms in found.items()]


def _asking(log: Log, question: Question, count: int) -> Measure:
    return lambda: [wall_ms(lambda: log.ledger.find(**question)) for _ in range(count)]


def slowest_question(log: Log) -> list[float]:
    """Return the time of the slowest question, after each was asked a few times."""
    return [max(statistics.median(_asking(log, question, 3)()) for question in questions(log).values())]
