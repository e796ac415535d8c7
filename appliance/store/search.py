"""Finding entries: by the keys that they are filed under, in the order of the log, a page at a time.

One filter leads: the page walks its key, and the others are asked of each entry on the way. Which one leads is
counted, up to a limit, since no database knows how rare a value is without statistics that nobody has made. Where all
are frequent, their keys are walked beside one another, and an entry is read where they meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypedDict, get_args

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    exists,
    func,
    intersect,
    literal,
    select,
    union_all,
)

from appliance.domain.entry import Outcome
from appliance.errors import BadInput
from appliance.formats.timestamp import parse_time
from appliance.store.prepared import Prepared
from appliance.store.rows import USUAL, read_head
from appliance.store.tables import entries, entry_keys

MAX_PAGE = 10_000
MAX_TYPES = 64
"""As many walks run beside one another; there are fewer types."""

_ENOUGH = 20_000
"""Rows counted of a filter before it is taken for a frequent one; half a millisecond."""

_TIME = Prepared(select(entries.c.time).where(entries.c.index == bindparam("at")))


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
class Walk:
    """Entries that follow one another in the log: those filed under a key, or all where there is none."""

    key: str | None

    @property
    def index(self) -> Any:
        return entries.c.index if self.key is None else entry_keys.c.index

    @property
    def conditions(self) -> tuple[ColumnElement[bool], ...]:
        return () if self.key is None else (entry_keys.c.key == self.key,)


@dataclass(frozen=True)
class _Filter:
    """An entry must be filed under one of the keys; or under none of them, where they are to be `absent`."""

    keys: tuple[str, ...]
    absent: bool = False


@dataclass(frozen=True)
class Plan:
    """Walks that run beside one another: an entry is on one of them, or where they `meet` on all. Without a walk there
    is none. `rest` is what they do not answer."""

    walks: tuple[Walk, ...]
    rest: tuple[_Filter, ...] = ()
    meet: bool = False


def find_entries(connection: Connection, filters: Filters) -> list[tuple[int, bytes]]:
    """(index, bytes) in the order walked. A page shorter than `limit` (100) is the last; the next is `after` its last
    index, or `before` it when it was walked backwards."""
    if unknown := filters.keys() - Filters.__annotations__.keys():
        raise BadInput(f"search: expected known filters, got {', '.join(sorted(unknown))}")
    limit = filters.get("limit", 100)
    if not 1 <= limit <= MAX_PAGE:
        raise BadInput(f"search, limit: expected 1 to {MAX_PAGE}, got {limit}")
    first, stop = span(connection, filters)
    if first >= stop:
        return []
    plan = plan_search(connection, filters, first, stop)
    if not plan.walks:
        return []
    if plan.meet:
        return _meeting(connection, plan, filters, first, stop, limit)
    pages = [_page(walk, plan.rest, first, stop) for walk in plan.walks]
    statement: Any = pages[0] if len(pages) == 1 else union_all(*pages)
    order = plan.walks[0].index if len(pages) == 1 else statement.selected_columns[0]
    return [(row[0], row[1]) for row in connection.execute(_ordered(statement, order, filters).limit(limit))]


def _meeting(
    connection: Connection, plan: Plan, filters: Filters, first: int, stop: int, limit: int
) -> list[tuple[int, bytes]]:
    """The entries at which all the walks meet, as many of them at a time as the page has."""
    found: list[tuple[int, bytes]] = []
    while len(found) < limit and first < stop:
        met = _met(connection, plan.walks, filters, first, stop).limit(limit)
        places = connection.execute(met).scalars().all()
        rows = select(entries.c.index, entries.c.bytes).where(entries.c.index.in_(places))
        rows = rows.where(*_fulfils(plan.rest, entries.c.index))
        found += [(row[0], row[1]) for row in connection.execute(_ordered(rows, entries.c.index, filters))]
        if len(places) < limit:
            break
        first, stop = (first, places[-1]) if filters.get("newest") else (places[-1] + 1, stop)
    return found[:limit]


def _met(connection: Connection, walks: Sequence[Walk], filters: Filters, first: int, stop: int) -> Any:
    """The indexes that are on every walk, said so that each database runs along the walks and sorts nothing."""
    parts = [select(walk.index).where(*walk.conditions, *_bounds(walk, first, stop)) for walk in walks]
    if connection.dialect.name == "sqlite":
        met: Any = intersect(*parts)
        return _ordered(met, met.selected_columns[0], filters)
    leading, *others = (part.subquery() for part in parts)
    joined: Any = leading
    for other in others:
        joined = joined.join(other, other.c.index == leading.c.index)
    return _ordered(select(leading.c.index).select_from(joined), leading.c.index, filters)


def _ordered(statement: Any, column: Any, filters: Filters) -> Any:
    return statement.order_by(column.desc() if filters.get("newest") else column)


def count_entries(connection: Connection, filters: Filters) -> int:
    """How many entries fit, counted from their keys alone."""
    first, stop = span(connection, filters)
    if first >= stop:
        return 0
    plan = plan_search(connection, filters, first, stop, meeting=False)
    total = 0
    for walk in plan.walks:
        statement = select(func.count()).select_from(walk.index.table)
        counted = statement.where(*walk.conditions, *_bounds(walk, first, stop), *_fulfils(plan.rest, walk.index))
        total += int(connection.execute(counted).scalar_one())
    return total


def span(connection: Connection, filters: Filters) -> tuple[int, int]:
    """[first, stop) of the indexes that the bounds on index and time leave."""
    size = read_head(connection).size
    after, before = filters.get("after"), filters.get("before")
    first = 0 if after is None else max(after + 1, 0)
    stop = size if before is None else min(before, size)
    if (since := filters.get("since")) is not None:
        first = max(first, first_at(connection, since, size))
    if (until := filters.get("until")) is not None:
        stop = min(stop, first_at(connection, until, size))
    return first, stop


def first_at(connection: Connection, time: str, size: int, *, after: bool = False) -> int:
    """The index of the first entry at this time or later, or `after` it; `size` where there is none. Time never
    decreases along the log, so that halving it finds the place."""
    parse_time(time, "search, time")
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        row = _TIME.execute(connection, {"at": middle}).fetchone()
        if row is not None and (row[0] < time or (after and row[0] == time)):
            low = middle + 1
        else:
            high = middle
    return low


def plan_search(connection: Connection, filters: Filters, first: int, stop: int, *, meeting: bool = True) -> Plan:
    """The walks with the fewest rows between the bounds; where all are frequent, the two rarest that can meet, if any
    can: each row of a third would cost as much as one of theirs."""
    asked = _asked(filters)
    leading: _Filter | None = None
    least = stop - first
    frequent: list[tuple[int, _Filter]] = []
    for one in (one for one in asked if not one.absent):
        rows = sum(_count(connection, Walk(key), first, stop) for key in one.keys)
        if rows == 0:
            return Plan(())
        if rows < least:
            leading, least = one, rows
        if len(one.keys) == 1:
            frequent.append((rows, one))
    if meeting and least >= _ENOUGH and len(frequent) > 1:
        rarest = [one for _, one in sorted(frequent, key=itemgetter(0))[:2]]
        return Plan(tuple(Walk(one.keys[0]) for one in rarest), _without(asked, rarest), meet=True)
    if leading is None:
        return Plan((Walk(None),), tuple(asked))
    return Plan(tuple(map(Walk, leading.keys)), _without(asked, [leading]))


def _asked(filters: Filters) -> list[_Filter]:
    types, unit, actor, outcome = filters.get("types", ()), *map(filters.get, ("unit", "actor", "outcome"))
    if len(types) > MAX_TYPES:
        raise BadInput(f"search, types: expected at most {MAX_TYPES}, got {len(types)}")
    subjects = dict.fromkeys([*filters.get("subjects", ()), *([] if unit is None else [f"unit:{unit}"])])
    asked = [_Filter((subject,)) for subject in subjects]
    asked += [_Filter(tuple(f"type={kind}" for kind in dict.fromkeys(types)))] if types else []
    asked += [] if actor is None else [_Filter((f"actor={actor}",))]
    if outcome == USUAL:
        asked.append(_Filter(tuple(f"outcome={other}" for other in get_args(Outcome) if other != USUAL), absent=True))
    elif outcome is not None:
        asked.append(_Filter((f"outcome={outcome}",)))
    return asked


def _without(asked: Sequence[_Filter], answered: Sequence[_Filter]) -> tuple[_Filter, ...]:
    return tuple(one for one in asked if one not in answered)


def _count(connection: Connection, walk: Walk, first: int, stop: int) -> int:
    """Its rows between the bounds; from so many on an estimate, by how far they reach."""
    within = select(walk.index.label("at")).where(*walk.conditions, *_bounds(walk, first, stop)).order_by(walk.index)
    some = within.limit(_ENOUGH).subquery()
    rows: int
    rows, last = connection.execute(select(func.count(), func.max(some.c.at))).one()
    return rows if rows < _ENOUGH else max(rows, rows * (stop - first) // (last - first + 1))


def _bounds(walk: Walk, first: int, stop: int) -> tuple[ColumnElement[bool], ...]:
    return walk.index >= first, walk.index < stop


def _page(walk: Walk, rest: Sequence[_Filter], first: int, stop: int) -> Select[Any]:
    statement = select(walk.index.label("at"), entries.c.bytes)
    if walk.key is not None:
        statement = statement.join(entries, entries.c.index == walk.index)
    return statement.where(*walk.conditions, *_bounds(walk, first, stop), *_fulfils(rest, walk.index))


def _fulfils(rest: Sequence[_Filter], index: Any) -> list[ColumnElement[bool]]:
    """What the entry at this index must be filed under as well, asked of each one."""
    checks: list[ColumnElement[bool]] = []
    for one in rest:
        filed = entry_keys.alias()
        found = exists(literal(1)).where(filed.c.key.in_(one.keys), filed.c.index == index)
        checks.append(~found if one.absent else found)
    return checks
