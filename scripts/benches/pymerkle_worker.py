"""Runs pymerkle's SQLite tree in a process and an environment of its own.

pymerkle is under the GPL, so only this program imports it. The program reads a JSON command a line, and answers with a
line of milliseconds. It takes the times itself, so the pipe adds nothing to them. The tree commits as durably as the
ledger: with the argument `wal` by a write-ahead log, otherwise by SQLite's default rollback journal, both with
synchronous=FULL.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tarfile
import time
from typing import Any

from pymerkle import SqliteTree  # type: ignore[import-not-found]

ENTRY_BYTES = 690
BLOCK = 128
"""Least width of the subtrees that pymerkle caches."""


class Worker:
    """A tree with the commands of the bench. Each command returns milliseconds."""

    def __init__(self, path: str, *journal: str) -> None:
        self._tree = SqliteTree(path)
        for pragma in ("synchronous = FULL", *(f"journal_mode = {name}" for name in journal)):
            self._tree.con.execute(f"PRAGMA {pragma}").close()
        self._random = random.Random(3)
        self._size = 0

    def fill(self, export: str) -> list[float]:
        """Append every entry of an export in one batch, and return the size of the tree."""
        with tarfile.open(export) as archive:
            lines = archive.extractfile("entries.jsonl")
            assert lines is not None
            self._size = self._tree.append_entries(line.rstrip(b"\n") for line in lines)
        return [float(self._size)]

    def append(self, batch: int, count: int) -> list[float]:
        """Append `count` batches, each in one durable transaction."""
        made = [[os.urandom(ENTRY_BYTES) for _ in range(batch)] for _ in range(count)]
        return [_ms(lambda: [self._commit(entries) for entries in made])]

    def _commit(self, entries: list[bytes]) -> None:
        if len(entries) == 1:
            self._tree.append_entry(entries[0])
        else:
            self._tree.append_entries(entries)

    def warm(self) -> list[float]:
        """Prove an entry of every block, so that every cached subtree has been computed."""
        return [_ms(lambda: [self._tree.prove_inclusion(at, self._size) for at in range(1, self._size, BLOCK)])]

    def prove(self, count: int, cold: bool) -> list[float]:
        found = []
        for _ in range(count):
            if cold:
                self._tree.cache_clear()
            at = self._random.randrange(1, self._size + 1)
            found.append(_ms(lambda at=at: self._tree.prove_inclusion(at, self._size)))
        return found

    def append_and_prove(self, batch: int, count: int) -> list[float]:
        """Append `count` batches, and prove each entry in the tree after its batch."""
        made = [[os.urandom(ENTRY_BYTES) for _ in range(batch)] for _ in range(count)]

        def act(entries: list[bytes]) -> None:
            self._commit(entries)
            size = self._tree.get_size()
            for at in range(size - batch + 1, size + 1):
                self._tree.prove_inclusion(at, size)

        return [_ms(lambda: [act(entries) for entries in made])]


def _ms(act: Any) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    worker = Worker(*sys.argv[1:])
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        print(json.dumps(getattr(worker, command.pop("do"))(**command)), flush=True)


if __name__ == "__main__":
    main()
