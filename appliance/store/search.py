"""Finding entries: by what stands in their columns and subjects, in the order of the log, a page at a time.

One filter leads: the page walks its index, and the others are asked of each entry on the way. Which one leads is
counted, up to a limit, since no database knows how rare a value is without statistics that nobody has made. Where all
are frequent, their indexes are walked beside one another, and an entry is read where they meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    bindparam,
    exists,
    func,
    intersect,
    literal,
    select,
    union_all,
)

from appliance.errors import BadInput
from appliance.formats.timestamp import parse_time
from appliance.store.prepared import Prepared
from appliance.store.rows import read_head
from appliance.store.tables import UNUSUAL, entries, entry_subjects

MAX_PAGE = 10_000
MAX_TYPES = 64
"""As many walks run beside one another; there are fewer types."""

_ENOUGH = 20_000
"""Rows counted of a filter before it is taken for a frequent one; half a millisecond."""

_UNIT = "unit:"
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
class _Walk:
    """Rows of one table that follow one another in one of its indexes; `answers` names what they fulfil."""

    table: Table
    conditions: tuple[ColumnElement[bool], ...]
    answers: frozenset[str]

    @property
    def index(self) -> Any:
        return self.table.c.index


@dataclass(frozen=True)
class Plan:
    """Walks that run beside one another: an entry is on one of them, or where they `meet` on all. Without a walk there
    is none."""

    walks: tuple[_Walk, ...]
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
    pages = [_page(walk, filters, first, stop) for walk in plan.walks]
    statement: Any = pages[0] if len(pages) == 1 else union_all(*pages)
    order = plan.walks[0].index if len(pages) == 1 else statement.selected_columns[0]
    return [(row[0], row[1]) for row in connection.execute(_ordered(statement, order, filters).limit(limit))]


def _meeting(
    connection: Connection, plan: Plan, filters: Filters, first: int, stop: int, limit: int
) -> list[tuple[int, bytes]]:
    """The entries at which all the walks meet, as many of them at a time as the page has."""
    answered = frozenset[str]().union(*(walk.answers for walk in plan.walks))
    found: list[tuple[int, bytes]] = []
    while len(found) < limit and first < stop:
        met = _met(connection, plan.walks, filters, first, stop).limit(limit)
        places = connection.execute(met).scalars().all()
        rows = select(entries.c.index, entries.c.bytes).where(entries.c.index.in_(places))
        rows = rows.where(*_unanswered(answered, filters))
        found += [(row[0], row[1]) for row in connection.execute(_ordered(rows, entries.c.index, filters))]
        if len(places) < limit:
            break
        first, stop = (first, places[-1]) if filters.get("newest") else (places[-1] + 1, stop)
    return found[:limit]


def _met(connection: Connection, walks: Sequence[_Walk], filters: Filters, first: int, stop: int) -> Any:
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
    """How many entries fit; from an index alone where one filter is all that is asked."""
    first, stop = span(connection, filters)
    if first >= stop:
        return 0
    total = 0
    for walk in plan_search(connection, filters, first, stop, meeting=False).walks:
        unanswered = _unanswered(walk.answers, filters)
        statement = select(func.count()).select_from(walk.table)
        if unanswered and walk.table is not entries:
            statement = statement.join(entries, entries.c.index == walk.index)
        counted = statement.where(*walk.conditions, *_bounds(walk, first, stop), *unanswered)
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
    """The walks with the fewest rows between the bounds; where all are frequent, those that can meet, if any can."""
    best, least = [_Walk(entries, (), frozenset())], stop - first
    frequent: list[_Walk] = []
    for walks in sorted(_candidates(filters), key=lambda walks: -len(walks[0].answers)):
        rows = sum(_count(connection, walk, first, stop) for walk in walks)
        if rows == 0:
            return Plan(())
        if rows < least:
            best, least = walks, rows
        if len(walks) == 1 and not any(walks[0].answers <= other.answers for other in frequent):
            frequent += walks
    if meeting and least >= _ENOUGH and len(frequent) > 1:
        return Plan(tuple(frequent), meet=True)
    return Plan(tuple(best))


def _candidates(filters: Filters) -> Iterator[list[_Walk]]:
    types, subjects = filters.get("types", ()), _subjects(filters)
    if len(types) > MAX_TYPES:
        raise BadInput(f"search, types: expected at most {MAX_TYPES}, got {len(types)}")
    for subject in subjects:
        yield [_Walk(entry_subjects, (entry_subjects.c.subject == subject,), frozenset({subject}))]
    if types:
        yield [_Walk(entries, (entries.c.type == kind,), frozenset({"types"})) for kind in types]
        for subject in filter(_names_unit, subjects):
            unit, both = entries.c.unit == subject.removeprefix(_UNIT), frozenset({"types", subject})
            yield [_Walk(entries, (unit, entries.c.type == kind), both) for kind in types]
    if (actor := filters.get("actor")) is not None:
        yield [_Walk(entries, (entries.c.actor == actor,), frozenset({"actor"}))]
    if (outcome := filters.get("outcome")) not in (None, "success"):
        yield [_Walk(entries, (entries.c.outcome == outcome, UNUSUAL), frozenset({"outcome"}))]


def _subjects(filters: Filters) -> list[str]:
    """What entries must be filed under; a unit is one of an entry's subjects, and stands in a column besides."""
    unit = filters.get("unit")
    return list(dict.fromkeys([*filters.get("subjects", ()), *([] if unit is None else [_UNIT + unit])]))


def _names_unit(subject: str) -> bool:
    return subject.startswith(_UNIT)


def _count(connection: Connection, walk: _Walk, first: int, stop: int) -> int:
    within = select(literal(1)).select_from(walk.table).where(*walk.conditions, *_bounds(walk, first, stop))
    counted: int = connection.execute(select(func.count()).select_from(within.limit(_ENOUGH).subquery())).scalar_one()
    return counted


def _bounds(walk: _Walk, first: int, stop: int) -> tuple[ColumnElement[bool], ...]:
    return walk.index >= first, walk.index < stop


def _page(walk: _Walk, filters: Filters, first: int, stop: int) -> Select[Any]:
    statement = select(walk.index, entries.c.bytes)
    if walk.table is not entries:
        statement = statement.join(entries, entries.c.index == walk.index)
    return statement.where(*walk.conditions, *_bounds(walk, first, stop), *_unanswered(walk.answers, filters))


def _unanswered(answered: frozenset[str], filters: Filters) -> list[ColumnElement[bool]]:
    return [check for name, check in _checks(filters) if name not in answered]


def _checks(filters: Filters) -> Iterator[tuple[str, ColumnElement[bool]]]:
    """What an entry must fulfil, said so that no database takes it for something to walk."""
    if types := filters.get("types"):
        yield "types", func.coalesce(entries.c.type, "").in_(types)
    for name, column in (("actor", entries.c.actor), ("outcome", entries.c.outcome)):
        if (value := filters.get(name)) is not None:
            yield name, func.coalesce(column, "") == value
    for subject in _subjects(filters):
        if _names_unit(subject):
            yield subject, func.coalesce(entries.c.unit, "") == subject.removeprefix(_UNIT)
            continue
        filed = entry_subjects.alias()
        yield subject, exists(literal(1)).where(filed.c.index == entries.c.index, filed.c.subject == subject)
