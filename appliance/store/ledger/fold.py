"""The fold: what the stored entries amount to, and the only way from rows to it. Every row is checked on the way.

Trust begins at the log's key. Time, keys, documents and tree nodes are caches of the entries' bytes; each is held
against them, so that an edited row is named by its entry's index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection

from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.state import State
from appliance.domain.rulebook import apply as rules
from appliance.domain.rulebook.typed import parse_typed
from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.core.digest import digest_bytes
from appliance.formats.core.merkle import HASH_BYTES, Frontier, hash_leaf
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.store.ledger import filing
from appliance.store.ledger.rows import (
    Change,
    Head,
    StoredEntry,
    count_keys,
    read_bits,
    read_bytes,
    read_checkpoint,
    read_entries,
    read_extent,
    read_head,
    read_keys,
    read_leaves,
)

_PAGE = 256

log = logging.getLogger("appliance")


@dataclass
class Fold:
    """The state after the entries so far, and the right edge of the tree over them; both at the same size."""

    state: State = field(default_factory=State)
    frontier: Frontier = Frontier.EMPTY
    keys: int = 0
    """How many rows the keys of the blocks have that were read whole."""
    first_block: int = 0
    """The first that was, or will be: entries of those before it were not read for this fold."""

    @classmethod
    def restored(cls, state: State, frontier: Frontier) -> Fold:
        """That of a snapshot."""
        return cls(state, frontier, first_block=-(-frontier.size // filing.BLOCK))

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
Tell = Callable[[int, int], None]
"""Hears now and then how many entries are read, and of how many."""


def advance(
    connection: Connection,
    fold: Fold,
    stop: int,
    seen: Seen,
    record: Record | None = None,
    tell: Tell = lambda _read, _of: None,
    hear: Callable[[Entry], None] = lambda _entry: None,
) -> None:
    """Folds the stored entries [fold's size, stop), each only once it has passed every check; `stop` is the log's size.

    Tampered names the first entry that does not hold.
    """
    if stop < max(seen.size, fold.state.size):
        expected = max(seen.size, fold.state.size)
        raise Tampered(f"entry {stop}: expected a log of at least {expected} entries, seen before, got {stop}")
    blocks = _Blocks(connection, filing.count_filed(stop))
    while (start := fold.state.size) < stop:
        tell(start, stop)
        end = min(start + _PAGE, stop)
        for index, stored in _in_order(read_entries(connection, start, end), start, end):
            entry = _advance_one(fold, index, stored)
            fold.keys += blocks.check(entry)
            seen.check(fold.frontier)
            if record is not None:
                record(index, fold.state.take_changes())
            fold.state.keep()
            hear(entry)


def _in_order(found: list[StoredEntry], start: int, stop: int) -> Iterator[tuple[int, StoredEntry]]:
    by_index = {stored.index: stored for stored in found}
    for index in range(start, stop):
        stored = by_index.get(index)
        if stored is None:
            raise Tampered(f"entry {index}: expected a row, got none", code="missing")
        yield index, stored


class _Blocks:
    """Holds the keys of each block that is filed against its entries, once the last of them was folded."""

    def __init__(self, connection: Connection, edge: int) -> None:
        self._connection, self._edge = connection, edge
        self._keys: list[tuple[int, list[str]]] = []

    def check(self, entry: Entry) -> int:
        """How many rows there were to check: none before the last entry of a block, nor where its first ones had been
        folded before."""
        if entry.index >= self._edge:
            return 0
        if entry.index % filing.BLOCK == 0:
            self._keys.clear()
        self._keys.append((entry.index, filing.keys_of(entry)))
        return self._check(entry.index // filing.BLOCK) if len(self._keys) == filing.BLOCK else 0

    def _check(self, block: int) -> int:
        expected = filing.file_block(self._keys)
        differing = []
        for key, bits in expected.items():
            got = b"".join(data for _, data in read_bits(self._connection, key, block, block))
            if got != filing.encode_bits(bits):
                differing.append(_name(block, key, bits, filing.decode_bits(got)))
        if differing:
            raise min(differing, key=itemgetter(0))[1]
        return len(expected)


def _name(block: int, key: str, expected: int, got: int) -> tuple[int, Tampered]:
    """The first entry of the block for which they differ."""
    differ = (expected ^ got) or expected
    place = min((differ & -differ).bit_length(), filing.BLOCK) - 1
    index, is_expected = block * filing.BLOCK + place, expected >> place & 1
    said = ("filed", "not" if expected != got else "in other bytes")
    wanted, found = said if is_expected else reversed(said)
    return index, Tampered(f"entry {index}: key {key}: expected {wanted}, got {found}")


def _advance_one(fold: Fold, index: int, stored: StoredEntry) -> Entry:
    entry = _parse(index, stored)
    expect(index, "time", entry.time, stored.time)
    _check_documents(index, entry, stored)
    _check_chain(index, entry, fold.state)
    frontier, nodes = fold.frontier.append_nodes(entry.leaf)
    _check_nodes(index, nodes, stored)
    contents = {role: content for role, (_, content) in stored.documents.items()}
    try:
        rules.apply(fold.state, entry, contents)
    except ApplianceError as error:
        raise Tampered(f"entry {index}: expected one that the rules allow, got: {error.message}") from error
    fold.frontier = frontier
    return entry


def _parse(index: int, stored: StoredEntry) -> Entry:
    """The entry of the bytes, which hash to their leaf."""
    try:
        entry = parse_typed(stored.data)
    except BadInput as error:
        _check_leaf(index, hash_leaf(stored.data), stored)
        raise Tampered(f"entry {index}: expected an entry, got bytes that are not one: {error.message}") from None
    _check_leaf(index, entry.leaf, stored)
    return entry


def _check_leaf(index: int, leaf: bytes, stored: StoredEntry) -> None:
    if not stored.nodes.startswith(leaf):
        expect(index, "leaf hash", leaf.hex(), stored.nodes[:HASH_BYTES].hex())


def _check_documents(index: int, entry: Entry, stored: StoredEntry) -> None:
    """Documents are filed as in the entry's bytes; each one's bytes are those of its digest."""
    if not entry.documents and not stored.documents:
        return  # as most entries
    filed = {role: f"sha256:{digest.hex()}" for role, (digest, _) in stored.documents.items()}
    expect_map(index, "document", entry.documents, filed)
    for role, (_, content) in stored.documents.items():
        expect(index, f"document {role}", entry.documents[role], digest_bytes(content))


def _check_chain(index: int, entry: Entry, state: State) -> None:
    expect(index, "index", index, entry.index)
    expect(index, "prev", state.last_leaf, entry.prev)
    if entry.time < state.last_time and not rules.sets_time(entry.type):
        raise Tampered(f"entry {index}: time: expected at least {state.last_time}, got {entry.time}")


def _check_nodes(index: int, nodes: list[bytes], stored: StoredEntry) -> None:
    if b"".join(nodes) == stored.nodes:
        return
    for level, node in enumerate(nodes):
        got = stored.nodes[HASH_BYTES * level : HASH_BYTES * (level + 1)]
        expect(index, f"tree node {(level, index >> level)}", node.hex(), got.hex())
    expect(index, "tree nodes, bytes", HASH_BYTES * len(nodes), len(stored.nodes))


def expect(index: int, what: str, expected: Any, got: Any) -> None:
    if expected != got:
        raise Tampered(f"entry {index}: {what}: expected {expected}, got {got}")


def expect_map(index: int, what: str, expected: Mapping[Any, Any], got: Mapping[Any, Any]) -> None:
    """Like `expect`, naming the first key that differs."""
    for key in sorted(expected.keys() | got.keys()):
        expect(index, f"{what} {key}", _shown(expected.get(key)), _shown(got.get(key)))


def _shown(value: Any) -> str:
    return "none" if value is None else value.hex() if isinstance(value, bytes) else str(value)


def load_fold(connection: Connection, begun: Fold | None, seen: Seen, log_key: str, tell: Tell) -> Fold:
    """The fold of the whole log, from one that was begun or else from nothing; Tampered names what does not hold.

    One that was sealed under a key which the log has replaced since is not used: a thief of that key could have sealed
    it.
    """
    if begun is not None:
        size, sealed_by = begun.state.size, begun.state.site.log_key
        try:
            check_bytes(connection, begun.frontier, tell)
            fold = _complete(connection, begun, seen, log_key, tell)
            if fold.state.site.log_key == sealed_by:
                return fold
            reason = "its key signs no more"
        except Tampered as error:
            reason = error.message
        log.warning("snapshot of %d entries: %s; every entry is folded", size, reason)
    return _complete(connection, Fold(), seen, log_key, tell)


def _complete(connection: Connection, fold: Fold, seen: Seen, log_key: str, tell: Tell) -> Fold:
    advance(connection, fold, read_head(connection).size, seen, tell=tell)
    check_end(connection, fold, log_key)
    return fold


def check_bytes(connection: Connection, expected: Frontier, tell: Tell) -> None:
    """The stored entries up to the frontier's size are those of its tree, by their bytes alone; so are their nodes."""
    frontier = Frontier.EMPTY
    while (start := frontier.size) < expected.size:
        tell(start, expected.size)
        end = min(start + _PAGE, expected.size)
        found = dict(_in_order(read_leaves(connection, start, end), start, end))
        leaves = [hash_leaf(stored.data) for stored in found.values()]
        frontier, completed = frontier.extend(leaves)
        for (index, stored), nodes in zip(found.items(), completed, strict=True):
            _check_leaf(index, nodes[0], stored)
            _check_nodes(index, nodes, stored)
    expect(expected.size - 1, "tree root", expected.root().hex(), frontier.root().hex())


def check_end(connection: Connection, fold: Fold, log_key: str) -> None:
    """The log ends where the head and the signed checkpoint say; nothing is after them."""
    head, size = read_head(connection), fold.state.size
    last = max(size - 1, 0)
    expect(last, "head, size", size, head.size)
    expect(last, "head, leaf hash", fold.head.leaf_hash.hex(), head.leaf_hash.hex())
    check_checkpoint(connection, fold, log_key)
    for name, (low, high) in read_extent(connection).items():
        for key in (low, high):
            if key is not None and not 0 <= key < size:
                raise Tampered(f"{name} {key}: expected none beyond the head at size {size}, got a row")
    check_keys(connection, fold)


def check_keys(connection: Connection, fold: Fold) -> None:
    """There are as many rows as these blocks have, which were all there: no key is filed that no entry has."""
    if count_keys(connection, fold.first_block) != fold.keys:
        raise _stray_key(connection, fold.first_block, filing.count_filed(fold.state.size))


def _stray_key(connection: Connection, first_block: int, edge: int) -> Tampered:
    for block, rows in groupby(read_keys(connection, first_block), key=itemgetter(1)):
        start = block * filing.BLOCK
        stored = read_bytes(connection, start, start + filing.BLOCK) if 0 <= start < edge else []
        expected = filing.file_block((index, filing.keys_of(parse_entry(data))) for index, data in stored)
        for key, _, bits in rows:
            if key not in expected:
                return _name(block, key, 0, filing.decode_bits(bits))[1]
    return Tampered(
        "keys of entries: expected as many rows as blocks have keys, got rows that changed while being read"
    )


def check_checkpoint(connection: Connection, fold: Fold, log_key: str) -> None:
    """The checkpoint is over exactly this tree and holds under the log's key of today, in a log that began with
    `log_key`."""
    size, note = fold.state.size, read_checkpoint(connection)
    if size == 0 and note is None:
        return
    if size == 0 or note is None:
        expected, got = ("none", "one") if size == 0 else (f"one of size {size}", "none")
        raise Tampered(f"entry {max(size - 1, 0)}: log checkpoint: expected {expected}, got {got}")
    site = fold.state.site
    expect(0, "log key", log_key, site.log_keys[0].vkey)
    try:
        checkpoint = open_checkpoint(note, site.log_key)
    except Tampered as error:
        raise Tampered(f"entry {size - 1}: log checkpoint of size {size}: {error.message}") from error
    expect(size - 1, "log checkpoint, size", size, checkpoint.size)
    expect(size - 1, "tree root", fold.frontier.root().hex(), checkpoint.root.hex())


NOTHING_SEEN = Seen(0, Frontier.EMPTY.root())
