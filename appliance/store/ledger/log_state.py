"""State replay: computing the state from the stored entries, the only way from rows to state. Every row is checked.

Trust begins with the log's key. Time, keys, documents and tree nodes are copies of data in the entries' bytes. Each is
compared with the bytes, so that an edited row is reported with the index of its entry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection

from appliance.domain.actions.apply import apply, parse_typed, sets_time
from appliance.domain.audit.archives import ArchiveEntry, Removals, read_archive_entries
from appliance.domain.core.entry import Entry, parse_entry
from appliance.domain.core.state import State
from appliance.domain.retention import LogArchived
from appliance.errors import ApplianceError, BadInput, Tampered
from appliance.formats.core.digest import digest_bytes, raw_digest
from appliance.formats.core.merkle import HASH_BYTES, Frontier, hash_leaf
from appliance.formats.log.checkpoint import open_checkpoint
from appliance.formats.log.export import read_removed
from appliance.store.ledger import search_index
from appliance.store.ledger.rows import (
    Change,
    LogHead,
    StoredEntry,
    count_keys,
    list_archives,
    read_bits,
    read_bytes,
    read_checkpoint,
    read_document,
    read_entries,
    read_extent,
    read_head,
    read_keys,
    read_leaves,
)

_PAGE = 256

log = logging.getLogger("appliance")


@dataclass
class LogState:
    """The state after the entries so far and the right edge of the Merkle tree over them, both at the same size."""

    state: State = field(default_factory=State)
    frontier: Frontier = Frontier.EMPTY
    keys: int = 0
    """Number of index rows of the blocks that were read completely."""
    first_block: int = 0
    """First block that was or will be read completely; entries of earlier blocks were not read for this replay."""
    removals: Removals | None = None
    """The check of the entries that archives removed, while a log is loaded."""

    @classmethod
    def restored(cls, state: State, frontier: Frontier) -> LogState:
        """Build the state from a snapshot."""
        return cls(state, frontier, first_block=-(-frontier.size // search_index.BLOCK))

    @property
    def head(self) -> LogHead:
        """Return the values that the head's row must have."""
        return LogHead(self.state.size, bytes.fromhex(self.state.last_leaf.removeprefix("sha256:")))


class NotContinued(Tampered):
    """The log does not continue a head that the service has seen: it lost entries, or has others."""


class KnownHead(NamedTuple):
    """A head that this process has seen; the log may be longer, but not shorter or different."""

    size: int
    root: bytes

    def check(self, frontier: Frontier) -> None:
        """Check that a frontier of this size has this root.

        Raises:
            NotContinued: it has another.
        """
        if frontier.size == self.size and frontier.root() != self.root:
            raise NotContinued(
                f"entry {self.size - 1}: tree root of size {self.size}: "
                f"expected {self.root.hex()}, seen before, got {frontier.root().hex()}"
            )


Record = Callable[[int, list[Change]], None]
"""Callback that receives the state's rows that an entry changed, after each entry."""
OnProgress = Callable[[int, int], None]
"""Callback that receives the number of entries read so far and their total."""


def advance(
    connection: Connection,
    log_state: LogState,
    stop: int,
    seen: KnownHead,
    record: Record | None = None,
    on_progress: OnProgress = lambda _read, _of: None,
    on_entry: Callable[[Entry], None] = lambda _entry: None,
) -> None:
    """Replay the stored entries [log_state's size, stop); each must pass every check. `stop` is the size of the log.

    Raises:
        NotContinued: the log does not continue `seen`.
        Tampered: an entry is invalid; the message names the first.
    """
    removals = log_state.removals
    if stop < max(seen.size, log_state.state.size):
        expected = max(seen.size, log_state.state.size)
        raise NotContinued(f"entry {stop}: expected a log of at least {expected} entries, seen before, got {stop}")
    blocks = _Blocks(connection, search_index.count_indexed(stop))
    while (start := log_state.state.size) < stop:
        on_progress(start, stop)
        end = min(start + _PAGE, stop)
        for index, stored in _in_order(read_entries(connection, start, end), start, end):
            entry = None
            if stored.data:
                entry = _advance_one(log_state, index, stored)
            else:
                _skip_removed(log_state, index, stored)
            log_state.keys += blocks.check(index, entry)
            seen.check(log_state.frontier)
            if record is not None:
                record(index, log_state.state.take_changes())
            log_state.state.keep()
            if removals is not None and removals.is_active:
                _check_archives(removals, log_state.state, entry, stored)
            if entry is not None:
                on_entry(entry)


def _in_order(found: list[StoredEntry], start: int, stop: int) -> Iterator[tuple[int, StoredEntry]]:
    by_index = {stored.index: stored for stored in found}
    for index in range(start, stop):
        stored = by_index.get(index)
        if stored is None:
            raise Tampered(f"entry {index}: expected a row, got none", code="missing")
        yield index, stored


class _Blocks:
    """A check that compares the index rows of each complete block with its entries once the last of them was
    replayed."""

    def __init__(self, connection: Connection, edge: int) -> None:
        self._connection, self._edge = connection, edge
        self._keys: list[tuple[int, list[str]]] = []
        self._removed = 0
        """Bits of the block's entries whose keys are unknown, since an archive removed their bytes."""

    def check(self, index: int, entry: Entry | None) -> int:
        """Return the number of rows that were checked; `entry` is None if its bytes were removed.

        It is 0 before the last entry of a block, and for a block whose first entries were replayed earlier.
        """
        if index >= self._edge:
            return 0
        if index % search_index.BLOCK == 0:
            self._keys.clear()
            self._removed = 0
        if entry is None:
            self._removed |= 1 << index % search_index.BLOCK
        self._keys.append((index, [] if entry is None else search_index.keys_of(entry)))
        if len(self._keys) < search_index.BLOCK:
            return 0
        block = index // search_index.BLOCK
        return self._check_partly(block) if self._removed else self._check(block)

    def _check_partly(self, block: int) -> int:
        """Check a block with removed entries: every row of the block, but for the bits of these entries."""
        expected, differing, count = search_index.index_block(self._keys), [], 0
        for key, _, data in read_keys(self._connection, block, block):
            count += 1
            bits, got = expected.pop(key, 0), search_index.decode_bits(data)
            if got & ~self._removed != bits or search_index.encode_bits(got) != data:
                differing.append(_first_difference(block, key, bits, got & ~self._removed))
        differing += [_first_difference(block, key, bits, 0) for key, bits in expected.items()]
        if differing:
            raise min(differing, key=itemgetter(0))[1]
        return count

    def _check(self, block: int) -> int:
        expected = search_index.index_block(self._keys)
        differing = []
        for key, bits in expected.items():
            got = b"".join(data for _, data in read_bits(self._connection, key, block, block))
            if got != search_index.encode_bits(bits):
                differing.append(_first_difference(block, key, bits, search_index.decode_bits(got)))
        if differing:
            raise min(differing, key=itemgetter(0))[1]
        return len(expected)


def _first_difference(block: int, key: str, expected: int, got: int) -> tuple[int, Tampered]:
    """Return the first entry of the block whose bits differ, with its error."""
    differ = (expected ^ got) or expected
    offset = min((differ & -differ).bit_length(), search_index.BLOCK) - 1
    index, is_expected = block * search_index.BLOCK + offset, expected >> offset & 1
    terms = ("filed", "not" if expected != got else "in other bytes")
    wanted, found = terms if is_expected else reversed(terms)
    return index, Tampered(f"entry {index}: key {key}: expected {wanted}, got {found}")


def _advance_one(log_state: LogState, index: int, stored: StoredEntry) -> Entry:
    entry = _parse(index, stored)
    expect(index, "time", entry.time, stored.time)
    _check_documents(index, entry, stored)
    _check_chain(index, entry, log_state.state)
    frontier, nodes = log_state.frontier.append_nodes(entry.leaf)
    _check_nodes(index, nodes, stored)
    contents = {role: content for role, (_, content) in stored.documents.items()}
    try:
        apply(log_state.state, entry, contents)
    except ApplianceError as error:
        raise Tampered(f"entry {index}: expected one that the rules allow, got: {error.message}") from error
    log_state.frontier = frontier
    return entry


def _skip_removed(log_state: LogState, index: int, stored: StoredEntry) -> None:
    """Skip an entry without bytes, which an archive must name."""
    if log_state.removals is None:
        raise Tampered(f"entry {index}: expected its bytes, got none", code="missing")
    log_state.removals.skip(index)
    if stored.documents:
        raise Tampered(f"entry {index}: expected no documents without its bytes, got {', '.join(stored.documents)}")
    leaf = stored.nodes[:HASH_BYTES]
    frontier, nodes = log_state.frontier.append_nodes(leaf)
    _check_nodes(index, nodes, stored)
    log_state.state.skip_removed(leaf)
    log_state.frontier = frontier


def _check_archives(removals: Removals, state: State, entry: Entry | None, stored: StoredEntry) -> None:
    if entry is not None:
        documents = {f"sha256:{digest.hex()}": data for digest, data in stored.documents.values()}
        removals.meet(entry, documents.get)
        if entry.type == LogArchived.type and (problems := removals.settle(entry.index, state)):
            raise Tampered(problems[0])
    removals.pass_entry(state)


def _parse(index: int, stored: StoredEntry) -> Entry:
    """Parse the entry and check that its bytes hash to its leaf."""
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
    """Check that the documents are those that the entry binds and that their bytes have these digests."""
    if not entry.documents and not stored.documents:
        return  # the most frequent case
    filed = {role: f"sha256:{digest.hex()}" for role, (digest, _) in stored.documents.items()}
    for role in sorted(entry.documents.keys() | filed.keys()):
        expect(index, f"document {role}", entry.documents.get(role, "none"), filed.get(role, "none"))
    for role, (_, content) in stored.documents.items():
        expect(index, f"document {role}", entry.documents[role], digest_bytes(content))


def _check_chain(index: int, entry: Entry, state: State) -> None:
    expect(index, "index", index, entry.index)
    expect(index, "prev", state.last_leaf, entry.prev)
    if entry.time < state.last_time and not sets_time(entry.type):
        raise Tampered(f"entry {index}: time: expected at least {state.last_time}, got {entry.time}")


def _check_nodes(index: int, nodes: list[bytes], stored: StoredEntry) -> None:
    if b"".join(nodes) == stored.nodes:
        return
    for level, node in enumerate(nodes):
        got = stored.nodes[HASH_BYTES * level : HASH_BYTES * (level + 1)]
        expect(index, f"tree node {(level, index >> level)}", node.hex(), got.hex())
    expect(index, "tree nodes, bytes", HASH_BYTES * len(nodes), len(stored.nodes))


def expect(index: int, what: str, expected: Any, got: Any) -> None:
    """Check that two values are equal.

    Raises:
        Tampered: they differ; the message names the entry.
    """
    if expected != got:
        raise Tampered(f"entry {index}: {what}: expected {expected}, got {got}")


def load_log_state(
    connection: Connection, begun: LogState | None, seen: KnownHead, log_key: str, on_progress: OnProgress
) -> LogState:
    """Replay the whole log, starting from `begun` if it is given.

    A snapshot is not used if it was sealed with a key that the log has replaced since, because somebody who stole that
    key could have sealed it.

    Raises:
        Tampered: an entry, row or checkpoint is invalid.
    """
    if begun is not None:
        size, sealed_by = begun.state.size, begun.state.site.log_key
        try:
            begun.removals = make_removals(connection, begun.state)
            check_bytes(connection, begun.frontier, begun.removals, on_progress)
            log_state = _complete(connection, begun, seen, log_key, on_progress)
            if log_state.state.site.log_key == sealed_by:
                return log_state
            reason = "its key signs no more"
        except Tampered as error:
            reason = error.message
        log.warning("snapshot of %d entries: %s; every entry is replayed", size, reason)
    return _complete(connection, LogState(removals=make_removals(connection)), seen, log_key, on_progress)


def make_removals(connection: Connection, start: State | None = None) -> Removals:
    """Return the check of removed entries for one replay from the first entry, or from the state `start`."""
    return Removals(lambda: read_archives(connection), start=start)


def read_archives(connection: Connection) -> Iterator[ArchiveEntry]:
    """Yield the archives that entries of the log claim, unverified."""

    def document(digest: str) -> bytes | None:
        return read_document(connection, raw_digest(digest))

    for index in list_archives(connection):
        yield from read_archive_entries((data for _, data in read_bytes(connection, index, index + 1)), document)


def _complete(
    connection: Connection, log_state: LogState, seen: KnownHead, log_key: str, on_progress: OnProgress
) -> LogState:
    advance(connection, log_state, read_head(connection).size, seen, on_progress=on_progress)
    check_settled(log_state)
    check_end(connection, log_state, log_key)
    log_state.removals = None
    return log_state


def check_settled(log_state: LogState) -> None:
    """Check that valid archives name all missing entries.

    Raises:
        Tampered: they do not.
    """
    for _, problem in () if log_state.removals is None else log_state.removals.list_unsettled():
        raise Tampered(problem, code="missing")


def check_bytes(connection: Connection, expected: Frontier, removals: Removals, on_progress: OnProgress) -> None:
    """Check the stored entries and tree nodes up to the frontier's size by hashing, without replaying them.

    Raises:
        Tampered: they differ.
    """
    frontier = Frontier.EMPTY
    while (start := frontier.size) < expected.size:
        on_progress(start, expected.size)
        end = min(start + _PAGE, expected.size)
        found = dict(_in_order(read_leaves(connection, start, end), start, end))
        for index, stored in found.items():
            if not stored.data:
                removals.skip(index)
        leaves = [hash_leaf(stored.data) if stored.data else stored.nodes[:HASH_BYTES] for stored in found.values()]
        frontier, completed = frontier.extend(leaves)
        for (index, stored), nodes in zip(found.items(), completed, strict=True):
            _check_leaf(index, nodes[0], stored)
            _check_nodes(index, nodes, stored)
    expect(expected.size - 1, "tree root", expected.root().hex(), frontier.root().hex())


def check_end(connection: Connection, log_state: LogState, log_key: str) -> None:
    """Check that the log ends where the head and the signed checkpoint say, without rows beyond.

    Raises:
        Tampered: it does not.
    """
    head, size = read_head(connection), log_state.state.size
    last = max(size - 1, 0)
    expect(last, "head, size", size, head.size)
    expect(last, "head, leaf hash", log_state.head.leaf_hash.hex(), head.leaf_hash.hex())
    check_checkpoint(connection, log_state, log_key)
    for name, (low, high) in read_extent(connection).items():
        for key in (low, high):
            if key is not None and not 0 <= key < size:
                raise Tampered(f"{name} {key}: expected none beyond the head at size {size}, got a row")
    check_index_rows(connection, log_state)


def check_index_rows(connection: Connection, log_state: LogState) -> None:
    """Check that the index has no row for a key that no entry has, by comparing the number of rows.

    Raises:
        Tampered: it has one.
    """
    if count_keys(connection, log_state.first_block) != log_state.keys:
        raise _stray_key(connection, log_state.first_block, search_index.count_indexed(log_state.state.size))


def _stray_key(connection: Connection, first_block: int, edge: int) -> Tampered:
    for block, rows in groupby(read_keys(connection, first_block), key=itemgetter(1)):
        start = block * search_index.BLOCK
        stored = read_bytes(connection, start, start + search_index.BLOCK) if 0 <= start < edge else []
        if any(read_removed(data) is not None for _, data in stored):
            continue  # `_Blocks` has compared every row
        expected = search_index.index_block((index, search_index.keys_of(parse_entry(data))) for index, data in stored)
        for key, _, bits in rows:
            if key not in expected:
                return _first_difference(block, key, 0, search_index.decode_bits(bits))[1]
    return Tampered(
        "keys of entries: expected as many rows as blocks have keys, got rows that changed while being read"
    )


def check_checkpoint(connection: Connection, log_state: LogState, log_key: str) -> None:
    """Check that the checkpoint is over this tree and signed by the log's current keys, in a log that began with
    `log_key`.

    Raises:
        Tampered: it is not.
    """
    size, note = log_state.state.size, read_checkpoint(connection)
    if size == 0 and note is None:
        return
    if size == 0 or note is None:
        expected, got = ("none", "one") if size == 0 else (f"one of size {size}", "none")
        raise Tampered(f"entry {max(size - 1, 0)}: log checkpoint: expected {expected}, got {got}")
    site = log_state.state.site
    expect(0, "log key", log_key, site.log_keys[0].vkey)
    try:
        checkpoint = open_checkpoint(note, *site.checkpoint_keys())
    except Tampered as error:
        raise Tampered(f"entry {size - 1}: log checkpoint of size {size}: {error.message}") from error
    expect(size - 1, "log checkpoint, size", size, checkpoint.size)
    expect(size - 1, "tree root", log_state.frontier.root().hex(), checkpoint.root.hex())


NO_KNOWN_HEAD = KnownHead(0, Frontier.EMPTY.root())
