"""The pages of the log and of the archives.

All filters of the log are in its address, and the page has the same length for any length of the log. An archive page
shows what was removed from the log, by whose orders, and the file that has it.
"""

from __future__ import annotations

from dataclasses import asdict
from operator import attrgetter

from pydantic import Field

from appliance.api.releases import Review
from appliance.domain.actions.registry import EVENTS
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.records.site import Archive
from appliance.formats.core.timestamp import parse_moment
from appliance.reports.review.words import name_decision
from appliance.web.console.core.page import PAGE_ROWS, BeforeQuery, ListPage, Page, PageValue, Query, Viewer, columns
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.log import LogFilters, complete_subject, count_facets, search
from appliance.workflows.releases.review import reviews_among


class LogQuery(Query):
    """A search. `since` and `until` are times or whole days. `before` and `after` select the page."""

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
        """Return the parameters of the same search on another page."""
        return {**self.model_dump(), "before": None, "after": None, **place}

    def narrowed(self, name: str, value: str) -> dict[str, object]:
        """Return the parameters of the search with one more value, from its first page.

        All subjects of a search must match.
        """
        added = {"type": (value,), "subject": (*self.subject, value)}
        return self.page(**{name: added.get(name, value)})


class EntryRow(PageValue):
    """An entry in the list."""

    index: int
    time: str
    type: str
    actor: str
    source: str
    outcome: str
    subjects: tuple[str, ...]
    decision: str | None
    """Decision of a review and its state now."""


class FacetValue(PageValue):
    """A value and its count.

    `is_least` is true if there may be more, because long searches count only the newest blocks.
    """

    value: str
    count: int
    is_least: bool


class Facet(PageValue):
    """A filter and the counts of its values."""

    name: str
    values: tuple[FacetValue, ...]


class Log(PageValue):
    """The result of a search.

    `count` is the number of matching entries; with `is_least` there may be more. `older` and `newer` are the entries at
    which the next page in that direction begins, or None.
    """

    entries: tuple[EntryRow, ...]
    size: int
    count: int
    is_least: bool
    older: int | None
    newer: int | None
    unknown: tuple[str, ...]
    archived: tuple[str, ...]
    """Archives that removed the matching entries, if there are no others."""
    facets: tuple[Facet, ...]
    """Values of filters that the search has not chosen."""
    types: tuple[str, ...]
    units: tuple[str, ...]


def log(context: LedgerContext, viewer: Viewer, query: LogQuery) -> Log:
    """Return the entries that match the search."""
    newest, now = query.after is None, context.clock()
    filters = LogFilters(
        type=list(query.type),
        subject=[complete_subject(context.ledger.state, one) for one in query.subject],
        actor=query.actor,
        outcome=query.outcome,
        unit=query.unit,
        since=None if query.since is None else parse_moment(query.since, "since", now),
        until=None if query.until is None else parse_moment(query.until, "until", now, end_of_day=True),
        before=query.before,
        after=query.after,
        newest=newest,
        limit=PAGE_ROWS + 1,
    )
    answer = search(context, filters)
    page_entries, more = list(answer.entries[:PAGE_ROWS]), len(answer.entries) > PAGE_ROWS
    page_entries = page_entries if newest else page_entries[::-1]
    reviews = reviews_among(context, page_entries)
    rows = tuple(_row(data, reviews.get(index)) for index, data in page_entries)
    first, last = (rows[0].index, rows[-1].index) if rows else (None, None)
    total, counted = count_facets(context, filters, [subject for row in rows for subject in row.subjects])
    facets = tuple(
        Facet(name=name, values=tuple(FacetValue(**asdict(one)) for one in counts)) for name, counts in counted.items()
    )
    state = context.ledger.state
    return Log(
        entries=rows,
        size=state.size,
        count=total.count,
        is_least=total.is_least,
        older=last if (more or not newest) and last else None,
        newer=first if (query.before is not None or (not newest and more)) else None,
        unknown=tuple(answer.unknown),
        archived=answer.archived,
        facets=facets,
        types=tuple(sorted(EVENTS)),
        units=tuple(sorted(one.name for one in state.principals.values() if "unit" in one.roles)),
    )


def _row(data: bytes, review: Review | None) -> EntryRow:
    entry = parse_entry(data)
    return EntryRow(
        index=entry.index,
        time=entry.time,
        type=entry.type,
        actor=entry.actor,
        source=entry.source,
        outcome=entry.outcome,
        subjects=entry.subjects,
        decision=None if review is None else f"{name_decision(review.decision)} for {review.unit}, {review.state}",
    )


PAGE = Page("/log", "Log", log, columns("entries"), group="Audit", symbol="log", is_search=True)


class Archives(ListPage[Archive]):
    """Archives, the newest first."""

    count: int
    """Number of archives on all pages."""
    removed: int
    """Number of entries that they removed."""


def archives(context: LedgerContext, viewer: Viewer, query: BeforeQuery) -> Archives:
    """Return a page of the archives."""
    by_entry = attrgetter("index")
    every = sorted(context.ledger.state.archives.values(), key=by_entry)
    removed = sum(one.count for one in every)
    return Archives.of(query.list_newest(every), by_entry, count=len(every), removed=removed)


ARCHIVES_PAGE = Page("/archives", "Archives", archives, columns(), group="Audit", symbol="archive")
