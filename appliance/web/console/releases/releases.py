"""The pages of releases and of candidates for release. A unit sees only its own releases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field

from appliance.domain.core.decisions import Conditions, ReleaseRequest, ReviewRecord, Suspension, answers_key
from appliance.domain.core.names import IDENTIFIER, Time, versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.records.serving import Export, Release, release_key
from appliance.domain.core.state import State
from appliance.domain.releases.approval import (
    approved_by_activator,
    find_blockers,
    find_release_blockers,
    list_counted_approvals,
    list_refusals,
)
from appliance.domain.releases.requests import (
    binding_conditions,
    daily_limit,
    find_current_request,
    find_reattestation_deadline,
    find_tier,
)
from appliance.domain.releases.suspensions import list_suspensions
from appliance.errors import NotFound, Refusal
from appliance.reports.review.words import describe_conditions, describe_use, name_decision, tone_of_tier
from appliance.web.console.core.page import (
    EVERYBODY,
    PAGE_ROWS,
    BeforeQuery,
    ListPage,
    Page,
    PageValue,
    Query,
    Viewer,
    columns,
)
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.releases.review import read_text

_NAME = rf"^{IDENTIFIER}$"


class ReleasesQuery(Query):
    """`after` is the UNIT/SERVED_MODEL of the last release on the previous page."""

    unit: str | None = Field(default=None, pattern=_NAME)
    after: str | None = None


class ReleaseRow(PageValue):
    """A release. `until` is the first date at which a valid approval ends or has to be renewed."""

    unit: str
    served_model: str
    adapter: str
    by: str
    kind: str
    approved_by: tuple[str, ...]
    until: Time | None
    serves: bool
    suspended_by: tuple[str, ...]
    used_today: int | None
    most_a_day: int | None
    entry: int


def visible(viewer: Viewer, unit: str) -> bool:
    """Return True if the viewer may see the unit's releases."""
    return not viewer.is_unit or viewer.name == unit


def releases(context: LedgerContext, viewer: Viewer, query: ReleasesQuery) -> ListPage[ReleaseRow]:
    """Return the releases that the viewer may see."""
    state = context.ledger.state
    now = context.now(state)
    keys = sorted(
        (release_key(one.unit, one.served_model), one)
        for one in state.releases.values()
        if visible(viewer, one.unit) and query.unit in (None, one.unit)
    )
    rows = (_row(state, one, now) for key, one in keys if query.after is None or key > query.after)
    return ListPage[ReleaseRow].of(rows, lambda one: release_key(one.unit, one.served_model))


def _row(state: State, release: Release, now: Time) -> ReleaseRow:
    adapter = state.adapters.get(release.current.adapter)
    approvals = [] if adapter is None else list_counted_approvals(state, adapter, release.unit, now)
    ends = [] if adapter is None else [_approval_end(state, adapter, review) for review in approvals]
    used, most = _usage_today(state, release, adapter, now)
    return ReleaseRow(
        unit=release.unit,
        served_model=release.served_model,
        adapter=release.current.adapter,
        by=release.current.signer,
        kind=release.current.kind,
        approved_by=tuple(review.reviewer for review in approvals),
        until=min((end for end in [*ends, release.current.until] if end is not None), default=None),
        serves=adapter is not None and not find_release_blockers(state, release, adapter, now),
        suspended_by=tuple(one.by for one in _suspensions(state, release)),
        used_today=used,
        most_a_day=most,
        entry=release.current.index,
    )


def _suspensions(state: State, release: Release) -> list[Suspension]:
    """Return the valid suspensions that stop the release."""
    adapter = state.adapters.get(release.current.adapter)
    found = [] if adapter is None else list_suspensions(state, adapter, release.unit)
    return [one for one in found if one.served_model in (None, release.served_model)]


def _approval_end(state: State, adapter: Adapter, review: Any) -> Time | None:
    ends = [end for end in (review.valid_until, find_reattestation_deadline(state, adapter, review)) if end is not None]
    return min(ends, default=None)


def _usage_today(state: State, release: Release, adapter: Adapter | None, now: Time) -> tuple[int | None, int | None]:
    """Return the number of today's responses and their limit, or None for both if no condition limits them."""
    if adapter is None:
        return None, None
    approvals = list_counted_approvals(state, adapter, release.unit, now)
    most = daily_limit(binding_conditions(state, adapter, release.unit, approvals))
    if most is None:
        return None, None
    today = state.answers.get(answers_key(release.unit, release.current.adapter))
    return (today.count if today is not None and today.day == now[:10] else 0), most


class ReleaseQuery(Query):
    """The unit and the served model of a release."""

    unit: str = Field(pattern=_NAME)
    served_model: str = Field(pattern=_NAME)


class ActivationRow(PageValue):
    """An activation or rollback in a release's history."""

    entry: int
    adapter: str
    by: str
    kind: str

    @property
    def did(self) -> str:
        """The action in words."""
        return {"activate": "activated", "rollback": "rolled back", "break-glass": "emergency release"}[self.kind]


class Approval(PageValue):
    """A valid approval of the released adapter.

    `again_by` is when it has to be renewed, if it does not end before.
    """

    entry: int
    reviewer: str
    review_function: str
    decision: str
    valid_until: Time | None
    again_by: Time | None

    @property
    def did(self) -> str:
        """The decision as what was done."""
        return name_decision(self.decision)


class ReleaseTerms(PageValue):
    """Conditions on the release, and the entry that set them."""

    source: str
    entry: int
    terms: Conditions


class ReleasePage(PageValue):
    """The page of a release. `blockers` lists why the release is not active, `suspensions` those that stop it."""

    row: ReleaseRow
    manifest: str
    blockers: tuple[Refusal, ...]
    suspensions: tuple[Suspension, ...]
    suspension_reasons: dict[int, str | None]
    """Reason of each suspension, by its entry; none for a unit."""
    loaded: str | None
    loaded_at: Time | None
    approvals: tuple[Approval, ...]
    conditions: tuple[ReleaseTerms, ...]
    earlier: tuple[str, ...]
    """Versions to which it can be rolled back, the latest first."""
    history: tuple[ActivationRow, ...]
    exports: tuple[Export, ...]


def release(context: LedgerContext, viewer: Viewer, query: ReleaseQuery) -> ReleasePage:
    """Return the page of a release.

    Raises: NotFound also for another unit's release, so that a unit does not learn the served models of others.
    """
    state, key = context.ledger.state, release_key(query.unit, query.served_model)
    found = state.releases.get(key) if visible(viewer, query.unit) else None
    if found is None:
        raise NotFound(f"release {key}: expected one that you may see, got none")
    now, adapter = context.now(state), state.adapters.get(found.current.adapter)
    slot, suspensions = state.slots.get(key), tuple(_suspensions(state, found))
    approvals = [] if adapter is None else list_counted_approvals(state, adapter, found.unit, now)
    binding = [] if adapter is None else binding_conditions(state, adapter, found.unit, approvals)
    return ReleasePage(
        row=_row(state, found, now),
        manifest=found.current.manifest,
        blockers=() if adapter is None else tuple(find_release_blockers(state, found, adapter, now)),
        suspensions=suspensions,
        suspension_reasons={
            one.index: None if viewer.is_unit else read_text(context, one.index, "reason") for one in suspensions
        },
        loaded=None if slot is None else slot.adapter,
        loaded_at=None if slot is None else slot.loaded_at,
        approvals=tuple(
            Approval(
                entry=one.index,
                reviewer=one.reviewer,
                review_function=one.review_function,
                decision=one.decision,
                valid_until=one.valid_until,
                again_by=None if adapter is None else _find_renewal(state, adapter, one),
            )
            for one in approvals
        ),
        conditions=tuple(ReleaseTerms(source=source, entry=index, terms=terms) for source, index, terms in binding),
        earlier=tuple(one.adapter for one in found.earlier),
        history=tuple(
            ActivationRow(entry=one.index, adapter=one.adapter, by=one.signer, kind=one.kind)
            for one in reversed(found.history[-PAGE_ROWS:])
        ),
        exports=tuple(
            one
            for one in state.exports.values()
            if (one.unit, one.served_model) == (found.unit, found.served_model) and now < one.valid_until
        ),
    )


def _find_renewal(state: State, adapter: Adapter, review: ReviewRecord) -> Time | None:
    """Return when an approval has to be renewed; None if it ends before."""
    end = find_reattestation_deadline(state, adapter, review)
    return None if end is None or (review.valid_until is not None and review.valid_until <= end) else end


PAGE = Page("/releases", "Releases", releases, columns(), seen_by=EVERYBODY, group="Adapters", symbol="release")
RELEASE = Page("/releases/{unit}/{served_model}", "Release", release, columns("history"), seen_by=EVERYBODY)


class CandidatesQuery(BeforeQuery):
    """The unit of the listed candidates."""

    unit: str | None = Field(default=None, pattern=_NAME)


class ReleaseCandidate(PageValue):
    """An adapter for which a release to the unit was requested, or that was reviewed for it.

    `served_models` are the unit's served models that this version serves. `missing` lists the blockers of its release,
    by the viewer if the viewer is a release owner of the unit. `use` is the requested use in words.
    """

    adapter: str
    unit: str
    tier: str | None
    tone: str
    purpose: str | None
    use: str
    refused: str | None
    """`rejected` or `changes requested`, if a reviewer refused it."""
    conditions: tuple[str, ...]
    """Conditions that limit its use, each with its source."""
    served_models: tuple[str, ...]
    missing: tuple[Refusal, ...]
    entry: int


class Candidates(ListPage[ReleaseCandidate]):
    """The list of candidates. `units` are those that are shown; None means all."""

    units: tuple[str, ...] | None


def candidates(context: LedgerContext, viewer: Viewer, query: CandidatesQuery) -> Candidates:
    """Return the candidates of the viewer's units."""
    state = context.ledger.state
    own = viewer.places("release-owner") or None
    units = own if query.unit is None else (query.unit,)
    found = (one for one in query.list_newest(state.adapters.values()) if one.revoked is None)
    return Candidates.of(_candidates(state, context.now(state), viewer, units, found), units=units)


def _candidates(
    state: State, now: Time, viewer: Viewer, units: tuple[str, ...] | None, adapters: Iterable[Adapter]
) -> Iterator[ReleaseCandidate]:
    """Yield the candidates of these adapters."""
    for adapter in adapters:
        unit_names = {request.unit for request in adapter.requests} | {review.unit for review in adapter.reviews}
        for unit in sorted(unit_names):
            if units is None or unit in units:
                yield _candidate(state, adapter, unit, viewer, now)


def _describe_use(request: ReleaseRequest) -> str:
    if request.exposure is None or request.purpose is None:
        return "An emergency opened this request."
    return describe_use(request.exposure, request.purpose)


def _candidate(state: State, adapter: Adapter, unit: str, viewer: Viewer, now: Time) -> ReleaseCandidate:
    name, request = versioned(adapter.name, adapter.version), find_current_request(state, adapter, unit)
    tier = None if request is None else find_tier(state.parameters, request)
    released = (one for one in state.releases.values() if one.unit == unit and one.current.adapter == name)
    missing, refusals = find_blockers(state, adapter, unit, now), list_refusals(state, adapter, unit, now)
    worst = max(refusals, key=lambda one: one.decision == "reject", default=None)
    binding = binding_conditions(state, adapter, unit, list_counted_approvals(state, adapter, unit, now))
    if unit in viewer.places("release-owner"):
        missing += approved_by_activator(state, adapter, unit, viewer.name, now)
    return ReleaseCandidate(
        adapter=name,
        unit=unit,
        tier=None if tier is None else tier.name,
        tone=tone_of_tier(None if tier is None else tier.name, [one.name for one in state.parameters.tiers]),
        purpose=None if request is None else request.purpose,
        use="" if request is None else _describe_use(request),
        refused=None if worst is None else name_decision(worst.decision),
        conditions=tuple(f"{describe_conditions(terms)} (entry {index})" for _, index, terms in binding),
        served_models=tuple(one.served_model for one in released),
        missing=tuple(missing),
        entry=adapter.index,
    )


_COLUMNS = ("adapter", "unit", "tier", "purpose", "served_models", "missing", "entry")
"""Columns of the table of candidates."""
CANDIDATES_PAGE = Page(
    "/candidates", "Ready for release", candidates, columns("rows", *_COLUMNS), group="Adapters", symbol="check"
)
