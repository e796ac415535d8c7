"""A unit's requests, refusals, usage and limits. The log and these pages contain no text of the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time
from appliance.domain.serving.requests import RequestFinished, RequestRefused
from appliance.web.console.core.page import PAGE_ROWS, BeforeQuery, ListPage, Page, PageValue, Query, Viewer, columns
from appliance.web.console.releases.releases import ReleaseRow, ReleasesQuery, releases
from appliance.web.operations.limits import Quotas, Usage
from appliance.web.operations.metrics import Metrics, ResponseCounts
from appliance.workflows.core.context import LedgerContext

_NO_ANSWER = {
    "failure": "cut off or failed; the client got the reason",
    "interrupted": "who asked went away, or the service ended",
}
"""Texts for finish reasons that only repeat the outcome."""


class RequestRow(PageValue):
    """A request or a count of refusals.

    `count` is the number of refusals that the entry represents. `detail` says how the request ended or why it was
    refused.
    """

    entry: int
    time: Time
    outcome: str
    detail: str
    served_model: str | None
    adapter: str | None
    request: str | None
    tokens_read: int | None
    tokens_written: int | None
    count: int


class Requests(ListPage[RequestRow]):
    """The page of the unit's requests."""

    running: int


def requests(context: LedgerContext, viewer: Viewer, query: BeforeQuery) -> Requests:
    """Return the unit's requests, newest first."""
    found = context.ledger.find(
        types=[RequestFinished.type, RequestRefused.type],
        subjects=[f"unit:{viewer.name}"],
        before=query.before,
        newest=True,
        limit=PAGE_ROWS + 1,
    )
    running = sum(one.unit == viewer.name for one in context.ledger.state.requests.values())
    return Requests.of((describe_row(data) for _, data in found), running=running)


def describe_row(data: bytes) -> RequestRow:
    """Return the row of an entry `request.finished` or `request.refused`."""
    entry = parse_entry(data)
    body: dict[str, Any] = dict(entry.body)
    is_refused = entry.type == RequestRefused.type
    reason = str(body.get("finish_reason"))
    return RequestRow(
        entry=entry.index,
        time=entry.time,
        outcome=entry.outcome,
        detail=str(body["code"]) if is_refused else _NO_ANSWER.get(reason, reason),
        served_model=body.get("served_model"),
        adapter=body.get("adapter"),
        request=body.get("request"),
        tokens_read=body.get("prompt_tokens"),
        tokens_written=body.get("completion_tokens"),
        count=int(body.get("count", 1)),
    )


PAGE = Page("/requests", "Requests", requests, columns(), seen_by=("unit",), group="Your unit", symbol="log")


class UsagePage(PageValue):
    """The page of the unit's usage and limits."""

    limits: tuple[Usage, ...]
    answered: tuple[ResponseCounts, ...]
    since: Time
    running: int
    releases: tuple[ReleaseRow, ...]
    """Releases whose approvals limit the answers per day."""


Measure = Callable[[str], tuple[Sequence[Usage], Sequence[ResponseCounts]]]
"""Function that returns a unit's limits with what is left of them, and its answers since the start."""


def measure(quotas: Quotas, metrics: Metrics, unit: str) -> tuple[Sequence[Usage], Sequence[ResponseCounts]]:
    """Return a unit's limits with what is left of them, and its answers since the start."""
    return quotas.usage(unit), metrics.count_responses(unit)


def usage(measure: Measure, context: LedgerContext, viewer: Viewer, query: Query) -> UsagePage:
    """Return the unit's limits and usage."""
    limits, answered = measure(viewer.name)
    found = releases(context, viewer, ReleasesQuery()).rows
    return UsagePage(
        limits=tuple(limits),
        answered=tuple(answered),
        since=context.began,
        running=sum(one.unit == viewer.name for one in context.ledger.state.requests.values()),
        releases=tuple(one for one in found if one.most_a_day is not None),
    )


def make_usage_page(measure: Measure) -> Page:
    """Return the page of the unit's usage and limits."""
    return Page(
        "/usage",
        "Usage and limits",
        partial(usage, measure),
        columns("answered"),
        seen_by=("unit",),
        group="Your unit",
        symbol="health",
    )
