"""What waits for a reviewer: adapters whose quorum is not there yet, and which they may decide on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

from appliance.domain.core.names import Time, versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.state import State
from appliance.domain.releases.approval import counted, duties, latest_reviews, quorum
from appliance.domain.releases.blocking import is_open
from appliance.domain.releases.tiers import current_request, needed, reattested_by, reviewed_until, tier_of
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


class _Settled(NamedTuple):
    """Nobody had to decide on it: that holds for this very value of the adapter, in this revision of the state, until
    then."""

    adapter: Adapter
    revision: int
    until: Time


_NEVER = "9999"
_SETTLED: WeakKeyDictionary[State, dict[int, _Settled]] = WeakKeyDictionary()
"""Of each state, by the adapter's entry: most adapters of a site were decided on long ago, and are not judged again at
each look."""


def waiting_for(state: State, now: Time, viewer: Viewer, query: QueueQuery) -> Iterator[Waiting]:
    """The newest first. With `everyone` also what waits for others."""
    known, revision = _SETTLED.setdefault(state, {}), state.revision
    for adapter in reversed(state.adapters.values()):
        found = known.get(adapter.index)
        if found is not None and found.adapter is adapter and found.revision == revision and now < found.until:
            continue
        if adapter.revoked is not None or adapter.quarantined is not None:
            continue
        units = _units(state, adapter)
        waiting = [unit for unit in units if _waits(state, adapter, unit, now)]
        if not waiting:
            ends = [end for unit in units if unit is not None for end in _ends(state, adapter, unit, now)]
            known[adapter.index] = _Settled(adapter, revision, min(ends, default=_NEVER))
        elif query.before is None or adapter.index < query.before:
            told = (_tell(state, now, viewer, adapter, unit) for unit in waiting)
            yield from (one for one in told if one.mine or query.everyone)


def _units(state: State, adapter: Adapter) -> list[str | None]:
    """Those that a release was requested for; else those of its reviews, or None while nobody has said for whom."""
    requested = {request.unit for request in adapter.requests}
    standing = sorted(unit for unit in requested if current_request(state, adapter, unit) is not None)
    found: list[str | None] = [*(standing or sorted({review.unit for review in adapter.reviews} - requested))]
    return found or ([] if requested else [None])


def _waits(state: State, adapter: Adapter, unit: str | None, now: Time) -> bool:
    """Whether approvals are missing, and nobody has refused it."""
    if unit is None:
        return True
    refused = any(review.decision == "reject" for review in latest_reviews(state, adapter, unit))
    return not refused and bool(quorum(state, adapter, unit, now))


def _ends(state: State, adapter: Adapter, unit: str, now: Time) -> Iterator[Time]:
    """When approvals that count end."""
    for review in counted(state, adapter, unit, now):
        yield from (end for end in (review.valid_until, reattested_by(state, adapter, review)) if end is not None)


def _tell(state: State, now: Time, viewer: Viewer, adapter: Adapter, unit: str | None) -> Waiting:
    request = None if unit is None else current_request(state, adapter, unit)
    tier = None if request is None else tier_of(state.parameters, request)
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
