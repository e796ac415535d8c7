"""The log: every filter is a part of the address, and a page is as long as a screen whatever the log's length."""

from __future__ import annotations

import re
from dataclasses import asdict

from pydantic import Field

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import add_seconds
from appliance.domain.rulebook.registry import EVENTS
from appliance.errors import BadInput
from appliance.formats.core.timestamp import encode_time, parse_time
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context
from appliance.workflows.queries import log as queries
from appliance.workflows.queries.facets import count_facets
from appliance.workflows.queries.log import LogFilters
from appliance.workflows.releases.review import reviews_among

OUTCOMES = ("success", "failure", "denied", "pending", "interrupted")
_DAY_S = 86_400
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class LogQuery(Query):
    """`since` and `until` are times or days; a day is meant whole. `before` and `after` are the pages."""

    type: tuple[str, ...] = ()
    subject: tuple[str, ...] = ()
    actor: str | None = None
    outcome: str | None = None
    unit: str | None = None
    since: str | None = None
    until: str | None = None
    before: int | None = Field(default=None, ge=0)
    after: int | None = Field(default=None, ge=0)

    def page(self, **place: object) -> dict[str, object]:
        """The same search on another page, as parameters of an address."""
        return {**self.model_dump(), "before": None, "after": None, **place}

    def narrowed(self, name: str, value: str) -> dict[str, object]:
        """The search with one value more, from its beginning. All subjects of a search must hold."""
        added = {"type": (value,), "subject": (*self.subject, value)}
        return self.page(**{name: added.get(name, value)})


class Row(Value):
    index: int
    time: str
    type: str
    actor: str
    source: str
    outcome: str
    subjects: tuple[str, ...]
    decision: str | None
    """Of a review: what was decided, and what that counts for now."""


class FacetValue(Value):
    """`is_least`: there may be more, since only the newest blocks of a long search are counted."""

    value: str
    count: int
    is_least: bool


class Facet(Value):
    name: str
    values: tuple[FacetValue, ...]


class Log(Value):
    """`count`: entries that fit the search; there may be more where `is_least`. `older` and `newer`: the entry that the
    next page in that direction begins at, None where there is none."""

    entries: tuple[Row, ...]
    size: int
    count: int
    is_least: bool
    older: int | None
    newer: int | None
    unknown: tuple[str, ...]
    facets: tuple[Facet, ...]
    """Of what the search has not chosen yet."""
    types: tuple[str, ...]
    units: tuple[str, ...]


def log(context: Context, viewer: Viewer, query: LogQuery) -> Log:
    newest = query.after is None
    filters = LogFilters(
        type=list(query.type),
        subject=list(query.subject),
        actor=query.actor,
        outcome=query.outcome,
        unit=query.unit,
        since=parse_moment(query.since, "since"),
        until=parse_moment(query.until, "until", end_of_day=True),
        before=query.before,
        after=query.after,
        newest=newest,
        limit=PAGE_ROWS + 1,
    )
    answer = queries.search(context, filters)
    found, more = list(answer.entries[:PAGE_ROWS]), len(answer.entries) > PAGE_ROWS
    found = found if newest else found[::-1]
    reviews = reviews_among(context, found)
    rows = tuple(_row(data, reviews.get(index)) for index, data in found)
    first, last = (rows[0].index, rows[-1].index) if rows else (None, None)
    state = context.ledger.state
    total, counted = count_facets(context, filters, [subject for row in rows for subject in row.subjects])
    facets = tuple(
        Facet(name=name, values=tuple(FacetValue(**asdict(one)) for one in counts)) for name, counts in counted.items()
    )
    return Log(
        entries=rows,
        size=state.size,
        count=total.count,
        is_least=total.is_least,
        older=last if (more or not newest) and last else None,
        newer=first if (query.before is not None or (not newest and more)) else None,
        unknown=tuple(answer.unknown),
        facets=facets,
        types=tuple(sorted(EVENTS)),
        units=tuple(sorted(one.name for one in state.principals.values() if "unit" in one.roles)),
    )


def _row(data: bytes, review: dict[str, object] | None) -> Row:
    entry = parse_entry(data)
    return Row(
        index=entry.index,
        time=entry.time,
        type=entry.type,
        actor=entry.actor,
        source=entry.source,
        outcome=entry.outcome,
        subjects=entry.subjects,
        decision=None if review is None else f"{review['decision']} for {review['unit']}, {review['state']}",
    )


def parse_moment(text: str | None, what: str, *, end_of_day: bool = False) -> str | None:
    """A day or a time as entries have it; BadInput for another text."""
    if text is None:
        return None
    if _DATE.fullmatch(text):
        day = encode_time(parse_time(f"{text}T00:00:00.000Z", what))
        return add_seconds(day, _DAY_S) if end_of_day else day
    try:
        return encode_time(parse_time(text, what))
    except BadInput:
        expected = "a day such as 2026-11-24 or a time such as 2026-11-24T10:30:00.000Z"
        raise BadInput(f"{what}: expected {expected}, got {text!r:.60}") from None


def _table(value: Log) -> Table:
    headers = ("index", "time", "type", "actor", "source", "outcome", "subjects", "decision")
    return Table(headers, [[getattr(row, name) for name in headers] for row in value.entries])


PAGE = Page("/log", "Log", PEOPLE, LogQuery, log, "auditors/log.html", _table, group="Audit", symbol="log")
