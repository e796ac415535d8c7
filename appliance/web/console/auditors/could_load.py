"""What a unit could have loaded at a moment, by whose word, and what kept the rest from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance.domain.queries.could_load import CouldLoad
from appliance.errors import BadInput
from appliance.web.console.auditors.log import parse_moment
from appliance.web.console.core.page import PEOPLE, Page, Query, Table, Value, Viewer
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.workflows.core.context import Context
from appliance.workflows.queries.questions import could_load_page
from appliance.workflows.queries.spans import could_load_piece

OTHERS = 20
"""Adapters that no release named, on a page: each is judged anew."""
MOMENTS = 6
"""Of a span, on a page: at each the unit's releases are judged."""


class CouldLoadQuery(Query):
    """`past`: the last adapter that no release named, on the page before. `since` and `until` ask of a span, in place
    of `at`."""

    unit: str | None = None
    at: str | None = None
    since: str | None = None
    until: str | None = None
    past: str | None = None


class Signoff(Value):
    entry: int
    reviewer: str
    printed_name: str | None
    field: str
    decision: str
    state: str
    valid_until: str | None
    against: str | None


class Candidate(Value):
    """`task` is None for an adapter that no release named."""

    task: str | None
    adapter: str
    could_load: bool
    released_by: str | None
    release_entry: int | None
    loaded: str | None
    reviews: tuple[Signoff, ...]
    reasons: tuple[Reason, ...]


class Exported(Value):
    task: str
    adapter: str
    entry: int
    valid_until: str


class Period(Value):
    """What held from a time, with its last entry, until the next period."""

    begins: str
    as_of: int
    candidates: tuple[Candidate, ...]
    exported: tuple[Exported, ...]


class CouldLoadPage(Value):
    """`asked`: whether a unit was named. `as_of` is None for a moment before the log begins."""

    units: tuple[str, ...]
    size: int
    asked: bool
    at: str | None
    as_of: int | None
    candidates: tuple[Candidate, ...]
    exported: tuple[Exported, ...]
    rests_on: tuple[tuple[int, str, str, str], ...]
    next: str | None
    """Where the page of further adapters begins, which no release named; None on the last."""
    periods: tuple[Period, ...]
    """Of a span, in place of candidates."""
    later: str | None
    """Of a span: where its next page begins."""


def could_load(context: Context, viewer: Viewer, query: CouldLoadQuery) -> CouldLoadPage:
    state = context.ledger.state
    units = tuple(sorted(one.name for one in state.principals.values() if "unit" in one.roles))
    if query.unit is None:
        return _page(units, state.size, None, {}, None)
    if query.since is not None or query.until is not None:
        return _span(context, units, query)
    at = _point(query.at, "at", end_of_day=True)
    found, following = could_load_page(context, query.unit, at, past=query.past or "", most=OTHERS)
    return _page(units, state.size, query.unit, found, following)


def _point(text: str | None, what: str, *, end_of_day: bool = False) -> str | None:
    """An entry's number, or a time."""
    return text if text is None or text.isdecimal() else parse_moment(text, what, end_of_day=end_of_day)


def _span(context: Context, units: tuple[str, ...], query: CouldLoadQuery) -> CouldLoadPage:
    since = _point(query.since, "since")
    if since is None or query.at is not None or query.unit is None:
        raise BadInput("could-load: expected `at`, or `since` with or without `until`, got others")
    until = _point(query.until, "until", end_of_day=True)
    found, later = could_load_piece(context, query.unit, since, until, MOMENTS)
    page = _page(units, context.ledger.state.size, query.unit, {}, None)
    return page.model_copy(update={"periods": tuple(_period(*one) for one in found), "later": later})


def _period(as_of: int, answer: CouldLoad) -> Period:
    value = answer.model_dump(mode="json")
    return Period(
        begins=answer.at,
        as_of=as_of,
        candidates=tuple(
            _candidate(task["candidate"], {}, task=task, could=task["could_load"]) for task in value["tasks"]
        ),
        exported=_exported(value["exported"]),
    )


def _exported(found: Iterable[dict[str, Any]]) -> tuple[Exported, ...]:
    return tuple(Exported(**{name: one[name] for name in Exported.model_fields}) for one in found)


def _page(
    units: tuple[str, ...], size: int, unit: str | None, found: dict[str, Any], following: str | None
) -> CouldLoadPage:
    names = {one["commitment"]: one["text"] for one in found.get("disclosures", ())}
    tasks = [
        _candidate(task["candidate"], names, task=task, could=task["could_load"]) for task in found.get("tasks", ())
    ]
    others = [_candidate(one, names, task=None, could=False) for one in found.get("others", ())]
    return CouldLoadPage(
        units=units,
        size=size,
        asked=unit is not None,
        at=found.get("at"),
        as_of=found.get("as_of"),
        candidates=(*tasks, *others),
        exported=_exported(found.get("exported", ())),
        rests_on=tuple((one["entry"], one["time"], one["type"], one["actor"]) for one in found.get("rests_on", ())),
        next=following,
        periods=(),
        later=None,
    )


def _candidate(value: dict[str, Any], names: dict[str, str], *, task: dict[str, Any] | None, could: bool) -> Candidate:
    release, slot = (None, None) if task is None else (task["release"], task["slot"])
    return Candidate(
        task=None if task is None else task["task"],
        adapter=value["adapter"],
        could_load=could,
        released_by=None if release is None else release["by"],
        release_entry=None if release is None else release["entry"],
        loaded=None if slot is None else slot["adapter"],
        reviews=tuple(_signoff(review, names) for review in value["reviews"]),
        reasons=explain_reasons(tuple(value["reasons"])),
    )


def _signoff(review: dict[str, Any], names: dict[str, str]) -> Signoff:
    kept = {name: review[name] for name in Signoff.model_fields if name != "printed_name"}
    return Signoff(printed_name=names.get(review["printed_name"] or ""), **kept)


def _table(value: CouldLoadPage) -> Table:
    headers = ("from", "as_of", "task", "adapter", "could_load", "released_by", "release_entry", "loaded", "reviews")
    told: list[tuple[str | None, int | None, tuple[Candidate, ...]]]
    told = [(one.begins, one.as_of, one.candidates) for one in value.periods]
    told = told or [(value.at, value.as_of, value.candidates)]
    rows = [
        [
            *(begins, as_of, one.task, one.adapter, "yes" if one.could_load else "no", one.released_by),
            *(one.release_entry, one.loaded),
            "; ".join(f"{review.reviewer} {review.decision} {review.state}" for review in one.reviews),
            "; ".join(reason.text for reason in one.reasons),
        ]
        for begins, as_of, candidates in told
        for one in candidates
    ]
    return Table((*headers, "reasons"), rows)


PAGE = Page(
    *("/could-load", "Who could load what", PEOPLE, CouldLoadQuery, could_load, "auditors/could_load.html", _table),
    group="Audit",
    symbol="load",
)
