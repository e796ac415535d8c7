"""The fold: what the stored entries amount to, and the only way from rows to it. Every row is checked on the way.

Trust begins at the log's key. Columns, subjects, documents and tree nodes are caches of the entries' bytes; each is
held against them, so that an edited row is named by its entry's index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection

from appliance.domain import rules
from appliance.domain.entry import Entry, parse_entry
from appliance.domain.state import State
from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.checkpoint import open_checkpoint
from appliance.formats.digest import digest_bytes
from appliance.formats.merkle import Frontier, hash_leaf
from appliance.store.rows import (
    Change,
    Head,
    StoredEntry,
    columns_of,
    count_nodes,
    read_completed_nodes,
    read_entries,
    read_extent,
    read_head,
    read_latest_checkpoint,
)

_PAGE = 256
COLUMNS = ("time", "type", "actor", "outcome", "unit")


@dataclass
class Fold:
    """The state after the entries so far, and the right edge of the tree over them; both at the same size."""

    state: State = field(default_factory=State)
    frontier: Frontier = Frontier.EMPTY

    @property
    def head(self) -> Head:
        """What the head's row must hold."""
        return Head(self.state.size, bytes.fromhex(self.state.last_leaf.removeprefix("sha256:")))


class Seen(NamedTuple):
    """A head that this process has known: the log may be longer than that, never shorter and never another."""

    size: int
    root: bytes

    def check(self, frontier: Frontier) -> None:
        if frontier.size == self.size and frontier.root() != self.root:
            raise Tampered(
                f"entry {self.size - 1}: tree root of size {self.size}: "
                f"expected {self.root.hex()}, seen before, got {frontier.root().hex()}"
            )


Record = Callable[[int, list[Change]], None]
"""Takes the rows of the state that an entry changed, after each entry."""


def advance(connection: Connection, fold: Fold, stop: int, seen: Seen, record: Record | None = None) -> None:
    """Folds the stored entries [fold's size, stop), each only once it has passed every check.

    Tampered names the first entry that does not hold.
    """
    if stop < max(seen.size, fold.state.size):
        expected = max(seen.size, fold.state.size)
        raise Tampered(f"entry {stop}: expected a log of at least {expected} entries, seen before, got {stop}")
    while (start := fold.state.size) < stop:
        end = min(start + _PAGE, stop)
        nodes = read_completed_nodes(connection, start, end)
        for index, stored in _in_order(read_entries(connection, start, end), start, end):
            _advance_one(fold, index, stored, nodes.get(index, {}))
            seen.check(fold.frontier)
            if record is not None:
                record(index, fold.state.take_changes())
            fold.state.keep()


def _in_order(found: list[StoredEntry], start: int, stop: int) -> Iterator[tuple[int, StoredEntry]]:
    by_index = {stored.index: stored for stored in found}
    for index in range(start, stop):
        stored = by_index.get(index)
        if stored is None:
            raise Tampered(f"entry {index}: expected a row, got none", code="missing")
        yield index, stored


def _advance_one(fold: Fold, index: int, stored: StoredEntry, nodes: Mapping[tuple[int, int], bytes]) -> None:
    leaf = hash_leaf(stored.data)
    expect(index, "leaf hash", leaf.hex(), stored.leaf_hash.hex())
    try:
        entry = parse_entry(stored.data)
    except BadInput as error:
        raise Tampered(f"entry {index}: expected an entry, got bytes that are none: {error.message}") from None
    _check_filing(index, entry, stored)
    _check_chain(index, entry, fold.state)
    frontier, completed = fold.frontier.append_nodes(leaf)
    expect_map(index, "tree node", {(level, at): value for level, at, value in completed}, nodes)
    contents = {role: content for role, (_, content) in stored.documents.items()}
    try:
        rules.apply(fold.state, entry, contents)
    except ApplianceError as error:
        raise Tampered(f"entry {index}: expected one that the rules allow, got: {error.message}") from error
    fold.frontier = frontier


def _check_filing(index: int, entry: Entry, stored: StoredEntry) -> None:
    """Columns, subjects and documents say what the entry's bytes say; each document's bytes are those of its digest."""
    for name, expected, got in zip(COLUMNS, columns_of(entry), stored.columns, strict=True):
        expect(index, name, expected, got)
    expect(index, "subjects", sorted(set(entry.subjects)), sorted(stored.subjects))
    filed = {role: f"sha256:{digest.hex()}" for role, (digest, _) in stored.documents.items()}
    expect_map(index, "document", entry.documents, filed)
    for role, (_, content) in stored.documents.items():
        expect(index, f"document {role}", entry.documents[role], digest_bytes(content))


def _check_chain(index: int, entry: Entry, state: State) -> None:
    expect(index, "index", index, entry.index)
    expect(index, "prev", state.last_leaf, entry.prev)
    if entry.time < state.last_time:
        raise Tampered(f"entry {index}: time: expected at least {state.last_time}, got {entry.time}")


def expect(index: int, what: str, expected: Any, got: Any) -> None:
    if expected != got:
        raise Tampered(f"entry {index}: {what}: expected {expected}, got {got}")


def expect_map(index: int, what: str, expected: Mapping[Any, Any], got: Mapping[Any, Any]) -> None:
    """Like `expect`, naming the first key that differs."""
    for key in sorted(expected.keys() | got.keys()):
        expect(index, f"{what} {key}", _shown(expected.get(key)), _shown(got.get(key)))


def _shown(value: Any) -> str:
    return "none" if value is None else value.hex() if isinstance(value, bytes) else str(value)


def check_end(connection: Connection, fold: Fold, log_key: str) -> None:
    """The log ends where the head and the signed checkpoint say; nothing lies behind them."""
    head, size = read_head(connection), fold.state.size
    last = max(size - 1, 0)
    expect(last, "head, size", size, head.size)
    expect(last, "head, leaf hash", fold.head.leaf_hash.hex(), head.leaf_hash.hex())
    check_checkpoint(connection, fold, log_key)
    for name, (low, high) in read_extent(connection).items():
        first, highest = (1, size) if name == "checkpoint of size" else (0, size - 1)
        for key in (low, high):
            if key is not None and not first <= key <= highest:
                raise Tampered(f"{name} {key}: expected none beyond the head at size {size}, got a row")
    expect(last, "tree nodes", 2 * size - size.bit_count(), count_nodes(connection))


def check_checkpoint(connection: Connection, fold: Fold, log_key: str) -> None:
    """The latest checkpoint is over exactly this tree and holds under the log's key of today, in a log that began with
    `log_key`."""
    size, stored = fold.state.size, read_latest_checkpoint(connection)
    if size == 0 and stored is None:
        return
    if stored is None or stored[0] != size:
        got = "none" if stored is None else f"one of size {stored[0]}"
        raise Tampered(f"entry {max(size - 1, 0)}: log checkpoint: expected one of size {size}, got {got}")
    site = fold.state.site
    expect(0, "log key", log_key, site.log_keys[0].vkey)
    try:
        checkpoint = open_checkpoint(stored[1], site.log_key)
    except Tampered as error:
        raise Tampered(f"entry {size - 1}: log checkpoint of size {size}: {error.message}") from error
    expect(size - 1, "log checkpoint, size", size, checkpoint.size)
    expect(size - 1, "tree root", fold.frontier.root().hex(), checkpoint.root.hex())


NOTHING_SEEN = Seen(0, Frontier.EMPTY.root())
