"""Search for entries by their keys, in the order of the log, in pages.

For each block, the bits of all wanted keys are combined. For entries after the last complete block, the bits are cached
or computed. A search reads only the blocks that its page needs: a few at first, then more at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict, get_args

from sqlalchemy import Connection, bindparam, func, select

from appliance.domain.core.entry import Outcome
from appliance.domain.governance.log_control import ClockReset
from appliance.errors import BadInput
from appliance.formats.core.timestamp import parse_time
from appliance.store.database.engine import Prepared
from appliance.store.database.tables import entries, entry_keys, removed_entries
from appliance.store.ledger import search_index
from appliance.store.ledger.rows import read_bits, read_head
from appliance.store.ledger.search_index import PartialBlock

MAX_PAGE = 10_000
MAX_TYPES = 64
"""Maximum number of types in a filter, which is more than there are types."""

_LEAST_READ = 100
"""Least number of entries that a search reads on after it has met removed ones."""
_FEW, _MANY = 8, 1_024
"""Number of blocks that are read at once, at first and at most."""

_TIME = Prepared(select(entries.c.time).where(entries.c.index == bindparam("at")))

Blocks = dict[int, int]
"""Bits of matching entries by block."""


class Filters(TypedDict, total=False):
    """Conditions that an entry must all meet: one of `types`, all `subjects`, one search key of each group in `keys`.

    Times are as in entries: `since` <= time < `until`. `after` and `before` are exclusive indexes. `newest` searches
    backwards from the end.
    """

    types: Sequence[str]
    subjects: Sequence[str]
    keys: Sequence[Sequence[str]]
    actor: str | None
    outcome: str | None
    unit: str | None
    since: str | None
    until: str | None
    after: int | None
    before: int | None
    newest: bool
    limit: int


@dataclass(frozen=True)
class _Filter:
    """A condition that an entry has one of the keys, or with `absent`, none of them."""

    keys: tuple[str, ...]
    absent: bool = False


def find_entries(connection: Connection, partial_block: PartialBlock, filters: Filters) -> list[tuple[int, bytes]]:
    """Return (index, bytes) of matching entries in the order of the search, without those that archives removed.

    A page shorter than `limit` (default 100) is the last one. The next page begins `after` the last index, or `before`
    it when searching backwards.

    Raises:
        BadInput: a filter is unknown, or the limit is out of range.
    """
    if unknown := filters.keys() - Filters.__annotations__.keys():
        raise BadInput(f"search: expected known filters, got {', '.join(sorted(unknown))}")
    limit = filters.get("limit", 100)
    if not 1 <= limit <= MAX_PAGE:
        raise BadInput(f"search, limit: expected 1 to {MAX_PAGE}, got {limit}")
    newest = bool(filters.get("newest"))
    found: list[tuple[int, bytes]] = []
    unread: list[int] = []
    for block, bits in walk_blocks(connection, partial_block, filters, newest=newest):
        places = [block * search_index.BLOCK + place for place in range(bits.bit_length()) if bits >> place & 1]
        unread += reversed(places) if newest else places
        while len(found) < limit <= len(found) + len(unread):
            count = max(limit - len(found), _LEAST_READ if found else 0)
            found += _read(connection, unread[:count], newest=newest)
            del unread[:count]
        if len(found) >= limit:
            return found[:limit]
    return found + _read(connection, unread, newest=newest)


def find_removed(connection: Connection, partial_block: PartialBlock, filters: Filters) -> list[int]:
    """Return the entries whose archives removed the first matching entries, in order. The index keeps their keys."""
    for block, bits in walk_blocks(connection, partial_block, filters, newest=False):
        places = [block * search_index.BLOCK + place for place in range(bits.bit_length()) if bits >> place & 1]
        column = removed_entries.c
        found = connection.execute(select(column.archive).where(column.index.in_(places)).distinct()).scalars().all()
        if found:
            return sorted(map(int, found))
    return []


def count_entries(connection: Connection, partial_block: PartialBlock, filters: Filters) -> int:
    """Count the matching entries from the index alone."""
    return sum(bits.bit_count() for _, bits in walk_blocks(connection, partial_block, filters, newest=False))


def _read(connection: Connection, places: Sequence[int], *, newest: bool) -> list[tuple[int, bytes]]:
    if not places:
        return []
    column = entries.c.index
    rows = select(column, entries.c.bytes).where(column.in_(places), func.length(entries.c.bytes) > 0)
    rows = rows.order_by(column.desc() if newest else column)
    return [(row[0], row[1]) for row in connection.execute(rows)]


def walk_blocks(
    connection: Connection, partial_block: PartialBlock, filters: Filters, *, newest: bool
) -> Iterator[tuple[int, int]]:
    """Yield each block with matching entries and their bits, in ascending order or with `newest` in descending
    order."""
    wanted = _keys_wanted(filters)
    spans, size = find_spans(connection, partial_block, filters)
    whole = search_index.count_indexed(size) // search_index.BLOCK

    def read(key: str, low: int, high: int) -> Blocks:
        found = {block: search_index.decode_bits(data) for block, data in read_bits(connection, key, low, high)}
        if high >= whole:
            found[whole] = partial_block.read(connection, size).get(key, 0)
        return found

    for first, stop in reversed(spans) if newest else spans:
        for low, high in _pieces(first // search_index.BLOCK, (stop - 1) // search_index.BLOCK, newest=newest):
            found = _meet(wanted, range(low, high + 1), lambda key: read(key, low, high))  # noqa: B023 - called at once
            for block in sorted(found, reverse=newest):
                start, end = (
                    max(first - block * search_index.BLOCK, 0),
                    min(stop - block * search_index.BLOCK, search_index.BLOCK),
                )
                if bits := found[block] & (1 << end) - (1 << start):
                    yield block, bits


def _pieces(first: int, last: int, *, newest: bool) -> Iterator[tuple[int, int]]:
    """Yield ranges of blocks from `first` to `last` in growing sizes."""
    count = _FEW
    while first <= last:
        low, high = (max(first, last - count + 1), last) if newest else (first, min(last, first + count - 1))
        yield low, high
        first, last = (first, low - 1) if newest else (high + 1, last)
        count = min(4 * count, _MANY)


def _meet(wanted: Sequence[_Filter], blocks: Iterable[int], read: Callable[[str], Blocks]) -> Blocks:
    """Return the bits of the entries in these blocks that match every filter; `read` returns the bits of a key."""
    met = dict.fromkeys(blocks, (1 << search_index.BLOCK) - 1)
    for one in wanted:
        found: Blocks = {}
        for key in one.keys:
            for block, bits in read(key).items():
                found[block] = found.get(block, 0) | bits
        if one.absent:
            met = {block: bits & ~found.get(block, 0) for block, bits in met.items()}
        else:
            met = {block: bits & found[block] for block, bits in met.items() if block in found}
        met = {block: bits for block, bits in met.items() if bits}
        if not met:
            break
    return met


def find_spans(
    connection: Connection, partial_block: PartialBlock, filters: Filters
) -> tuple[list[tuple[int, int]], int]:
    """Return ([(first, stop)], size): the entries [first, stop) that the limits on index and time allow.

    There are several only if the clock was reset, since time decreases only there.
    """
    size = read_head(connection).size
    after, before = filters.get("after"), filters.get("before")
    least = 0 if after is None else max(after + 1, 0)
    most = size if before is None else min(before, size)
    since, until = filters.get("since"), filters.get("until")
    stretches = [(0, size)] if since is until is None else find_stretches(connection, partial_block, size)
    spans = []
    for low, high in stretches:
        first = low if since is None else first_at(connection, since, low, high)
        stop = high if until is None else first_at(connection, until, low, high)
        spans.append((max(first, least), min(stop, most)))
    return [(first, stop) for first, stop in spans if first < stop], size


def find_stretches(connection: Connection, partial_block: PartialBlock, size: int) -> list[tuple[int, int]]:
    """Return [(low, high)]: ranges of entries whose time never decreases; each but the first begins at a clock
    reset."""
    begins = [0]
    for block, bits in walk_blocks(
        connection, partial_block, {"types": [ClockReset.type], "before": size}, newest=False
    ):
        begins += [block * search_index.BLOCK + place for place in range(bits.bit_length()) if bits >> place & 1]
    return list(pairwise([*begins, size]))


def first_at(connection: Connection, time: str, low: int, high: int, *, after: bool = False) -> int:
    """Return the first entry of [low, high) at or after this time (with `after`, strictly after it), or `high`.

    It uses binary search, since time never decreases within the range.
    """
    parse_time(time, "search, time")
    while low < high:
        middle = (low + high) // 2
        row = _TIME.execute(connection, {"at": middle}).fetchone()
        if row is not None and (row[0] < time or (after and row[0] == time)):
            low = middle + 1
        else:
            high = middle
    return low


def _keys_wanted(filters: Filters) -> list[_Filter]:
    """Return the conditions of the filters, the most selective first as far as known, and absent keys last."""
    types, unit, actor, outcome = filters.get("types", ()), *map(filters.get, ("unit", "actor", "outcome"))
    if len(types) > MAX_TYPES:
        raise BadInput(f"search, types: expected at most {MAX_TYPES}, got {len(types)}")
    subjects = dict.fromkeys([*filters.get("subjects", ()), *([] if unit is None else [f"unit:{unit}"])])
    wanted = [_Filter((subject,)) for subject in subjects]
    wanted += [_Filter(tuple(dict.fromkeys(group))) for group in filters.get("keys", ())]
    wanted += [_Filter(tuple(f"type={kind}" for kind in dict.fromkeys(types)))] if types else []
    wanted += [] if actor is None else [_Filter((f"actor={actor}",))]
    if outcome == search_index.USUAL:
        others = (other for other in get_args(Outcome) if other != search_index.USUAL)
        wanted.append(_Filter(tuple(f"outcome={other}" for other in others), absent=True))
    elif outcome is not None:
        wanted.append(_Filter((f"outcome={outcome}",)))
    return wanted


MOST_BLOCKS = 64
MOST_KEYS = 4_096
"""Maximum number of keys whose totals are cached."""

Facets = Mapping[str, Sequence[str]]
"""Values to count, by `type`, `actor`, `outcome`, `unit` or `subject`."""


@dataclass(frozen=True, slots=True)
class Count:
    """The number of matching entries with a value; with `is_least`, there may be more."""

    value: str
    count: int
    is_least: bool


class Totals:
    """Cached numbers of entries per key in the complete blocks of the log, which never change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int]] = {}
        """Number of counted blocks and of entries that have the key, by key."""

    def read(self, connection: Connection, key: str, whole: int) -> int:
        """Return the number of entries with this key in the first `whole` blocks."""
        blocks, count = self._known.get(key, (0, 0))
        if blocks >= whole:
            return count
        count += sum(
            search_index.decode_bits(bits).bit_count() for _, bits in read_bits(connection, key, blocks, whole - 1)
        )
        with self._lock:
            if key in self._known or len(self._known) < MOST_KEYS:
                self._known[key] = whole, count
        return count


def count_by(
    connection: Connection, partial_block: PartialBlock, totals: Totals, filters: Filters, facets: Facets
) -> dict[str, list[Count]]:
    """Count the matching entries for each value of each facet, most frequent first, without values that do not occur.

    The limits of a page (`after`, `before`) are ignored.
    """
    searched = Filters(**{name: value for name, value in filters.items() if value and name not in _PLACE})  # type: ignore[typeddict-item]
    keys = {(name, value): key_of(name, value) for name, values in facets.items() for value in values}
    others = [f"outcome={outcome}" for outcome in get_args(Outcome) if outcome != search_index.USUAL]
    wanted = {*keys.values(), *others} - {_USUAL}
    if searched:
        met, is_least = _newest_blocks(connection, partial_block, searched)
        size = sum(bits.bit_count() for bits in met.values())
        found = _count_in(connection, partial_block, wanted, met)
    else:
        is_least, size = False, read_head(connection).size
        bits, whole = partial_block.read(connection, size), size // search_index.BLOCK
        found = {key: totals.read(connection, key, whole) + bits.get(key, 0).bit_count() for key in wanted}
    found[_USUAL] = size - sum(found[key] for key in others)
    counted: dict[str, list[Count]] = {name: [] for name in facets}
    for (name, value), key in keys.items():
        counted[name] += [Count(value, found[key], is_least)] if found[key] > 0 else []
    return {name: sorted(counts, key=lambda one: (-one.count, one.value)) for name, counts in counted.items()}


_PLACE = ("after", "before", "newest", "limit")
_USUAL = f"outcome={search_index.USUAL}"


def key_of(name: str, value: str) -> str:
    """Return the search key of an entry with this value."""
    return {"subject": value, "unit": f"unit:{value}"}.get(name, f"{name}={value}")


def _newest_blocks(connection: Connection, partial_block: PartialBlock, filters: Filters) -> tuple[Blocks, bool]:
    """Return the bits of the newest blocks with matching entries, and True if there may be more."""
    met: Blocks = {}
    for block, bits in walk_blocks(connection, partial_block, filters, newest=True):
        if block not in met and len(met) == MOST_BLOCKS:
            return met, True
        met[block] = met.get(block, 0) | bits
    return met, False


def _count_in(connection: Connection, partial_block: PartialBlock, keys: set[str], met: Blocks) -> dict[str, int]:
    """Count for each key how many of these entries have it."""
    found = dict.fromkeys(keys, 0)
    if not met:
        return found
    size = read_head(connection).size
    last = size // search_index.BLOCK
    if last in met:
        bits = partial_block.read(connection, size)
        found = {key: (bits.get(key, 0) & met[last]).bit_count() for key in keys}
    column, low, high = entry_keys.c, min(met), max(met)
    # Reading a range is sequential and efficient if most of its blocks are wanted.
    place = column.block.between(low, high) if high - low < 2 * len(met) else column.block.in_(sorted(met))
    rows = select(column.key, column.block, column.bits).where(column.key.in_(sorted(keys)), place)
    for key, block, data in connection.execute(rows):
        if block in met:
            found[key] += (search_index.decode_bits(data) & met[block]).bit_count()
    return found
