"""`scripts/bench ledger`: all benches of the ledger, in one run on one disk."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benches import appends, peer, reading, verifying
from scripts.benches.appends import Timed
from scripts.benches.logs import Log, Requests, open_log
from scripts.benches.measure import Measure, Row, measure_interleaved, row

GROWTH = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


@dataclass(frozen=True)
class Plan:
    """Amounts of a measurement. `size`: entries of the log. `largest`: entries of the largest log of the growth bench,
    which 0 leaves out. Counts are those of one round.
    """

    size: int
    largest: int
    rounds: int
    appends: int
    turns: int
    """Rounds of the benches that wait for the disk. They are many and short, since the speed of a disk varies."""
    alone: int
    each: int
    proofs: int
    postgresql: bool = True


QUICK = Plan(size=100_000, largest=0, rounds=3, appends=100, turns=12, alone=10, each=16, proofs=200)
FULL = Plan(size=1_000_000, largest=1_000_000, rounds=5, appends=200, turns=40, alone=10, each=32, proofs=500)


def measure(folder: Path, plan: Plan) -> Iterator[Row]:
    """Yield the rows of all benches as they are measured."""
    with open_log(folder, plan.size) as log:
        yield from appends.measure_one_writer(log, folder, plan.rounds, plan.appends)
        yield from appends.measure_many_writers(log, folder, plan.turns, alone=plan.alone, each=plan.each)
        if plan.postgresql:
            yield from appends.measure_postgresql(plan.turns, alone=plan.alone, each=plan.each)
        yield from reading.measure_proofs(log, plan.rounds, plan.proofs)
        yield from reading.measure_searches(log, plan.rounds, 10)
        yield from verifying.measure_whole(log, folder, plan.rounds)
        yield from peer.measure_beside_pymerkle(log, folder, plan.turns, alone=plan.alone, proofs=plan.proofs // 10 + 1)
        if plan.largest:
            yield from measure_growth(folder, plan, log)


def measure_growth(folder: Path, plan: Plan, known: Log | None = None) -> Iterator[Row]:
    """Yield each cost at each size beside the cost at the smallest size. The sizes take turns."""
    with ExitStack() as stack:
        sizes = [size for size in GROWTH if size <= plan.largest]
        logs = [
            known if known and size == known.size else stack.enter_context(open_log(folder, size)) for size in sizes
        ]
        costs: dict[tuple[str, str], list[float]] = {
            ("own CPU of an append", "µs"): _over(logs, plan.rounds, lambda log: _append_cpu(log, plan.appends)),
            ("inclusion proof", "ms"): _over(
                logs, plan.rounds, lambda log: reading.measure_inclusion(log, plan.proofs)
            ),
            ("slowest question", "ms"): _over(logs, plan.rounds, lambda log: lambda: reading.time_slowest_search(log)),
        }
        runs = [verifying.verify(log) for log in logs]
        costs["verification, an entry", "µs"] = [
            run.seconds * 1e6 / log.size for run, log in zip(runs, logs, strict=True)
        ]
        costs["memory of verification", "MB"] = [run.peak_mb for run in runs]
        costs["replay at a start, an entry", "µs"] = [log.load_us for log in logs]
        costs["start from a sealed snapshot, an entry", "µs"] = [log.resume_us for log in logs]
        costs["database, an entry", "B"] = [log.database.stat().st_size / log.size for log in logs]
        costs["export, an entry", "B"] = [log.export.stat().st_size / log.size for log in logs]
    for (name, unit), found in costs.items():
        for log, value in zip(logs, found, strict=True):
            against = f"at {logs[0].size:,}"
            yield row(f"growth, {name}, at {log.size:,}", value, unit, against=against, theirs=found[0])


def _over(logs: list[Log], rounds: int, measure_of: Any) -> list[float]:
    measures: dict[str, Measure] = {str(log.size): measure_of(log) for log in logs}
    found = measure_interleaved(rounds, **measures)
    return [found[str(log.size)] for log in logs]


def _append_cpu(log: Log, count: int) -> Measure:
    requests = Requests(log.ledger, seed=4)

    def appended() -> list[float]:
        timed = Timed()
        for _ in range(count // 2):
            for draft in requests.pair():
                timed.time(lambda draft=draft: log.ledger.append(draft))
        return [statistics.median(timed.cpu)]

    return appended
