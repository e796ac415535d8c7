"""What waits for a reviewer: adapters whose quorum is not there yet, and which they may decide on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records import Adapter
from appliance.domain.core.state import State
from appliance.domain.releases.approval import counted, duties, latest_reviews, needed, quorum
from appliance.domain.releases.blocking import is_open
from appliance.domain.releases.tiers import current_request, reviewed_until, tier_of
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context


class Waiting(Value):
    """`unit` is None where nobody has requested a release yet. `mine`: the viewer may decide, and has not."""

    adapter: str
    unit: str | None
    tier: str | None
    exposure: str | None
    purpose: str | None
    asked_by: str
    asked: Time | None
    until: Time | None
    approvals: int
    needed: int
    open_findings: int
    mine: bool
    entry: int


class Queue(Value):
    waiting: tuple[Waiting, ...]
    next: int | None


class QueueQuery(Query):
    before: int | None = None
    everyone: bool = False


def queue(context: Context, viewer: Viewer, query: QueueQuery) -> Queue:
    found = list(
        islice(waiting_for(context.ledger.state, context.now(context.ledger.state), viewer, query), PAGE_ROWS + 1)
    )
    shown = found[:PAGE_ROWS]
    return Queue(waiting=tuple(shown), next=shown[-1].entry if len(found) > PAGE_ROWS else None)


def waiting_for(state: State, now: Time, viewer: Viewer, query: QueueQuery) -> Iterator[Waiting]:
    """The newest first. With `everyone` also what waits for others."""
    for adapter in reversed(state.adapters.values()):
        if adapter.revoked is not None or adapter.quarantined is not None:
            continue
        if query.before is not None and adapter.index >= query.before:
            continue
        units: list[str | None] = [*_requested(state, adapter)]
        for unit in units or [None]:
            if (one := _waiting(state, now, viewer, adapter, unit)) is not None and (one.mine or query.everyone):
                yield one


def _requested(state: State, adapter: Adapter) -> list[str]:
    units = sorted({request.unit for request in adapter.requests})
    return [unit for unit in units if current_request(state, adapter, unit) is not None]


def _waiting(state: State, now: Time, viewer: Viewer, adapter: Adapter, unit: str | None) -> Waiting | None:
    request = None if unit is None else current_request(state, adapter, unit)
    tier = None if request is None else tier_of(state.parameters, request)
    reviewed = {review.unit for review in adapter.reviews}
    if unit is None and len(reviewed) == 1:
        (unit,) = reviewed
    if unit is not None and not quorum(state, adapter, unit, now):
        return None
    if unit is not None and any(review.decision == "reject" for review in latest_reviews(state, adapter, unit)):
        return None
    approved = [] if unit is None else counted(state, adapter, unit, now)
    decided = any(review.reviewer == viewer.name for review in approved)
    return Waiting(
        adapter=versioned(adapter.name, adapter.version),
        unit=unit,
        tier=None if tier is None else tier.name,
        exposure=None if request is None else request.exposure,
        purpose=None if request is None else request.purpose,
        asked_by=adapter.ordered_by if request is None else request.requested_by,
        asked=None if request is None else request.time,
        until=None if request is None else reviewed_until(state.parameters, request),
        approvals=len(approved),
        needed=needed(state.parameters, tier).reviewers,
        open_findings=sum(is_open(state, finding) for finding in adapter.findings),
        mine=viewer.has("reviewer") and not decided and not duties(adapter, viewer.name),
        entry=adapter.index,
    )


def _table(value: Queue) -> Table:
    headers = (
        *("adapter", "unit", "tier", "exposure", "purpose", "asked_by", "asked", "until"),
        *("approvals", "needed", "open_findings", "entry"),
    )
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.waiting])


PAGE = Page(
    "/reviews", "Reviews", PEOPLE, QueueQuery, queue, "reviewers/queue.html", _table, group="Adapters", symbol="review"
)
