"""What may be released to a unit now, and what is still missing of the rest; a release owner sees their own units."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pydantic import Field

from appliance.domain.core.names import IDENTIFIER, Time, versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.state import State
from appliance.domain.releases.approval import inadmissible
from appliance.domain.releases.tiers import current_request, tier_of
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.workflows.core.context import Context


class CandidatesQuery(Query):
    unit: str | None = Field(default=None, pattern=rf"^{IDENTIFIER}$")
    before: int | None = Field(default=None, ge=0)


class Candidate(Value):
    """`tasks`: of the unit, those that this very version answers. `missing`: nothing where it may be released."""

    adapter: str
    unit: str
    tier: str | None
    purpose: str | None
    tasks: tuple[str, ...]
    missing: tuple[Reason, ...]
    entry: int


class Candidates(Value):
    """`units`: whose are shown; None: every unit's."""

    units: tuple[str, ...] | None
    candidates: tuple[Candidate, ...]
    next: int | None


def candidates(context: Context, viewer: Viewer, query: CandidatesQuery) -> Candidates:
    state = context.ledger.state
    own = viewer.places("release-owner") or None
    units = own if query.unit is None else (query.unit,)
    found = list(islice(_candidates(state, context.now(state), units, query.before), PAGE_ROWS + 1))
    rows = tuple(found[:PAGE_ROWS])
    return Candidates(units=units, candidates=rows, next=rows[-1].entry if len(found) > PAGE_ROWS and rows else None)


def _candidates(state: State, now: Time, units: tuple[str, ...] | None, before: int | None) -> Iterator[Candidate]:
    """The newest first: adapters that were requested for a unit, or reviewed for it."""
    for adapter in reversed(state.adapters.values()):
        if adapter.revoked is not None or (before is not None and adapter.index >= before):
            continue
        about = {request.unit for request in adapter.requests} | {review.unit for review in adapter.reviews}
        for unit in sorted(about):
            if units is None or unit in units:
                yield _candidate(state, adapter, unit, now)


def _candidate(state: State, adapter: Adapter, unit: str, now: Time) -> Candidate:
    name, request = versioned(adapter.name, adapter.version), current_request(state, adapter, unit)
    tier = None if request is None else tier_of(state.parameters, request)
    released = (one for one in state.releases.values() if one.unit == unit and one.current.adapter == name)
    return Candidate(
        adapter=name,
        unit=unit,
        tier=None if tier is None else tier.name,
        purpose=None if request is None else request.purpose,
        tasks=tuple(one.task for one in released),
        missing=explain_reasons(tuple(inadmissible(state, adapter, unit, now))),
        entry=adapter.index,
    )


def _table(value: Candidates) -> Table:
    headers = ("adapter", "unit", "tier", "purpose", "tasks", "missing", "entry")
    rows = [
        [one.adapter, one.unit, one.tier, one.purpose, one.tasks, "; ".join(r.text for r in one.missing), one.entry]
        for one in value.candidates
    ]
    return Table(headers, rows)


PAGE = Page(
    *("/candidates", "To release", PEOPLE, CandidatesQuery, candidates, "releases/candidates.html", _table),
    group="Adapters",
    symbol="check",
)
