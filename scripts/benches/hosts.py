"""`scripts/bench hosts`: appends of several processes to one PostgreSQL, and the time until one has another's entry."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from unittest.mock import patch

from appliance.store.database.engine import migrate, open_engine
from appliance.store.database.processes import ProcessDescription, Processes
from appliance.store.ledger.ledger import Ledger
from scripts.benches.logs import Requests, clock_after, open_ledger, replay
from scripts.benches.measure import Row, row
from scripts.benches.synthetic import Synthetic
from scripts.kit import postgres

PROCESSES = 3
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Plan:
    """Amounts of a measurement. `pairs`: of entries, by each writer. `followed`: entries whose delay is measured."""

    writers: int
    pairs: int
    rounds: int
    followed: int


QUICK = Plan(writers=16, pairs=20, rounds=2, followed=50)
FULL = Plan(writers=64, pairs=40, rounds=5, followed=300)


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the rows of the appends and of the delay."""
    log = Synthetic(Synthetic.MIN_SIZE)
    with _database(log) as url:
        alone, together = [], []
        for _ in range(plan.rounds):
            alone.append(_rate(log, url, 1, plan))
            together.append(_rate(log, url, PROCESSES, plan))
        yield row(
            f"durable appends, {PROCESSES} processes of {plan.writers} writers, PostgreSQL",
            statistics.median(together),
            "1/s",
            against="one process",
            theirs=statistics.median(alone),
            ratio=statistics.median(together) / statistics.median(alone),
            ratio_at_least=0.4,
        )
        waits = sorted(_follow(log, url, plan.followed))
        yield row("an entry of one process is known to another, median", statistics.median(waits), "ms")
        yield row("the same, 99 of 100", waits[len(waits) * 99 // 100], "ms", at_most=1_000)


@contextmanager
def _database(log: Synthetic) -> Iterator[str]:
    """Run a temporary PostgreSQL that syncs, with the log in a database, and yield its URL."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(postgres._SETTINGS, fsync="on"))
        server = stack.enter_context(postgres.run_server(postgres.find_binaries()))
        name = server.create_database()
        owner = open_engine(server.url(name))
        migrate(owner)
        owner.dispose()
        server.let_application_log_in()
        url = server.url(name, postgres.APPLICATION)
        replay(log, open_engine(url)).close()
        yield url


@contextmanager
def _opened(log: Synthetic, url: str, name: str) -> Iterator[tuple[Processes, Ledger]]:
    about = ProcessDescription(roles=("units",), host="bench", pid=0, since="")
    engine = open_engine(url, process=name)
    with (
        Processes(open_engine(url, process=name), name, about) as processes,
        closing(open_ledger(log, engine, clock_after(log.time))) as ledger,
    ):
        ledger.load()
        ledger.clock = type(ledger.clock)(clock_after(ledger.state.last_time))
        ledger.fence = processes.fence
        yield processes, ledger


def _rate(log: Synthetic, url: str, count: int, plan: Plan) -> float:
    """Return the entries a second of all processes, from the first one's start to the last one's end."""
    start = _FORK.Barrier(count)
    pipes, children = [], []
    for number in range(count):
        ours, theirs = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_append, args=(log, url, f"p{number}", number, start, count > 1, plan, theirs))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    spans = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    entries = 2 * plan.pairs * plan.writers * count
    return entries / (max(end for _, end in spans) - min(begin for begin, _ in spans))


def _append(
    log: Synthetic, url: str, name: str, seed: int, start: Barrier, others: bool, plan: Plan, result: Connection
) -> None:
    with _opened(log, url, name) as (_, ledger):
        ledger.notifies_others = others
        requests = Requests(ledger, seed)
        batches = [[requests.pair() for _ in range(plan.pairs)] for _ in range(plan.writers)]

        def write(pairs: list[tuple[object, ...]]) -> None:
            for pair in pairs:
                for draft in pair:
                    ledger.append(draft)  # type: ignore[arg-type]

        start.wait()
        began = time.monotonic()
        with ThreadPoolExecutor(plan.writers) as pool:
            for one in [pool.submit(write, pairs) for pairs in batches]:  # type: ignore[arg-type]
                one.result()
        result.send((began, time.monotonic()))


def _follow(log: Synthetic, url: str, count: int) -> list[float]:
    """Return the milliseconds from the call of an append until a follower has applied the entry."""
    with _opened(log, url, "writer") as (_, writer), _opened(log, url, "follower") as (processes, follower):
        writer.notifies_others = True
        sizes: dict[int, float] = {}
        applied, over = threading.Event(), threading.Event()

        def follow() -> None:
            with closing(processes.watch_commits(1.0)) as notices:
                for has_commit in notices:
                    if has_commit and follower.refresh():
                        sizes[follower.state.size] = time.monotonic()
                        applied.set()
                    if over.is_set():
                        return

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        requests, waits = Requests(writer, 7), []
        time.sleep(1)
        for _ in range(count):
            applied.clear()
            began = time.monotonic()
            size = writer.append(requests.heartbeat()).entry.index + 1
            while size not in sizes:
                if not applied.wait(5):
                    raise RuntimeError(f"entry {size - 1}: the follower did not apply it within 5 s")
                applied.clear()
            waits.append((sizes[size] - began) * 1e3)
        over.set()
        writer.append(requests.heartbeat())
        thread.join(5)
        return waits
