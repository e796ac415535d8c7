"""Benches of appends and proofs beside pymerkle, which keeps a Merkle tree in SQLite: equal entries and batches."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.domain.core.entry import EntryDraft
from appliance.store.ledger.search_index import BLOCK
from scripts.benches.appends import Rates
from scripts.benches.logs import Log, Requests
from scripts.benches.measure import Medians, Row, measure_interleaved, row, wall_ms
from scripts.benches.reading import measure_inclusion

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-bench" / "bin" / "python"
"""The environment that `scripts/bench` makes from the extra `bench`."""
_GOAL, _GOAL_WITH_PROOFS = 3, 2.8
"""Goals, as multiples of pymerkle's rate: for a batch or a proof, and for a batch with a proof of each entry."""
_BATCH, _BATCHES = 64, BLOCK // 64
"""Entries of a batch, and batches of a turn. A turn fills one block of the search index."""


class Peer:
    """pymerkle in its own process."""

    def __init__(self, program: subprocess.Popen[str]) -> None:
        self._program = program

    def __call__(self, do: str, **arguments: Any) -> list[float]:
        assert self._program.stdin is not None and self._program.stdout is not None
        print(json.dumps({"do": do, **arguments}), file=self._program.stdin, flush=True)
        answer: list[float] = json.loads(self._program.stdout.readline() or "[]")
        if not answer:
            raise RuntimeError(f"pymerkle, {do}: the process ended before it answered; see its error output")
        return answer


@contextmanager
def _started(path: Path, *journal: str) -> Iterator[Peer]:
    command = [str(PYTHON), str(Path(__file__).with_name("pymerkle_worker.py")), str(path), *journal]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield Peer(program)
        finally:
            assert program.stdin is not None
            program.stdin.close()
            program.wait()


class Batches:
    """Batches that one caller appends to our ledger. Drafts are made before the time is taken."""

    def __init__(self, log: Log) -> None:
        self._ledger, self._requests = log.ledger, Requests(log.ledger, seed=5)

    def _make(self) -> list[EntryDraft]:
        return [draft for _ in range(_BATCH // 2) for draft in self._requests.pair()]

    def append(self, count: int) -> list[float]:
        """Return the ms of appending `count` batches, each in one durable transaction."""
        made = [self._make() for _ in range(count)]
        return [wall_ms(lambda: [self._ledger.append_all(drafts) for drafts in made])]

    def append_and_prove(self, count: int) -> list[float]:
        """Return the ms of appending `count` batches, and of proving each entry in the tree after its batch."""
        made = [self._make() for _ in range(count)]

        def act(drafts: list[EntryDraft]) -> None:
            appended = self._ledger.append_all(drafts)
            size = appended[-1].entry.index + 1
            for one in appended:
                self._ledger.inclusion_proof(one.entry.index, size)

        return [wall_ms(lambda: [act(drafts) for drafts in made])]


def measure_beside_pymerkle(log: Log, folder: Path, rounds: int, *, alone: int, proofs: int) -> list[Row]:
    """Measure rates beside pymerkle. Return no rows where its environment could not be made."""
    if not PYTHON.exists():
        return []
    rates, batches = Rates(log.ledger, alone=alone, each=0), Batches(log)
    with _started(folder / "pymerkle.db", "wal") as peer, _started(folder / "journal.db") as plain:
        peer("fill", export=str(log.export))
        cold = measure_interleaved(1, ours=measure_inclusion(log, 10), theirs=lambda: peer("prove", count=3, cold=True))
        peer("warm")
        found = measure_interleaved(
            rounds,
            plain_alone=lambda: _rates(plain("append", batch=1, count=2 * alone), 2 * alone),
            alone=lambda: rates.measure(1),
            their_alone=lambda: _rates(peer("append", batch=1, count=2 * alone), 2 * alone),
            batch=lambda: _rates(batches.append(_BATCHES), _BATCH * _BATCHES),
            their_batch=lambda: _rates(peer("append", batch=_BATCH, count=_BATCHES), _BATCH * _BATCHES),
            proof=lambda: _rates(measure_inclusion(log, proofs)(), 1),
            their_proof=lambda: _rates(peer("prove", count=proofs, cold=False), 1),
            both=lambda: _rates(batches.append_and_prove(_BATCHES), _BATCH * _BATCHES),
            their_both=lambda: _rates(peer("append_and_prove", batch=_BATCH, count=_BATCHES), _BATCH * _BATCHES),
        )
    at = f"{log.size:,} entries"
    first = f"first inclusion proof after a start, {at}"
    return [*peer_rows(found, at), row(first, cold["ours"], "ms", against="pymerkle", theirs=cold["theirs"])]


def peer_rows(found: Medians, at: str) -> list[Row]:
    """Return the rows of our rates against pymerkle's. `at`: the size of the log, as in "9 entries"."""

    def against(name: str, ours: str, theirs: str, goal: float | None = None) -> Row:
        return row(
            *(name, found[ours], "1/s"),
            against="pymerkle",
            theirs=found[theirs],
            ratio=found.ratio(ours, theirs),
            ratio_at_least=goal,
        )

    return [
        against("appends one by one, pymerkle's own rollback journal", "alone", "plain_alone"),
        against("appends one by one", "alone", "their_alone"),
        against(f"appends, {_BATCH} in one call", "batch", "their_batch", _GOAL),
        against(f"inclusion proofs, {at}", "proof", "their_proof", _GOAL),
        against(f"appends, {_BATCH} in one call, and a proof of each, {at}", "both", "their_both", _GOAL_WITH_PROOFS),
    ]


def _rates(milliseconds: list[float], count: int) -> list[float]:
    """Return counts per second, if each time was for `count`."""
    return [count * 1e3 / ms for ms in milliseconds]
