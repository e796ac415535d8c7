"""How many entries fit a search, by type, actor, outcome, unit and subject: from the index alone, no entry is read.

Over the whole log the counts are exact: those of whole blocks are remembered, and only new blocks are read. In a search
they are of the newest blocks in which something fits; where the search goes on beyond these, a count is "at least".
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import Connection, select

from appliance.domain.core.entry import Outcome
from appliance.store.database.tables import entry_keys
from appliance.store.ledger import filing
from appliance.store.ledger.filing import Unfiled
from appliance.store.ledger.rows import read_bits, read_head
from appliance.store.ledger.search import Blocks, Filters, walk_blocks

MOST_BLOCKS = 64
MOST_KEYS = 4_096
"""That are remembered."""

Facets = Mapping[str, Sequence[str]]
"""By `type`, `actor`, `outcome`, `unit` or `subject`: the values that are counted."""


@dataclass(frozen=True, slots=True)
class Count:
    """`is_least`: there may be more."""

    value: str
    count: int
    is_least: bool


class Totals:
    """In how many entries of the log's whole blocks a key is; whole blocks never change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int]] = {}
        """By key: how many blocks were counted, and how many entries have it."""

    def read(self, connection: Connection, key: str, whole: int) -> int:
        blocks, count = self._known.get(key, (0, 0))
        if blocks >= whole:
            return count
        count += sum(filing.decode_bits(bits).bit_count() for _, bits in read_bits(connection, key, blocks, whole - 1))
        with self._lock:
            if key in self._known or len(self._known) < MOST_KEYS:
                self._known[key] = whole, count
        return count


def count_by(
    connection: Connection, unfiled: Unfiled, totals: Totals, filters: Filters, facets: Facets
) -> dict[str, list[Count]]:
    """For each facet its values in how many entries that fit, the most first; values of none are left out. Where a page
    begins (`after`, `before`) does not count."""
    searched = Filters(**{name: value for name, value in filters.items() if value and name not in _PLACE})  # type: ignore[typeddict-item]
    keys = {(name, value): key_of(name, value) for name, values in facets.items() for value in values}
    others = [f"outcome={outcome}" for outcome in get_args(Outcome) if outcome != filing.USUAL]
    wanted = {*keys.values(), *others} - {_USUAL}
    if searched:
        met, is_least = _newest_blocks(connection, unfiled, searched)
        size = sum(bits.bit_count() for bits in met.values())
        found = _count_in(connection, unfiled, wanted, met)
    else:
        is_least, size = False, read_head(connection).size
        bits, whole = unfiled.read(connection, size), size // filing.BLOCK
        found = {key: totals.read(connection, key, whole) + bits.get(key, 0).bit_count() for key in wanted}
    found[_USUAL] = size - sum(found[key] for key in others)
    counted: dict[str, list[Count]] = {name: [] for name in facets}
    for (name, value), key in keys.items():
        counted[name] += [Count(value, found[key], is_least)] if found[key] > 0 else []
    return {name: sorted(counts, key=lambda one: (-one.count, one.value)) for name, counts in counted.items()}


_PLACE = ("after", "before", "newest", "limit")
_USUAL = f"outcome={filing.USUAL}"


def key_of(name: str, value: str) -> str:
    """Under which an entry with this value is filed."""
    return {"subject": value, "unit": f"unit:{value}"}.get(name, f"{name}={value}")


def _newest_blocks(connection: Connection, unfiled: Unfiled, filters: Filters) -> tuple[Blocks, bool]:
    """What fits in the newest blocks in which something does; whether there may be more."""
    met: Blocks = {}
    for block, bits in walk_blocks(connection, unfiled, filters, newest=True):
        if block not in met and len(met) == MOST_BLOCKS:
            return met, True
        met[block] = met.get(block, 0) | bits
    return met, False


def _count_in(connection: Connection, unfiled: Unfiled, keys: set[str], met: Blocks) -> dict[str, int]:
    """In how many of these entries each key is."""
    found = dict.fromkeys(keys, 0)
    if not met:
        return found
    size = read_head(connection).size
    last = size // filing.BLOCK
    if last in met:
        bits = unfiled.read(connection, size)
        found = {key: (bits.get(key, 0) & met[last]).bit_count() for key in keys}
    column, low, high = entry_keys.c, min(met), max(met)
    # A range is read in its order, and is short where most of its blocks are wanted.
    place = column.block.between(low, high) if high - low < 2 * len(met) else column.block.in_(sorted(met))
    rows = select(column.key, column.block, column.bits).where(column.key.in_(sorted(keys)), place)
    for key, block, data in connection.execute(rows):
        if block in met:
            found[key] += (filing.decode_bits(data) & met[block]).bit_count()
    return found
