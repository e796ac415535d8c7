"""Effective access: the adapters that a unit could load at a time, who approved them, and why others were refused."""

from __future__ import annotations

from appliance.api.log import EffectiveAccess
from appliance.domain.core.records.serving import Export
from appliance.domain.queries.effective_access import AccessCandidate, ServedModelAnswer, Signoff, UnitAccess
from appliance.errors import BadInput, Refusal
from appliance.formats.core.timestamp import parse_point
from appliance.web.console.core.page import CsvTable, Page, PageValue, Query, Viewer
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.questions import effective_access_page
from appliance.workflows.queries.spans import effective_access_periods

OTHERS = 20
"""Number of adapters without a release on a page. Each is evaluated anew."""
PERIODS = 6
"""Number of periods on a page."""


class EffectiveAccessQuery(Query):
    """A moment `at`, or a span from `since` to `until`.

    `after` is the last adapter without a release on the previous page.
    """

    unit: str | None = None
    at: str | None = None
    since: str | None = None
    until: str | None = None
    after: str | None = None


class AccessCandidateRow(PageValue):
    """An adapter and whether the unit could load it.

    `served_model` is None for an adapter that no release named. The reviews have printed names in place of their
    commitments.
    """

    served_model: str | None
    adapter: str
    effective_access: bool
    released_by: str | None
    release_entry: int | None
    loaded: str | None
    reviews: tuple[Signoff, ...]
    reasons: tuple[Refusal, ...]


class AccessPeriodRow(PageValue):
    """The access from a time, with its last entry, until the next period."""

    begins: str
    as_of: int
    candidates: tuple[AccessCandidateRow, ...]
    exported: tuple[Export, ...]


class EffectiveAccessPage(PageValue):
    """The result. `asked` is true if a unit was named. `as_of` is None for a moment before the log begins."""

    units: tuple[str, ...]
    size: int
    asked: bool
    at: str | None
    as_of: int | None
    candidates: tuple[AccessCandidateRow, ...]
    exported: tuple[Export, ...]
    rests_on: tuple[tuple[int, str, str, str], ...]
    next: str | None
    """First further adapter without a release, on the next page; None on the last page."""
    periods: tuple[AccessPeriodRow, ...]
    """Periods of a span, in place of candidates."""
    later: str | None
    """Moment at which the next page of a span begins."""

    @property
    def most(self) -> int:
        """Number of periods on a page."""
        return PERIODS


def effective_access(context: LedgerContext, viewer: Viewer, query: EffectiveAccessQuery) -> EffectiveAccessPage:
    """Return the effective access of a unit at a moment or over a span."""
    state = context.ledger.state
    units = tuple(sorted(one.name for one in state.principals.values() if "unit" in one.roles))
    if query.unit is None:
        return _page(units, state.size, None, None, None)
    if query.since is not None or query.until is not None:
        return _span(context, units, query)
    at = parse_point(query.at, "at", context.clock(), end_of_day=True)
    found, following = effective_access_page(context, query.unit, at, past=query.after or "", most=OTHERS)
    return _page(units, state.size, query.unit, found, following)


def _span(context: LedgerContext, units: tuple[str, ...], query: EffectiveAccessQuery) -> EffectiveAccessPage:
    since = parse_point(query.since, "since", now := context.clock(), end_of_day=False)
    if query.at is not None:
        raise BadInput("at: expected one moment, or a span from since to until, got both; leave one empty")
    if since is None or query.unit is None:
        raise BadInput("since: expected the beginning of the span, got only its end")
    until = parse_point(query.until, "until", now, end_of_day=True)
    found, later = effective_access_periods(context, query.unit, since, until, PERIODS)
    page = _page(units, context.ledger.state.size, query.unit, None, None)
    return page.model_copy(update={"periods": tuple(_period(*one) for one in found), "later": later})


def _period(as_of: int, answer: UnitAccess) -> AccessPeriodRow:
    return AccessPeriodRow(
        begins=answer.at,
        as_of=as_of,
        candidates=tuple(_candidate(model.candidate, {}, model) for model in answer.served_models),
        exported=answer.exported,
    )


def _page(
    units: tuple[str, ...], size: int, unit: str | None, found: EffectiveAccess | None, following: str | None
) -> EffectiveAccessPage:
    names = {} if found is None else {one.commitment: one.text for one in found.disclosures}
    answer = found.answer if found is not None and isinstance(found.answer, UnitAccess) else None
    served_models = (
        [] if answer is None else [_candidate(model.candidate, names, model) for model in answer.served_models]
    )
    others = [] if answer is None else [_candidate(one, names, None) for one in answer.others]
    rests_on = () if found is None else found.rests_on
    return EffectiveAccessPage(
        units=units,
        size=size,
        asked=unit is not None,
        at=None if found is None else found.answer.at,
        as_of=None if found is None else found.as_of,
        candidates=(*served_models, *others),
        exported=() if answer is None else answer.exported,
        rests_on=tuple((one.entry, one.time, one.type, one.actor) for one in rests_on),
        next=following,
        periods=(),
        later=None,
    )


def _candidate(found: AccessCandidate, names: dict[str, str], model: ServedModelAnswer | None) -> AccessCandidateRow:
    return AccessCandidateRow(
        served_model=None if model is None else model.served_model,
        adapter=found.adapter,
        effective_access=model is not None and model.effective_access,
        released_by=None if model is None else model.release.signer,
        release_entry=None if model is None else model.release.index,
        loaded=None if model is None or model.slot is None else model.slot.adapter,
        reviews=tuple(
            one.model_copy(update={"printed_name": names.get(one.printed_name or "")}) for one in found.reviews
        ),
        reasons=found.reasons,
    )


def _table(value: EffectiveAccessPage) -> CsvTable:
    headers = (
        "from",
        "as_of",
        "served_model",
        "adapter",
        "effective_access",
        "released_by",
        "release_entry",
        "loaded",
        "reviews",
    )
    moments: list[tuple[str | None, int | None, tuple[AccessCandidateRow, ...]]]
    moments = [(one.begins, one.as_of, one.candidates) for one in value.periods]
    moments = moments or [(value.at, value.as_of, value.candidates)]
    rows = [
        [
            *(begins, as_of, one.served_model, one.adapter, "yes" if one.effective_access else "no", one.released_by),
            *(one.release_entry, one.loaded),
            "; ".join(f"{r.record.reviewer} {r.record.decision} {r.status.state}" for r in one.reviews),
            " ".join(map(str, one.reasons)),
        ]
        for begins, as_of, candidates in moments
        for one in candidates
    ]
    return CsvTable((*headers, "reasons"), rows)


PAGE = Page(
    "/effective-access",
    "Effective access",
    effective_access,
    _table,
    group="Audit",
    symbol="load",
    is_search=True,
)
