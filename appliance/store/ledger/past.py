"""Queries for the state at any entry, from the values that the projections keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, or_, select

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.records.serving import release_key
from appliance.domain.core.state import State
from appliance.domain.queries.effective_access import ACCESS_KINDS, OF_UNITS
from appliance.domain.queries.rows import COUNTED_OF_ADAPTERS, LISTED_OF_ADAPTERS, MODELS, put_rows, state_of
from appliance.errors import BadInput, NotFound
from appliance.store.database.tables import entries, projections
from appliance.store.ledger.rows import read_entry_bytes, read_head
from appliance.store.ledger.search import Filters, count_entries, find_stretches, first_at
from appliance.store.ledger.search_index import PartialBlock


class ValueSpan(NamedTuple):
    """The value of an object in canonical JSON, valid from the entry `since` to before `until`, or until now."""

    kind: str
    id: str
    since: int
    until: int | None
    value: str


Ids = Mapping[str, Collection[str]]
"""Identifiers to which a query is limited, by kind; kinds that are missing are not limited."""
NO_IDS: Ids = MappingProxyType({})


def values_at(
    connection: Connection,
    index: int,
    kinds: Iterable[str],
    unit: str | None = None,
    ids: Ids = NO_IDS,
    *,
    past: str = "",
    limit: int | None = None,
) -> list[ValueSpan]:
    """Return the values that were valid after this entry, by kind and identifier.

    With `unit`, values that belong to units are limited to this unit. Of each kind, only up to `limit` values with
    identifiers after `past` are read.
    """
    found = []
    for kind in kinds:
        if kind not in MODELS:
            raise BadInput(f"state, kind: expected one of {', '.join(MODELS)}, got {kind!r}")
        rows = _select_values(kind, index, index).where(projections.c.id > past)
        rows = _narrowed(connection, rows, kind, unit, ids).order_by(projections.c.id).limit(limit)
        found += [ValueSpan(*row) for row in connection.execute(rows)]
    return found


def _select_values(kind: str, after: int, last: int) -> Select[Any]:
    """Select the values of a kind that were valid at some entry from `after` to `last`."""
    column = projections.c
    rows = select(column.kind, column.id, column.since, column.until, column.value)
    return rows.where(column.kind == kind, column.since <= last, or_(column.until.is_(None), column.until > after))


def _narrowed(connection: Connection, rows: Select[Any], kind: str, unit: str | None, ids: Ids) -> Select[Any]:
    column = projections.c.id
    if unit is not None and kind in OF_UNITS:
        first = release_key(unit, "")
        if connection.dialect.name == "sqlite":
            # Compare by bytes, so that the primary key is used; it is not for LIKE.
            rows = rows.where(column >= first, column < first[:-1] + chr(ord(first[-1]) + 1))
        else:
            rows = rows.where(column.startswith(first, autoescape=True))
    return rows.where(column.in_(sorted(ids[kind]))) if kind in ids else rows


def values_between(
    connection: Connection, after: int, last: int, kinds: Iterable[str], unit: str, ids: Ids
) -> list[ValueSpan]:
    """Return all values of these kinds that were valid at some entry from `after` to `last`.

    Values that belong to units are limited to this unit.
    """
    found = []
    for kind in kinds:
        rows = _narrowed(connection, _select_values(kind, after, last), kind, unit, ids)
        found += [ValueSpan(*row) for row in connection.execute(rows)]
    return found


def changed_entries(
    connection: Connection, after: int, last: int, kinds: Iterable[str], unit: str, ids: Ids, most: int
) -> set[int]:
    """Return the entries that set a value in the range of `values_between`, at least the first `most` and one more.

    No value is read.
    """
    column, found = projections.c, set[int]()
    for kind in kinds:
        rows = select(column.since).where(column.kind == kind, column.since > after, column.since <= last).distinct()
        rows = _narrowed(connection, rows, kind, unit, ids).order_by(column.since).limit(most + 1)
        found.update(connection.execute(rows).scalars())
    return found


@dataclass(frozen=True)
class ValueChange:
    """The value of an object in canonical JSON from the entry `since` on; None means that the entry removed it."""

    since: int
    kind: str
    id: str
    value: str | None


def changes_between(connection: Connection, after: int, last: int, kinds: Iterable[str]) -> list[ValueChange]:
    """Return the changes of the entries after `after` up to `last`, in the order of the log."""
    column, wanted = projections.c, list(kinds)
    made = select(column.since, column.kind, column.id, column.value)
    made = made.where(column.kind.in_(wanted), column.since > after, column.since <= last)
    found = [ValueChange(*row) for row in connection.execute(made)]
    ended = select(column.until, column.kind, column.id)
    ended = ended.where(column.kind.in_(wanted), column.until > after, column.until <= last)
    replaced = {(one.since, one.kind, one.id) for one in found}
    found += [ValueChange(*row, None) for row in connection.execute(ended) if tuple(row) not in replaced]
    return sorted(found, key=lambda one: one.since)


def state_at(connection: Connection, index: int, kinds: Iterable[str]) -> State:
    """Return the state after this entry, limited to these kinds.

    Raises:
        NotFound: there is no such entry.
    """
    rows = ((version.kind, version.id, version.value) for version in values_at(connection, index, kinds))
    return state_of(rows, index + 1, _time_of(connection, index))


def _time_of(connection: Connection, index: int) -> str:
    data = read_entry_bytes(connection, index)
    if data is None:
        raise NotFound(f"entry {index}: expected one of the log's entries, got none")
    return parse_entry(data).time


class Window(NamedTuple):
    """A page of the adapters that no release named: the first `most` after the name `past`."""

    past: str
    most: int


def unit_state_at(
    connection: Connection, index: int, unit: str, reviewed: Iterable[str], window: Window | None = None
) -> tuple[State, str | None]:
    """Return the state that decides what a unit may load after this entry, and the `past` of the next window, or None.

    Adapters are read by name, so that those of other units cost nothing: those that the unit's releases named, and
    those of `reviewed` within the window.

    Raises:
        NotFound: there is no such entry.
    """

    def rows(kinds: Iterable[str], ids: Ids = NO_IDS) -> list[tuple[str, str, str]]:
        return [(row.kind, row.id, row.value) for row in values_at(connection, index, kinds, unit, ids)]

    others = [kind for kind in ACCESS_KINDS if kind not in ("adapter", "dataset")]
    state = state_of(rows(others), index + 1, _time_of(connection, index))
    named = {release.current.adapter for release in state.releases.values()}
    before = {activation.adapter for release in state.releases.values() for activation in release.history}
    unnamed = sorted(before.union(reviewed) - named)
    following = None
    if window is not None:
        unnamed = [name for name in unnamed if name > window.past]
        following = unnamed[window.most - 1] if len(unnamed) > window.most else None
        unnamed = unnamed[: window.most]
    put_rows(state, rows(["adapter"], {"adapter": named.union(unnamed)}))
    put_rows(state, rows(["dataset"], {"dataset": {adapter.dataset for adapter in state.adapters.values()}}))
    return state, following


def entries_at(connection: Connection, indexes: Iterable[int]) -> list[bytes]:
    """Return the stored bytes of these entries, in the order of the log."""
    found = select(entries.c.bytes).where(entries.c.index.in_(list(indexes))).order_by(entries.c.index)
    return list(connection.execute(found).scalars())


def last_at(connection: Connection, partial_block: PartialBlock, time: str) -> int | None:
    """Return the last entry at or before this time, or None if the log begins later.

    After a clock reset, entries before it are found only by times before the reset. Entries that a wrong clock dated in
    the future are found by index only.
    """
    size = read_head(connection).size
    for low, high in reversed(find_stretches(connection, partial_block, size)):
        index = first_at(connection, time, low, high, after=True) - 1
        if index >= low:
            return index
    return None


def count_requests(
    connection: Connection, partial_block: PartialBlock, adapter: str, size: int, open_requests: int
) -> dict[str, int]:
    """Return the number of requests to an adapter in the log of this size, by outcome.

    Each request has two entries about the adapter, except open ones, which have one. So the counts come from the search
    index, without reading entries: all entries about the adapter minus those that are not of requests.
    """
    about: Filters = {"subjects": [f"adapter:{adapter}"], "before": size}
    filed = count_entries(connection, partial_block, about)
    listed = count_entries(connection, partial_block, {**about, "types": LISTED_OF_ADAPTERS})
    finished: Filters = {**about, "types": COUNTED_OF_ADAPTERS[1:]}
    failed = count_entries(connection, partial_block, {**finished, "outcome": "failure"})
    interrupted = count_entries(connection, partial_block, {**finished, "outcome": "interrupted"})
    answered = (filed - listed - open_requests) // 2 - failed - interrupted
    return {"answered": answered, "failure": failed, "interrupted": interrupted, "open": open_requests}
