"""Finding entries: by what stands in their columns and subjects, in the order of the log, a page at a time."""

from __future__ import annotations

from typing import Any, TypedDict

from sqlalchemy import Connection, Select, select

from appliance.errors import BadInput
from appliance.formats.timestamp import parse_time
from appliance.store.tables import entries, entry_subjects

MAX_PAGE = 10_000


class Filters(TypedDict, total=False):
    """All that are given must hold. Times as in entries: `since` <= time < `until`; `after` is an index."""

    type: str | None
    actor: str | None
    outcome: str | None
    unit: str | None
    subject: str | None
    since: str | None
    until: str | None
    after: int | None
    limit: int


def find_entries(connection: Connection, filters: Filters) -> list[tuple[int, bytes]]:
    """(index, bytes) by index. A page shorter than `limit` (100) is the last; the next is `after` its last index."""
    limit = filters.get("limit", 100)
    if not 1 <= limit <= MAX_PAGE:
        raise BadInput(f"search, limit: expected 1 to {MAX_PAGE}, got {limit}")
    statement, index = _source(filters.get("subject"))
    for name in ("type", "actor", "outcome", "unit"):
        if (value := filters.get(name)) is not None:
            statement = statement.where(entries.c[name] == value)
    if (after := filters.get("after")) is not None:
        statement = statement.where(index > after)
    # Time never decreases along the log, so that a bound on it is a bound on the index.
    if (since := filters.get("since")) is not None:
        first = _first_at(connection, since)
        if first is None:
            return []
        statement = statement.where(index >= first)
    if (until := filters.get("until")) is not None and (stop := _first_at(connection, until)) is not None:
        statement = statement.where(index < stop)
    found = connection.execute(statement.order_by(index).limit(limit))
    return [(row[0], row[1]) for row in found]


def _source(subject: str | None) -> tuple[Select[Any], Any]:
    """The rows to search, and the index column that the page walks along."""
    if subject is None:
        return select(entries.c.index, entries.c.bytes), entries.c.index
    statement = select(entry_subjects.c.index, entries.c.bytes).join(entries).where(entry_subjects.c.subject == subject)
    return statement, entry_subjects.c.index


def _first_at(connection: Connection, time: str) -> int | None:
    """The index of the first entry at this time or later."""
    parse_time(time, "search, time")
    first = select(entries.c.index).where(entries.c.time >= time).order_by(entries.c.time, entries.c.index).limit(1)
    index: int | None = connection.execute(first).scalar_one_or_none()
    return index
