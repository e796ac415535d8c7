"""What is released: by whose word, until when, and whether it answers now. A unit sees its own alone."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.decisions import answers_key
from appliance.domain.core.names import IDENTIFIER, Time
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.serving import Release, release_key
from appliance.domain.core.state import State
from appliance.domain.releases.approval import barred, counted
from appliance.domain.releases.conditions import binding_conditions, daily_limit
from appliance.domain.releases.tiers import reattested_by
from appliance.errors import NotFound
from appliance.web.console.core.page import EVERYBODY, PAGE_ROWS, Page, Query, Table, Value, Viewer
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.workflows.core.context import Context

_NAME = rf"^{IDENTIFIER}$"


class ReleasesQuery(Query):
    """`past`: UNIT/TASK of the last one on the page before."""

    unit: str | None = Field(default=None, pattern=_NAME)
    past: str | None = None


class ReleaseRow(Value):
    """`until`: the first date at which an approval that counts has to be made again or ends."""

    unit: str
    task: str
    adapter: str
    by: str
    kind: str
    approved_by: tuple[str, ...]
    until: Time | None
    answers: bool
    used_today: int | None
    most_a_day: int | None
    entry: int


class Releases(Value):
    releases: tuple[ReleaseRow, ...]
    next: str | None


def visible(viewer: Viewer, unit: str) -> bool:
    return not viewer.is_unit or viewer.name == unit


def releases(context: Context, viewer: Viewer, query: ReleasesQuery) -> Releases:
    state = context.ledger.state
    now = context.now(state)
    keys = sorted(
        (release_key(one.unit, one.task), one)
        for one in state.releases.values()
        if visible(viewer, one.unit) and query.unit in (None, one.unit)
    )
    rest = [one for key, one in keys if query.past is None or key > query.past]
    rows = tuple(_row(state, one, now) for one in rest[:PAGE_ROWS])
    last = release_key(rows[-1].unit, rows[-1].task) if len(rest) > PAGE_ROWS else None
    return Releases(releases=rows, next=last)


def _row(state: State, release: Release, now: Time) -> ReleaseRow:
    adapter = state.adapters.get(release.current.adapter)
    approvals = [] if adapter is None else counted(state, adapter, release.unit, now)
    ends = [] if adapter is None else [_end(state, adapter, review) for review in approvals]
    used, most = _used(state, release, adapter, now)
    return ReleaseRow(
        unit=release.unit,
        task=release.task,
        adapter=release.current.adapter,
        by=release.current.signer,
        kind=release.current.kind,
        approved_by=tuple(review.reviewer for review in approvals),
        until=min((end for end in [*ends, release.current.until] if end is not None), default=None),
        answers=adapter is not None and not barred(state, release, adapter, now),
        used_today=used,
        most_a_day=most,
        entry=release.current.index,
    )


def _end(state: State, adapter: Adapter, review: Any) -> Time | None:
    ends = [end for end in (review.valid_until, reattested_by(state, adapter, review)) if end is not None]
    return min(ends, default=None)


def _used(state: State, release: Release, adapter: Adapter | None, now: Time) -> tuple[int | None, int | None]:
    """Answers of today and their limit; nothing where no condition counts them."""
    if adapter is None:
        return None, None
    approvals = counted(state, adapter, release.unit, now)
    most = daily_limit(binding_conditions(state, adapter, release.unit, approvals))
    if most is None:
        return None, None
    today = state.answers.get(answers_key(release.unit, release.current.adapter))
    return (today.count if today is not None and today.day == now[:10] else 0), most


def _table(value: Releases) -> Table:
    headers = tuple(ReleaseRow.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.releases])


class ReleaseQuery(Query):
    unit: str = Field(pattern=_NAME)
    task: str = Field(pattern=_NAME)


class Activated(Value):
    entry: int
    adapter: str
    by: str
    kind: str


class Approval(Value):
    entry: int
    reviewer: str
    field: str
    decision: str
    valid_until: Time | None
    again_by: Time | None


class Condition(Value):
    source: str
    entry: int
    not_before: Time | None
    not_after: Time | None
    tasks: tuple[str, ...]
    answers_a_day: int | None


class Exported(Value):
    entry: int
    adapter: str
    valid_until: Time


class ReleasePage(Value):
    row: ReleaseRow
    manifest: str
    against: tuple[Reason, ...]
    loaded: str | None
    loaded_at: Time | None
    approvals: tuple[Approval, ...]
    conditions: tuple[Condition, ...]
    history: tuple[Activated, ...]
    exports: tuple[Exported, ...]


def release(context: Context, viewer: Viewer, query: ReleaseQuery) -> ReleasePage:
    """NotFound for another unit's release too: a unit does not learn which tasks others have."""
    state, key = context.ledger.state, release_key(query.unit, query.task)
    found = state.releases.get(key) if visible(viewer, query.unit) else None
    if found is None:
        raise NotFound(f"release {key}: expected one that you may see, got none")
    now, adapter = context.now(state), state.adapters.get(found.current.adapter)
    slot = state.slots.get(key)
    approvals = [] if adapter is None else counted(state, adapter, found.unit, now)
    binding = [] if adapter is None else binding_conditions(state, adapter, found.unit, approvals)
    return ReleasePage(
        row=_row(state, found, now),
        manifest=found.current.manifest,
        against=() if adapter is None else explain_reasons(tuple(barred(state, found, adapter, now))),
        loaded=None if slot is None else slot.adapter,
        loaded_at=None if slot is None else slot.loaded_at,
        approvals=tuple(
            Approval(
                entry=one.index,
                reviewer=one.reviewer,
                field=one.field,
                decision=one.decision,
                valid_until=one.valid_until,
                again_by=None if adapter is None else reattested_by(state, adapter, one),
            )
            for one in approvals
        ),
        conditions=tuple(Condition(source=source, entry=index, **one.model_dump()) for source, index, one in binding),
        history=tuple(
            Activated(entry=one.index, adapter=one.adapter, by=one.signer, kind=one.kind)
            for one in reversed(found.history[-PAGE_ROWS:])
        ),
        exports=tuple(
            Exported(entry=one.index, adapter=one.adapter, valid_until=one.valid_until)
            for one in state.exports.values()
            if (one.unit, one.task) == (found.unit, found.task) and now < one.valid_until
        ),
    )


def _history_table(value: ReleasePage) -> Table:
    headers = tuple(Activated.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.history])


PAGE = Page(
    *("/releases", "Releases", EVERYBODY, ReleasesQuery, releases, "releases/releases.html", _table),
    group="Adapters",
    symbol="release",
)
RELEASE = Page(
    *("/releases/{unit}/{task}", "Release", EVERYBODY, ReleaseQuery, release, "releases/release.html", _history_table)
)
