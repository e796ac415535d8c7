"""Benches of appends by one writer and by 64, on SQLite and on PostgreSQL, beside a bare INSERT and fdatasync."""

from __future__ import annotations

import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

from appliance.domain.core.entry import EntryDraft
from appliance.store.database.engine import migrate, open_engine
from appliance.store.ledger.ledger import Ledger
from scripts.benches.logs import WRITES, Log, Requests, clock_after, open_ledger, replay
from scripts.benches.measure import Row, measure_interleaved, row, sync_ms
from scripts.benches.synthetic import Synthetic
from scripts.kit import postgres

WRITERS = 64
_ALONE_AT_MOST = 8
"""Goal: the time of an append by one writer, as a multiple of a bare INSERT with its commit."""
_ENTRY_BYTES = 690


@dataclass
class Timed:
    """CPU time of this process and wall time of each call, in µs."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def time(self, act: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        act()
        self.cpu.append((time.process_time() - cpu) * 1e6)
        self.wall.append((time.perf_counter() - wall) * 1e6)


class BareInserts:
    """A SQLite table with an entry's bytes in each row, under the pragmas of the ledger. Each commit syncs once."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            self._connection.execute(f"PRAGMA {pragma}").close()
        self._connection.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT")
        for _ in range(WRITES):
            self.append()

    def append(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO entries (bytes) VALUES (?)", (os.urandom(_ENTRY_BYTES),))
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def measure_one_writer(log: Log, folder: Path, rounds: int, count: int) -> list[Row]:
    """Measure durable appends of typical entries by one writer, bare commits and bare syncs."""
    requests = Requests(log.ledger, seed=1)
    beats, pairs, bares, syncs = Timed(), Timed(), Timed(), Timed()

    with closing(BareInserts(folder / "bare.db")) as bare:
        for _ in range(rounds):
            for _ in range(count):
                beats.time(partial(log.ledger.append, requests.heartbeat()))
                for draft in requests.pair():
                    pairs.time(partial(log.ledger.append, draft))
                bares.time(bare.append)
            syncs.wall += [ms * 1e3 for ms in sync_ms(folder, count)]
    return one_writer_rows(beats, pairs, bares, statistics.median(syncs.wall))


def one_writer_rows(beats: Timed, pairs: Timed, bares: Timed, sync_us: float) -> list[Row]:
    """Return a row for each median, against that of the bare INSERTs of the same run."""
    middle = statistics.median

    def against_bare(name: str, ours: list[float], theirs: list[float]) -> Row:
        return row(
            *(f"append by one writer, {name}", middle(ours), "µs"),
            against="bare INSERT + commit",
            theirs=middle(theirs),
            ratio_at_most=_ALONE_AT_MOST,
        )

    return [
        against_bare("heartbeat: own CPU", beats.cpu, bares.cpu),
        against_bare("request: own CPU", pairs.cpu, bares.cpu),
        against_bare("request: wall", pairs.wall, bares.wall),
        row("bare INSERT + commit: wall", middle(bares.wall), "µs", against="write + fdatasync", theirs=sync_us),
    ]


def time_appends(ledger: Ledger, batches: list[list[EntryDraft]]) -> tuple[float, float]:
    """Append with a thread for each batch. Return durable appends a second, and µs of own CPU time an append."""
    start = threading.Barrier(len(batches) + 1)

    def write(drafts: list[EntryDraft]) -> None:
        start.wait()
        for draft in drafts:
            ledger.append(draft)

    with ThreadPoolExecutor(len(batches)) as pool:
        writing = [pool.submit(write, drafts) for drafts in batches]
        start.wait()
        began, cpu = time.perf_counter(), time.process_time()
        for one in writing:
            one.result()
        elapsed, spent = time.perf_counter() - began, time.process_time() - cpu
    count = sum(map(len, batches))
    return count / elapsed, spent * 1e6 / count


class Rates:
    """The append rates of one writer and of 64 at once in one service. Drafts are made before the time is taken."""

    def __init__(self, ledger: Ledger, *, alone: int, each: int) -> None:
        """`alone`, `each`: the pairs of entries that one writer alone, and each of 64, append in a round."""
        self._ledger, self._requests = ledger, Requests(ledger, seed=2)
        self._pairs = {1: alone, WRITERS: each}
        self.cpu_us: dict[int, list[float]] = {1: [], WRITERS: []}

    def measure(self, writers: int, pairs: int | None = None) -> list[float]:
        """Return the durable appends a second. `pairs` replaces the number of pairs of each writer."""
        each = self._pairs[writers] if pairs is None else pairs
        made = [[self._requests.pair() for _ in range(each)] for _ in range(writers)]
        rate, cpu = time_appends(self._ledger, [[draft for pair in pairs for draft in pair] for pairs in made])
        self.cpu_us[writers].append(cpu)
        return [rate]


def measure_many_writers(log: Log, folder: Path, rounds: int, *, alone: int, each: int) -> list[Row]:
    """Measure 64 writers in one service against one writer, and the disk's sync."""
    rates = Rates(log.ledger, alone=alone, each=each)
    found = measure_interleaved(
        rounds,
        together=lambda: rates.measure(WRITERS),
        alone=lambda: rates.measure(1),
        sync=lambda: sync_ms(folder),
    )
    slow = found["sync"] > 2
    return [
        row(
            f"durable appends, {WRITERS} writers, SQLite",
            *(found["together"], "1/s"),
            against="one writer",
            theirs=found["alone"],
            ratio=found.ratio("together", "alone"),
            at_least=5_000,
            ratio_at_least=10 if slow else None,
            note="reference 10,000" + ("" if slow else "; 10× only where a sync takes over 2 ms"),
        ),
        row(
            f"own CPU an append, {WRITERS} writers",
            *(statistics.median(rates.cpu_us[WRITERS]), "µs"),
            against="one writer",
            theirs=statistics.median(rates.cpu_us[1]),
        ),
        row("disk: write + fdatasync of 4 KiB", found["sync"], "ms"),
    ]


def measure_postgresql(rounds: int, *, alone: int, each: int) -> list[Row]:
    """Measure 64 writers on a temporary PostgreSQL that syncs. Return no rows where PostgreSQL is not installed."""
    try:
        binaries = postgres.find_binaries()
        with _ledger_on_postgresql(binaries) as ledger:
            rates = Rates(ledger, alone=alone, each=each)
            found = measure_interleaved(rounds, together=lambda: rates.measure(WRITERS), alone=lambda: rates.measure(1))
    except postgres.Missing:
        return []
    name = f"durable appends, {WRITERS} writers, PostgreSQL"
    return [
        row(
            *(name, found["together"], "1/s"),
            against="one writer",
            theirs=found["alone"],
            ratio=found.ratio("together", "alone"),
        )
    ]


@contextmanager
def _ledger_on_postgresql(binaries: Path) -> Iterator[Ledger]:
    log = Synthetic(Synthetic.MIN_SIZE)
    with ExitStack() as stack:
        # Servers of tests run without fsync. This one syncs, since the bench measures durable appends.
        stack.enter_context(patch.dict(postgres._SETTINGS, fsync="on"))
        server = stack.enter_context(postgres.run_server(binaries))
        name = server.create_database()
        owner = open_engine(server.url(name))
        migrate(owner)
        owner.dispose()
        server.let_application_log_in()
        url = server.url(name, postgres.APPLICATION)
        replay(log, open_engine(url)).close()
        yield stack.enter_context(closing(open_ledger(log, open_engine(url), clock_after(log.time))))
