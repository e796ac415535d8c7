"""The state as of any entry, read from the values that the projections keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, or_, select

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.records.serving import release_key
from appliance.domain.core.state import State
from appliance.domain.queries.could_load import JUDGED_BY, OF_UNITS
from appliance.domain.queries.rows import MODELS, put_rows, state_of
from appliance.domain.queries.uses import COUNTED_OF_ADAPTERS, TOLD_OF_ADAPTERS
from appliance.errors import BadInput, NotFound
from appliance.store.database.tables import entries, projections
from appliance.store.ledger.filing import Unfiled
from appliance.store.ledger.rows import read_entry_bytes, read_head
from appliance.store.ledger.search import Filters, count_entries, find_stretches, first_at


@dataclass(frozen=True)
class Version:
    """A thing's value in canonical JSON, as it stood from the entry `since` on."""

    kind: str
    id: str
    since: int
    value: str


Ids = Mapping[str, Collection[str]]
"""By kind, the identifiers that are wanted alone; every one of a kind that is not there."""
NO_IDS: Ids = MappingProxyType({})


def values_at(
    connection: Connection, index: int, kinds: Iterable[str], unit: str | None = None, ids: Ids = NO_IDS
) -> list[Version]:
    """What stood after this entry, by kind and identifier; with `unit`, of what belongs to units only what is its."""
    column = projections.c
    stood = (column.since <= index, or_(column.until.is_(None), column.until > index))
    found = []
    for kind in kinds:
        if kind not in MODELS:
            raise BadInput(f"state, kind: expected one of {', '.join(MODELS)}, got {kind!r}")
        rows = select(column.kind, column.id, column.since, column.value).where(column.kind == kind, *stood)
        rows = _narrowed(connection, rows, kind, unit, ids)
        found += [Version(*row) for row in connection.execute(rows.order_by(column.id))]
    return found


def _narrowed(connection: Connection, rows: Select[Any], kind: str, unit: str | None, ids: Ids) -> Select[Any]:
    column = projections.c.id
    if unit is not None and kind in OF_UNITS:
        first = release_key(unit, "")
        if connection.dialect.name == "sqlite":
            # By the bytes, so the primary key finds them; it does not for LIKE.
            rows = rows.where(column >= first, column < first[:-1] + chr(ord(first[-1]) + 1))
        else:
            rows = rows.where(column.startswith(first, autoescape=True))
    return rows.where(column.in_(sorted(ids[kind]))) if kind in ids else rows


def page_at(connection: Connection, index: int, kind: str, past: str, limit: int) -> list[Version]:
    """Of one kind, what stood after this entry: so many, from the first identifier after `past` on."""
    column = projections.c
    if kind not in MODELS:
        raise BadInput(f"state, kind: expected one of {', '.join(MODELS)}, got {kind!r}")
    rows = (
        select(column.kind, column.id, column.since, column.value)
        .where(column.kind == kind, column.id > past)
        .where(column.since <= index, or_(column.until.is_(None), column.until > index))
        .order_by(column.id)
        .limit(limit)
    )
    return [Version(*row) for row in connection.execute(rows)]


class Stood(NamedTuple):
    """A value that stood from the entry `since` to before `until`, or until now."""

    kind: str
    id: str
    since: int
    until: int | None
    value: str


def values_between(
    connection: Connection, after: int, last: int, kinds: Iterable[str], unit: str, ids: Ids
) -> list[Stood]:
    """Every value of these kinds that stood at some entry from `after` to `last`; of what belongs to units only what is
    the unit's."""
    column = projections.c
    stood = (column.since <= last, or_(column.until.is_(None), column.until > after))
    found = []
    for kind in kinds:
        rows = select(column.kind, column.id, column.since, column.until, column.value).where(
            column.kind == kind, *stood
        )
        found += [Stood(*row) for row in connection.execute(_narrowed(connection, rows, kind, unit, ids))]
    return found


def change_after(
    connection: Connection, after: int, last: int, kinds: Iterable[str], unit: str, ids: Ids, most: int
) -> int | None:
    """Of the same values, the entry of the first after `most` of them that were set up in between; None where there are
    no more."""
    column, found = projections.c, list[int]()
    for kind in kinds:
        rows = select(column.since).where(column.kind == kind, column.since > after, column.since <= last)
        rows = _narrowed(connection, rows, kind, unit, ids).order_by(column.since).limit(most + 1)
        found += connection.execute(rows).scalars()
    return sorted(found)[most] if len(found) > most else None


@dataclass(frozen=True)
class Changed:
    """A thing's value in canonical JSON from the entry `since` on; None: that entry removed it."""

    since: int
    kind: str
    id: str
    value: str | None


def changes_between(connection: Connection, after: int, last: int, kinds: Iterable[str]) -> list[Changed]:
    """What each entry after `after`, up to `last`, set or removed, in the log's order."""
    column, wanted = projections.c, list(kinds)
    made = select(column.since, column.kind, column.id, column.value)
    made = made.where(column.kind.in_(wanted), column.since > after, column.since <= last)
    found = [Changed(*row) for row in connection.execute(made)]
    ended = select(column.until, column.kind, column.id)
    ended = ended.where(column.kind.in_(wanted), column.until > after, column.until <= last)
    replaced = {(one.since, one.kind, one.id) for one in found}
    found += [Changed(*row, None) for row in connection.execute(ended) if tuple(row) not in replaced]
    return sorted(found, key=lambda one: one.since)


def state_at(connection: Connection, index: int, kinds: Iterable[str]) -> State:
    """The state after this entry, as far as these kinds go."""
    data = read_entry_bytes(connection, index)
    if data is None:
        raise NotFound(f"entry {index}: expected one of the log's entries, got none")
    rows = ((version.kind, version.id, version.value) for version in values_at(connection, index, kinds))
    return state_of(rows, index + 1, parse_entry(data).time)


class Window(NamedTuple):
    """Of the adapters that no release named: the first `most` after `past`, by name."""

    past: str
    most: int


def unit_state_at(
    connection: Connection, index: int, unit: str, reviewed: Iterable[str], window: Window | None = None
) -> tuple[State, str | None]:
    """The state after this entry as far as it decides what the unit may load, and the `past` of the next window, if
    there is one. Adapters are read by name, so that those of other units cost nothing: what the unit's releases named,
    and of `reviewed` those in the window."""
    data = read_entry_bytes(connection, index)
    if data is None:
        raise NotFound(f"entry {index}: expected one of the log's entries, got none")

    def rows(kinds: Iterable[str], ids: Ids = NO_IDS) -> list[tuple[str, str, str]]:
        return [(row.kind, row.id, row.value) for row in values_at(connection, index, kinds, unit, ids)]

    others = [kind for kind in JUDGED_BY if kind not in ("adapter", "dataset")]
    state = state_of(rows(others), index + 1, parse_entry(data).time)
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
    """The bytes of these entries as they are stored, in the log's order."""
    found = select(entries.c.bytes).where(entries.c.index.in_(list(indexes))).order_by(entries.c.index)
    return list(connection.execute(found).scalars())


def last_at(connection: Connection, unfiled: Unfiled, time: str) -> int | None:
    """The last entry at this time or before it; None where the log begins later.

    Where the clock was reset, that is the last before the reset only for a time before that of the reset. What a clock
    dated ahead is found by its index alone.
    """
    size = read_head(connection).size
    for low, high in reversed(find_stretches(connection, unfiled, size)):
        index = first_at(connection, time, low, high, after=True) - 1
        if index >= low:
            return index
    return None


def count_requests(
    connection: Connection, unfiled: Unfiled, adapter: str, size: int, open_requests: int
) -> dict[str, int]:
    """How many requests the adapter was given in the log of this size, and how they ended.

    Every request has two entries about the adapter, except open ones, which have one. So counts from the index are
    enough, and no entry is read: all entries about the adapter, less those that are not of requests.
    """
    about: Filters = {"subjects": [f"adapter:{adapter}"], "before": size}
    filed = count_entries(connection, unfiled, about)
    told = count_entries(connection, unfiled, {**about, "types": TOLD_OF_ADAPTERS})
    finished: Filters = {**about, "types": COUNTED_OF_ADAPTERS[1:]}
    failed = count_entries(connection, unfiled, {**finished, "outcome": "failure"})
    interrupted = count_entries(connection, unfiled, {**finished, "outcome": "interrupted"})
    answered = (filed - told - open_requests) // 2 - failed - interrupted
    return {"answered": answered, "failure": failed, "interrupted": interrupted, "open": open_requests}
