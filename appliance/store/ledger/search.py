"""Finding entries: by the keys that they are filed under, in the order of the log, a page at a time.

For each block, the bits of all wanted keys are combined. For the entries after the last whole block, the bits are
remembered or computed. A search reads no more blocks than its page needs: a few at first, then more at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict, get_args

from sqlalchemy import Connection, bindparam, select

from appliance.domain.core.entry import Outcome
from appliance.domain.governance.clock import ClockReset
from appliance.errors import BadInput
from appliance.formats.core.timestamp import parse_time
from appliance.store.database.prepared import Prepared
from appliance.store.database.tables import entries
from appliance.store.ledger import filing
from appliance.store.ledger.filing import Unfiled
from appliance.store.ledger.rows import read_bits, read_head

MAX_PAGE = 10_000
MAX_TYPES = 64
"""There are fewer types."""

_FEW, _MANY = 8, 1_024
"""Blocks that are read at once, at first and at most."""

_TIME = Prepared(select(entries.c.time).where(entries.c.index == bindparam("at")))

Blocks = dict[int, int]
"""By block: which of its entries."""


class Filters(TypedDict, total=False):
    """All that are given must hold: one of `types`, every one of `subjects`. Times as in entries: `since` <= time <
    `until`. `after` and `before` are indexes, not themselves within; `newest` walks backwards from the end."""

    types: Sequence[str]
    subjects: Sequence[str]
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
    """An entry must be filed under one of the keys; or under none of them, where they are to be `absent`."""

    keys: tuple[str, ...]
    absent: bool = False


def find_entries(connection: Connection, unfiled: Unfiled, filters: Filters) -> list[tuple[int, bytes]]:
    """(index, bytes) in the order walked. A page shorter than `limit` (100) is the last; the next is `after` its last
    index, or `before` it when it was walked backwards."""
    if unknown := filters.keys() - Filters.__annotations__.keys():
        raise BadInput(f"search: expected known filters, got {', '.join(sorted(unknown))}")
    limit = filters.get("limit", 100)
    if not 1 <= limit <= MAX_PAGE:
        raise BadInput(f"search, limit: expected 1 to {MAX_PAGE}, got {limit}")
    newest = bool(filters.get("newest"))
    found: list[int] = []
    for block, bits in walk_blocks(connection, unfiled, filters, newest=newest):
        places = [block * filing.BLOCK + place for place in range(bits.bit_length()) if bits >> place & 1]
        found += reversed(places) if newest else places
        if len(found) >= limit:
            break
    return _read(connection, found[:limit], newest=newest)


def count_entries(connection: Connection, unfiled: Unfiled, filters: Filters) -> int:
    """How many entries fit, counted from their keys alone."""
    return sum(bits.bit_count() for _, bits in walk_blocks(connection, unfiled, filters, newest=False))


def _read(connection: Connection, places: Sequence[int], *, newest: bool) -> list[tuple[int, bytes]]:
    column = entries.c.index
    rows = select(column, entries.c.bytes).where(column.in_(places)).order_by(column.desc() if newest else column)
    return [(row[0], row[1]) for row in connection.execute(rows)] if places else []


def walk_blocks(
    connection: Connection, unfiled: Unfiled, filters: Filters, *, newest: bool
) -> Iterator[tuple[int, int]]:
    """Each block in which an entry fits, with the bits of those that do, in the order asked for."""
    wanted = _keys_wanted(filters)
    spans, size = find_spans(connection, unfiled, filters)
    whole = filing.count_filed(size) // filing.BLOCK

    def read(key: str, low: int, high: int) -> Blocks:
        found = {block: filing.decode_bits(data) for block, data in read_bits(connection, key, low, high)}
        if high >= whole:
            found[whole] = unfiled.read(connection, size).get(key, 0)
        return found

    for first, stop in reversed(spans) if newest else spans:
        for low, high in _pieces(first // filing.BLOCK, (stop - 1) // filing.BLOCK, newest=newest):
            found = _meet(wanted, range(low, high + 1), lambda key: read(key, low, high))  # noqa: B023 - called at once
            for block in sorted(found, reverse=newest):
                start, end = max(first - block * filing.BLOCK, 0), min(stop - block * filing.BLOCK, filing.BLOCK)
                if bits := found[block] & (1 << end) - (1 << start):
                    yield block, bits


def _pieces(first: int, last: int, *, newest: bool) -> Iterator[tuple[int, int]]:
    """The blocks from first to last, some at a time and ever more of them."""
    count = _FEW
    while first <= last:
        low, high = (max(first, last - count + 1), last) if newest else (first, min(last, first + count - 1))
        yield low, high
        first, last = (first, low - 1) if newest else (high + 1, last)
        count = min(4 * count, _MANY)


def _meet(wanted: Sequence[_Filter], blocks: Iterable[int], read: Callable[[str], Blocks]) -> Blocks:
    """The entries of these blocks for which every filter holds; `read` gives the bits of a key in them."""
    met = dict.fromkeys(blocks, (1 << filing.BLOCK) - 1)
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


def find_spans(connection: Connection, unfiled: Unfiled, filters: Filters) -> tuple[list[tuple[int, int]], int]:
    """([(first, stop)], size): entries [first, stop) are what the bounds on index and time leave of the log. There are
    several only where the clock was reset, since time never decreases but there."""
    size = read_head(connection).size
    after, before = filters.get("after"), filters.get("before")
    least = 0 if after is None else max(after + 1, 0)
    most = size if before is None else min(before, size)
    since, until = filters.get("since"), filters.get("until")
    stretches = [(0, size)] if since is until is None else find_stretches(connection, unfiled, size)
    spans = []
    for low, high in stretches:
        first = low if since is None else first_at(connection, since, low, high)
        stop = high if until is None else first_at(connection, until, low, high)
        spans.append((max(first, least), min(stop, most)))
    return [(first, stop) for first, stop in spans if first < stop], size


def find_stretches(connection: Connection, unfiled: Unfiled, size: int) -> list[tuple[int, int]]:
    """[(low, high)]: entries [low, high) whose time never decreases. Each but the first begins where the clock was
    reset."""
    begins = [0]
    for block, bits in walk_blocks(connection, unfiled, {"types": [ClockReset.type], "before": size}, newest=False):
        begins += [block * filing.BLOCK + place for place in range(bits.bit_length()) if bits >> place & 1]
    return list(pairwise([*begins, size]))


def first_at(connection: Connection, time: str, low: int, high: int, *, after: bool = False) -> int:
    """The index of the first entry of [low, high) at this time or later, or `after` it; `high` where there is none.
    Time never decreases in a stretch, so that halving it finds the place."""
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
    """What few entries have first, as far as that can be known; what they must not have last."""
    types, unit, actor, outcome = filters.get("types", ()), *map(filters.get, ("unit", "actor", "outcome"))
    if len(types) > MAX_TYPES:
        raise BadInput(f"search, types: expected at most {MAX_TYPES}, got {len(types)}")
    subjects = dict.fromkeys([*filters.get("subjects", ()), *([] if unit is None else [f"unit:{unit}"])])
    wanted = [_Filter((subject,)) for subject in subjects]
    wanted += [_Filter(tuple(f"type={kind}" for kind in dict.fromkeys(types)))] if types else []
    wanted += [] if actor is None else [_Filter((f"actor={actor}",))]
    if outcome == filing.USUAL:
        others = (other for other in get_args(Outcome) if other != filing.USUAL)
        wanted.append(_Filter(tuple(f"outcome={other}" for other in others), absent=True))
    elif outcome is not None:
        wanted.append(_Filter((f"outcome={outcome}",)))
    return wanted
