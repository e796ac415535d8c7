"""The pending reviews, the sealed adapters, and the review page of one.

The review page is in tabs with addresses of their own, and has the history of the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from appliance.domain.core.decisions import PARTS, OpenedPagePart, Suspension
from appliance.domain.core.entry import parse_entry
from appliance.domain.core.names import versioned
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import State
from appliance.domain.queries.pending import PendingReview, can_replace, list_pending_reviews
from appliance.domain.queries.review.values import PageOrder, ReviewPage, open_parts
from appliance.domain.releases.approval import refuse_makers
from appliance.domain.releases.reviews import ReviewRecorded, list_delegations
from appliance.domain.releases.suspensions import list_suspending_roles, list_suspensions
from appliance.domain.releases.verdicts import is_open
from appliance.errors import BadInput, NotFound, Tampered
from appliance.reports.review.blocks import Cell, Section, make_row, make_table
from appliance.reports.review.sections import make_sections
from appliance.reports.review.words import tone_of_tier
from appliance.web.console.core.page import (
    VERSIONED,
    BeforeQuery,
    CsvTable,
    ListPage,
    Page,
    PageValue,
    Query,
    Viewer,
    columns,
)
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.questions import read_adapter_history
from appliance.workflows.releases.review import find_adapter, read_text, review_page


class AdapterRow(PageValue):
    """An adapter. `passed` is the verdict of its gates, or None if it was not evaluated."""

    name: str
    base: str
    dataset: str
    purpose: str
    ordered_by: str
    run: str
    passed: bool | None
    reviews: int
    open_findings: int
    suspended_for: tuple[str, ...]
    active_for: tuple[str, ...]
    """Releases that name it, as UNIT/SERVED_MODEL."""
    state: str
    entry: int


def adapters(context: LedgerContext, viewer: Viewer, query: BeforeQuery) -> ListPage[AdapterRow]:
    """Return the adapters, newest first."""
    state = context.ledger.state
    releases: dict[str, list[str]] = {}
    for release in state.releases.values():
        releases.setdefault(release.current.adapter, []).append(f"{release.unit}/{release.served_model}")
    found = query.list_newest(state.adapters.values())
    return ListPage[AdapterRow].of(_row(state, one, releases) for one in found)


def state_of(adapter: Adapter) -> str:
    """Return whether the adapter is sealed, quarantined or revoked."""
    if adapter.revoked is not None:
        return "revoked"
    return "sealed" if adapter.quarantined is None else "quarantined"


def _row(state: State, adapter: Adapter, releases: dict[str, list[str]]) -> AdapterRow:
    name = versioned(adapter.name, adapter.version)
    evaluation = state.evaluations.get(name)
    return AdapterRow(
        name=name,
        base=adapter.base,
        dataset=adapter.dataset,
        purpose=adapter.purpose,
        ordered_by=adapter.ordered_by,
        run=adapter.run,
        passed=None if evaluation is None else evaluation.passed,
        reviews=len(adapter.reviews),
        open_findings=sum(is_open(state, finding) for finding in adapter.findings),
        suspended_for=tuple(dict.fromkeys(one.unit for one in list_suspensions(state, adapter))),
        active_for=tuple(releases.get(name, ())),
        state=state_of(adapter),
        entry=adapter.index,
    )


ADAPTERS_PAGE = Page("/adapters", "Adapters", adapters, columns(), group="Adapters", symbol="adapter")


Tab = Literal["summary", "changes", "quality", "data", "findings", "history", "signature"]


class AdapterQuery(Query):
    """The NAME@VERSION of an adapter, and the tab."""

    name: str = Field(pattern=VERSIONED)
    tab: Tab = "summary"


class InPlace(PageValue):
    """A reviewer in whose place the viewer can decide, and the review function."""

    delegator: str
    review_function: str


class AdapterPage(PageValue):
    """The page of an adapter.

    `review` is the value of docs/formats/review-page.md, and this page's JSON. It is None if the sealed folder cannot
    be read; `problem` then says why. `sections` are those of all tabs. `decidable` lists the units for which the viewer
    may approve.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    tab: Tab
    state: str
    review: ReviewPage | None
    problem: str | None
    sections: tuple[Section, ...]
    history: tuple[HistoryRow, ...]
    decidable: tuple[str, ...]
    delegated: tuple[InPlace, ...]
    """Reviewers in whose place the viewer can decide."""
    preview: str | None
    """The order of the viewer's open sample view or trial of this adapter."""
    suspensions: tuple[Suspension, ...]
    """The valid suspensions."""
    suspension_reasons: dict[int, str | None]
    """Reason of each suspension, by its entry."""
    own_requests: tuple[str, ...]
    """Units to which the viewer requested the release."""
    withdrawable: tuple[str, ...]
    """Units of the release requests that the viewer can withdraw."""
    own_decisions: tuple[str, ...]
    """Units for which a decision of the viewer is valid."""
    stoppable: tuple[str, ...]
    """Units that the adapter serves, and for which the viewer can suspend it."""
    can_revoke: bool

    @model_serializer
    def _as_review(self) -> dict[str, Any]:
        if self.review is None:
            return {"adapter": self.name, "problem": self.problem}
        return self.review.model_dump(mode="json")

    def list_sections(self, tab: str) -> list[Section]:
        """Return the sections of a tab."""
        return [one for one in self.sections if one.part == tab]

    @property
    def tabs(self) -> tuple[str, ...]:
        """The tabs. An adapter whose folder cannot be read has only its history in the log."""
        return get_args(Tab) if self.review is not None else ("history",)

    def list_unopened(self, opened: Mapping[str, str]) -> list[str]:
        """Return the tabs that must be opened before an approval can be signed in the browser.

        `opened` has the digest of each part that the session opened. A part that has changed must be opened again.
        """
        if self.review is None:
            return list(PARTS)
        now = open_parts(self.review, [part for part in PARTS if part in opened])
        same = {one.part for one in now if opened[one.part] == one.digest}
        return [part for part in PARTS if part not in same]


def adapter(context: LedgerContext, viewer: Viewer, query: AdapterQuery) -> AdapterPage:
    """Return the page of an adapter.

    Raises: NotFound for an unknown one.
    """
    found = find_adapter(context.ledger.state, query.name)
    problem, review = None, None
    try:
        review = review_page(context, query.name)
    except (BadInput, NotFound, Tampered) as error:
        problem = error.message
    tab: Tab = "history" if review is None else query.tab
    history = _history(context, query.name)
    requests = () if review is None else review.release_requests
    asked = [one for one in requests if one.request is not None]
    suspensions = tuple(list_suspensions(context.ledger.state, found))
    sections = (*(() if review is None else make_sections(review)), _history_section(history))
    return AdapterPage(
        name=query.name,
        tab=tab,
        state=state_of(found),
        review=review,
        problem=problem,
        sections=sections,
        history=history,
        decidable=tuple(
            one.order.unit for one in requests if viewer.name in [who.name for who in one.status.eligible_reviewers]
        ),
        delegated=_delegated(context, viewer, found),
        preview=_find_preview(context, viewer, query.name),
        suspensions=suspensions,
        suspension_reasons={one.index: read_text(context, one.index, "reason") for one in suspensions},
        own_requests=tuple(one.order.unit for one in asked if one.order.signer == viewer.name),
        withdrawable=tuple(
            one.order.unit for one in asked if viewer.has("administrator") or one.order.signer == viewer.name
        ),
        own_decisions=() if review is None else _list_decided(review, viewer),
        stoppable=_list_stoppable(context.ledger.state, viewer, query.name),
        can_revoke=found.revoked is None and _can_revoke(found, viewer),
    )


def _list_decided(review: ReviewPage, viewer: Viewer) -> tuple[str, ...]:
    own = (one for one in review.decisions if one.order.signer == viewer.name and one.order.on_behalf_of is None)
    valid = (one for one in own if one.status.state == "valid" and one.order.decision != "withdraw")
    return tuple(dict.fromkeys(one.order.unit for one in valid))


def _can_revoke(found: Adapter, viewer: Viewer) -> bool:
    owned = viewer.places("release-owner")
    return viewer.has("administrator", "reviewer") or any(one.unit in owned for one in found.reviews)


def _list_stoppable(state: State, viewer: Viewer, name: str) -> tuple[str, ...]:
    units = dict.fromkeys(one.unit for one in state.releases.values() if one.current.adapter == name)
    return tuple(unit for unit in units if list_suspending_roles(viewer.roles, unit))


def _delegated(context: LedgerContext, viewer: Viewer, found: Adapter) -> tuple[InPlace, ...]:
    state = context.ledger.state
    if refuse_makers(found, viewer.name):
        return ()
    delegations = list_delegations(state, viewer.name, context.now(state))
    return tuple(
        InPlace(delegator=one.delegator, review_function=one.review_function)
        for one in delegations
        if can_replace(found, one)
    )


def _find_preview(context: LedgerContext, viewer: Viewer, name: str) -> str | None:
    previews = context.ledger.state.previews.values()
    return next((one.order for one in previews if (one.by, one.adapter) == (viewer.name, name)), None)


class HistoryRow(NamedTuple):
    """An entry of the adapter's history. `words` is the meaning that a reviewer signed with a decision."""

    entry: int
    time: str
    type: str
    actor: str
    outcome: str
    words: str | None


def _history(context: LedgerContext, name: str) -> tuple[HistoryRow, ...]:
    story = read_adapter_history(context, name)
    entries = [parse_entry(one.entry) for one in story.entries]
    return tuple(
        HistoryRow(
            one.index,
            one.time,
            one.type,
            one.actor,
            one.outcome,
            read_text(context, one.index, "meaning") if one.type == ReviewRecorded.type else None,
        )
        for one in entries
    )


def _history_section(history: tuple[HistoryRow, ...]) -> Section:
    columns = "#Entry, Time UTC, Event, Actor, Outcome, Meaning"
    rows = (
        make_row(
            Cell(str(one.entry), "entry"),
            Cell(one.time, "time"),
            one.type,
            one.actor,
            Cell(one.outcome, "chip", "" if one.outcome == "success" else "bad"),
            one.words or "",
        )
        for one in history
    )
    return Section("History", "history", (make_table("History", columns, rows, most=len(history)),))


_COLUMNS: dict[str, tuple[str, ...]] = {
    "summary": (
        *("entry", "decision", "unit", "review_function", "signer", "on_behalf_of", "meaning"),
        *("valid_until", "again_by", "state", "superseded_by"),
    ),
    "changes": ("since", "of", "what", "before", "now"),
    "quality": (
        *("gate", "by", "value", "outcome", "items", "ours", "theirs"),
        *("gain", "lower", "upper", "adjusted", "worse"),
    ),
    "data": ("set", "model", "items", "evaluated_before", "named_before", "duplicates", "near_duplicates", "digest"),
    "findings": (
        *("entry", "open", "kind", "severity", "blocks", "review_function", "signer", "owner", "due"),
        *("finding", "remedy", "retest", "closed", "closed_by"),
    ),
    "history": HistoryRow._fields,
    "signature": ("path", "size", "digest"),
}
"""Columns of each tab's CSV."""


def _table(value: AdapterPage) -> CsvTable:
    headers = _COLUMNS[value.tab]
    return CsvTable(headers, [[row.get(name) for name in headers] for row in _rows(value)])


def _rows(value: AdapterPage) -> list[dict[str, Any]]:
    """Return the rows of the tab's CSV. The tab Quality has the gates and then their subgroups."""
    review = value.review
    if value.tab == "history" or review is None:
        return [one._asdict() for one in value.history]
    if value.tab == "changes":
        return [
            {"since": changes.since, "of": topic, **change.model_dump()}
            for changes in review.changes
            for topic, differs in changes.topics
            for change in differs
        ]
    verdict = None if review.evaluation is None else review.evaluation.verdict
    if value.tab in ("summary", "findings"):
        return [_list_fields(one) for one in (review.decisions if value.tab == "summary" else review.findings)]
    if value.tab == "signature":
        return [asdict(file) for file in review.signed_content.files]
    listed: dict[str, Sequence[BaseModel]] = {
        "quality": () if verdict is None else verdict.results,
        "data": () if verdict is None else verdict.evaluated,
    }
    subgroups = () if review.evaluation is None or value.tab != "quality" else review.evaluation.subgroups
    rows = [one.model_dump() for one in listed[value.tab]]
    return rows + [{"gate": one.gate, **one.result.model_dump()} for one in subgroups]


def _list_fields(one: PageOrder[Any, Any]) -> dict[str, Any]:
    """Return the fields of an order, with its texts instead of commitments, and of its status."""
    texts = {name: one.open_text(bound) for name, bound in one.order.commitments().items()}
    return {"entry": one.entry, **one.order.model_dump(), **texts, **one.status.model_dump()}


def _opens(value: AdapterPage, whole: bool) -> tuple[str, tuple[OpenedPagePart, ...]]:
    parts = PARTS if whole else tuple(part for part in PARTS if part == value.tab)
    return value.name, () if value.review is None else open_parts(value.review, parts)


PAGE = Page("/adapters/{name}", "Adapter", adapter, _table, opens=_opens)


class Queue(ListPage[PendingReview]):
    """The page of pending reviews. `tones`: the tone of each tier."""

    tones: dict[str, str]


class QueueQuery(BeforeQuery):
    """`everyone` includes reviews of others."""

    everyone: bool = False


def queue(context: LedgerContext, viewer: Viewer, query: QueueQuery) -> Queue:
    """Return the pending reviews of the viewer, or of everyone."""
    state = context.ledger.state
    now = context.now(state)
    rows = list_pending_reviews(state, now, viewer.name, before=query.before, everyone=query.everyone)
    tiers = [tier.name for tier in state.parameters.tiers]
    return Queue.of(rows, tones={tier: tone_of_tier(tier, tiers) for tier in tiers})


QUEUE_PAGE = Page("/reviews", "Reviews", queue, columns(), group="Adapters", symbol="review")
