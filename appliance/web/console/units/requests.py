"""What a unit asked: each request that ended, and what was refused. The log has no text of them, nor has this page."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import Time
from appliance.domain.serving.requests import RequestFinished, RequestRefused
from appliance.web.console.core.page import PAGE_ROWS, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context

_NO_ANSWER = {
    "failure": "cut off or not answered; who asked was told why",
    "interrupted": "who asked went away, or the service ended",
}
"""In place of a reason that only repeats the outcome."""


class RequestsQuery(Query):
    """`before`: the entry of the last one on the page before."""

    before: int | None = Field(default=None, ge=0)


class RequestRow(Value):
    """`count`: how many refusals the entry stands for. `detail`: how it ended, or why it was refused."""

    entry: int
    time: Time
    outcome: str
    detail: str
    task: str | None
    adapter: str | None
    request: str | None
    tokens_read: int | None
    tokens_written: int | None
    count: int


class Requests(Value):
    requests: tuple[RequestRow, ...]
    running: int
    next: int | None


def requests(context: Context, viewer: Viewer, query: RequestsQuery) -> Requests:
    found = context.ledger.find(
        types=[RequestFinished.type, RequestRefused.type],
        subjects=[f"unit:{viewer.name}"],
        before=query.before,
        newest=True,
        limit=PAGE_ROWS + 1,
    )
    rows = tuple(describe_row(data) for _, data in found[:PAGE_ROWS])
    return Requests(
        requests=rows,
        running=sum(one.unit == viewer.name for one in context.ledger.state.requests.values()),
        next=rows[-1].entry if len(found) > PAGE_ROWS else None,
    )


def describe_row(data: bytes) -> RequestRow:
    """Of an entry `request.finished` or `request.refused`."""
    entry = parse_entry(data)
    body: dict[str, Any] = dict(entry.body)
    refused = entry.type == RequestRefused.type
    reason = str(body.get("finish_reason"))
    return RequestRow(
        entry=entry.index,
        time=entry.time,
        outcome=entry.outcome,
        detail=f"{body['code']}: {body['message']}" if refused else _NO_ANSWER.get(reason, reason),
        task=body.get("task"),
        adapter=body.get("adapter"),
        request=body.get("request"),
        tokens_read=body.get("prompt_tokens"),
        tokens_written=body.get("completion_tokens"),
        count=int(body.get("count", 1)),
    )


def _table(value: Requests) -> Table:
    headers = tuple(RequestRow.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.requests])


PAGE = Page(
    *("/requests", "Requests", ("unit",), RequestsQuery, requests, "units/requests.html", _table),
    group="Your unit",
    symbol="log",
)
