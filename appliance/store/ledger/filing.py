"""What entries are searched by: for each key, and each block of entries one after another, which of them have it.

A commit costs the pages that it changes, and each key has a page of its own. So keys are filed by the block, by the
commit that makes it whole (docs/adr/0010-filed-by-the-block.md). For entries after the last whole block, the keys are
read from the entries and remembered, because no entry ever changes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from sqlalchemy import Connection

from appliance.domain.core.entry import Entry, Outcome
from appliance.errors import Tampered
from appliance.store.ledger.rows import read_bytes

BLOCK = 1_024
"""Entries. A log of `n` has n // BLOCK whole blocks; block b begins with entry b * BLOCK."""

USUAL: Outcome = "success"

Bits = dict[str, int]
"""By key: which entries of one block have it."""
Filed = tuple[str, int, bytes]
"""(key, block, bits) of a row: bit n, from the lowest of the first byte on, is for the block's entry n. Bytes that
would be zero at the end are left out."""


class Searched(Protocol):
    """What an entry is searched by."""

    @property
    def type(self) -> str: ...
    @property
    def actor(self) -> str: ...
    @property
    def subjects(self) -> Sequence[str]: ...
    @property
    def outcome(self) -> str: ...


class _Read(NamedTuple):
    """What of an entry's bytes is needed here; whether they are an entry is for the fold."""

    type: str
    actor: str
    subjects: Sequence[str]
    outcome: str


def keys_of(entry: Searched) -> list[str]:
    """Type, actor, an outcome that is not the usual one, and subjects."""
    keys = [f"type={entry.type}", f"actor={entry.actor}", *entry.subjects]
    return keys if entry.outcome == USUAL else [*keys, f"outcome={entry.outcome}"]


def count_filed(size: int) -> int:
    """How many entries of a log of this size are filed: the first so many."""
    return size - size % BLOCK


def file_block(keys: Iterable[tuple[int, Sequence[str]]]) -> Bits:
    """Of some entries of one block by (index, keys)."""
    bits: Bits = {}
    for index, each in keys:
        _file(bits, index, each)
    return bits


def _file(bits: Bits, index: int, keys: Sequence[str]) -> None:
    bit = 1 << index % BLOCK
    for key in keys:
        bits[key] = bits.get(key, 0) | bit


def list_rows(block: int, bits: Bits) -> list[Filed]:
    """In the order in which they are stored."""
    return [(key, block, encode_bits(bits[key])) for key in sorted(bits)]


def encode_bits(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def decode_bits(data: bytes) -> int:
    return int.from_bytes(data, "little")


class Unfiled:
    """The bits of the block that is not whole yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start = self._stop = 0
        """The entries that are in `_bits`, or in `_added` until they are needed."""
        self._bits: Bits = {}
        self._added: list[Entry] = []

    def read(self, connection: Connection, size: int) -> Bits:
        """Of the entries after the last whole block of a log of this size; it may hold bits of later ones too."""
        start = count_filed(size)
        with self._lock:
            if start < self._start:
                # Seen by a reader of an earlier moment: that block has been filed since.
                return file_block(_read_keys(connection, start, size))
            if start > self._start:
                self._begin(start)
            for entry in self._added:
                _file(self._bits, entry.index, keys_of(entry))
            self._added.clear()
            if self._stop < size:
                for index, keys in _read_keys(connection, self._stop, size):
                    _file(self._bits, index, keys)
                self._stop = size
            return self._bits

    def add(self, entries: Iterable[Entry]) -> None:
        """Those that have become durable. Others' that came before them and are not known here are read later."""
        with self._lock:
            for entry in entries:
                if entry.index % BLOCK == 0:
                    self._begin(entry.index)
                if entry.index == self._stop:
                    self._added.append(entry)
                    self._stop += 1

    def _begin(self, start: int) -> None:
        self._start, self._stop, self._bits, self._added = start, start, {}, []

    def take_due(self, connection: Connection, before: int, entries: Sequence[Entry]) -> list[Filed]:
        """The rows of each block that these entries make whole in a log that was of size `before`."""
        if count_filed(before) == count_filed(before + len(entries)):
            return []
        bits, rows = dict(self.read(connection, before)), []
        for entry in entries:
            _file(bits, entry.index, keys_of(entry))
            if entry.index % BLOCK == BLOCK - 1:
                rows += list_rows(entry.index // BLOCK, bits)
                bits = {}
        return rows


def _read_keys(connection: Connection, start: int, stop: int) -> Iterator[tuple[int, list[str]]]:
    for index, data in read_bytes(connection, start, stop):
        try:
            value = json.loads(data)
            keys = keys_of(_Read(*(value[name] for name in _Read._fields)))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Tampered(f"entry {index}: expected an entry, got bytes that are not one") from None
        yield index, keys
