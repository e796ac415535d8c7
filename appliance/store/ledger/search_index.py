"""The search index: for each key and each block of consecutive entries, the bits of the entries that have the key.

A commit costs the pages that it changes, and each key is on a page of its own. So keys are written per block, by the
commit that completes the block (docs/adr/0010-search-index-by-block.md). For entries after the last complete block,
keys are computed from the entries and cached, since entries never change.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

from appliance.domain.core.entry import Entry, Outcome
from appliance.errors import Tampered
from appliance.formats.log.export import read_removed
from appliance.store.ledger.rows import read_bytes

BLOCK = 1_024
"""Entries per block. A log of `n` entries has n // BLOCK complete blocks; block b begins with entry b * BLOCK."""

USUAL: Outcome = "success"

Bits = dict[str, int]
"""Bits of the entries of one block, by key."""
SearchRow = tuple[str, int, bytes]
"""A row (key, block, bits): bit n, from the lowest of the first byte, is for entry n of the block.

Trailing zero bytes are omitted.
"""


class SearchableEntry(Protocol):
    """The fields of an entry by which it is searched."""

    @property
    def type(self) -> str: ...
    @property
    def actor(self) -> str: ...
    @property
    def subjects(self) -> Sequence[str]: ...
    @property
    def outcome(self) -> str: ...


class _Read(NamedTuple):
    """The fields of stored bytes that the index needs; the state replay checks whether the bytes are an entry."""

    type: str
    actor: str
    subjects: Sequence[str]
    outcome: str


def keys_of(entry: SearchableEntry) -> list[str]:
    """Return the keys of an entry: type, actor, subjects, and an outcome other than success."""
    keys = [f"type={entry.type}", f"actor={entry.actor}", *entry.subjects]
    return keys if entry.outcome == USUAL else [*keys, f"outcome={entry.outcome}"]


def count_indexed(size: int) -> int:
    """Return the number of entries in complete blocks of a log of this size."""
    return size - size % BLOCK


def index_block(keys: Iterable[tuple[int, Sequence[str]]]) -> Bits:
    """Compute the bits of one block from (index, keys) of its entries."""
    bits: Bits = {}
    for index, each in keys:
        _set_bits(bits, index, each)
    return bits


def _set_bits(bits: Bits, index: int, keys: Sequence[str]) -> None:
    bit = 1 << index % BLOCK
    for key in keys:
        bits[key] = bits.get(key, 0) | bit


def list_rows(block: int, bits: Bits) -> list[SearchRow]:
    """Return the rows of a block in the order in which they are stored."""
    return [(key, block, encode_bits(bits[key])) for key in sorted(bits)]


def encode_bits(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def decode_bits(data: bytes) -> int:
    return int.from_bytes(data, "little")


class PartialBlock:
    """The bits of the last, incomplete block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = self._stop = 0
        """End of the range of entries that are in `_bits`, or in `_added` until they are needed."""
        self._bits: Bits = {}
        self._added: list[Entry] = []

    def read(self, connection: Connection, size: int) -> Bits:
        """Return the bits of the entries after the last complete block of a log of this size, perhaps with those of
        later ones."""
        start = count_indexed(size)
        with self._lock:
            if start < self._start:
                # This reader has an older snapshot, and its block has been completed since.
                return index_block(_read_keys(connection, start, size))
            if start > self._start:
                self._begin(start)
            for entry in self._added:
                _set_bits(self._bits, entry.index, keys_of(entry))
            self._added.clear()
            if self._stop < size:
                for index, keys in _read_keys(connection, self._stop, size):
                    _set_bits(self._bits, index, keys)
                self._stop = size
            return self._bits

    def add(self, entries: Iterable[Entry]) -> None:
        """Add entries that have become durable. Earlier entries of other processes that are missing here are read
        later."""
        with self._lock:
            for entry in entries:
                if entry.index % BLOCK == 0:
                    self._begin(entry.index)
                if entry.index == self._stop:
                    self._added.append(entry)
                    self._stop += 1

    def _begin(self, start: int) -> None:
        self._start, self._stop, self._bits, self._added = start, start, {}, []

    def list_completed_rows(self, connection: Connection, before: int, entries: Sequence[Entry]) -> list[SearchRow]:
        """Return the rows of each block that these entries complete in a log of size `before`."""
        if count_indexed(before) == count_indexed(before + len(entries)):
            return []
        bits, rows = dict(self.read(connection, before)), []
        for entry in entries:
            _set_bits(bits, entry.index, keys_of(entry))
            if entry.index % BLOCK == BLOCK - 1:
                rows += list_rows(entry.index // BLOCK, bits)
                bits = {}
        return rows


def _read_keys(connection: Connection, start: int, stop: int) -> Iterator[tuple[int, list[str]]]:
    for index, data in read_bytes(connection, start, stop):
        if read_removed(data) is not None:
            continue
        try:
            value = json.loads(data)
            keys = keys_of(_Read(*(value[name] for name in _Read._fields)))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Tampered(f"entry {index}: expected an entry, got bytes that are not one") from None
        yield index, keys
