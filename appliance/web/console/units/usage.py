"""A unit's limits, what is left of each, and what it was answered since the service started."""

from __future__ import annotations

from appliance.domain.core.names import Time
from appliance.web.console.core.page import Page, Query, Table, Value, Viewer
from appliance.web.console.releases.releases import ReleaseRow, ReleasesQuery, releases
from appliance.workflows.core.context import Context


class Limit(Value):
    """`most` is 0 where there is no limit."""

    name: str
    most: int
    left: int | None


class Answered(Value):
    """Answers given whole, and those that were cut off or failed."""

    task: str
    adapter: str
    whole: int
    broken: int
    tokens_read: int
    tokens_written: int


class UsagePage(Value):
    limits: tuple[Limit, ...]
    answered: tuple[Answered, ...]
    since: Time
    running: int
    releases: tuple[ReleaseRow, ...]
    """Those whose approvals allow a number of answers a day."""


def usage(context: Context, viewer: Viewer, query: Query) -> UsagePage:
    limits, answered = context.usage(viewer.name)
    found = releases(context, viewer, ReleasesQuery()).releases
    return UsagePage(
        limits=tuple(Limit(**one._asdict()) for one in limits),
        answered=tuple(Answered(**one._asdict()) for one in answered),
        since=context.began,
        running=sum(one.unit == viewer.name for one in context.ledger.state.requests.values()),
        releases=tuple(one for one in found if one.most_a_day is not None),
    )


def _table(value: UsagePage) -> Table:
    headers = tuple(Answered.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.answered])


PAGE = Page(
    *("/usage", "Usage and limits", ("unit",), Query, usage, "units/usage.html", _table),
    group="Your unit",
    symbol="health",
)
