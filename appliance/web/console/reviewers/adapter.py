"""An adapter under review: the review page in tabs that can be linked, and its history."""

from __future__ import annotations

import base64
from typing import Any, Literal, get_args

from pydantic import Field, model_serializer

from appliance.domain.core.decisions import PARTS, Opened
from appliance.domain.core.entry import parse_entry
from appliance.domain.releases.page.parts import open_parts
from appliance.domain.releases.page.privacy import describe_privacy
from appliance.domain.releases.page.tries import describe_tries
from appliance.domain.releases.page.value import Found, ReviewPage
from appliance.domain.releases.reviews import ReviewRecorded
from appliance.errors import BadInput, NotFound, Tampered
from appliance.web.console.auditors.entry import read_order
from appliance.web.console.core.page import PEOPLE, VERSIONED, Page, Query, Table, Value, Viewer
from appliance.web.console.core.why import Reason, explain_reasons
from appliance.web.console.reviewers.adapter_plots import Plots, plot_quality
from appliance.web.console.reviewers.adapters import state_of
from appliance.workflows.core.context import Context
from appliance.workflows.queries.log import disclosed
from appliance.workflows.queries.questions import adapter_story
from appliance.workflows.releases.page import review_page
from appliance.workflows.releases.review import find_adapter

Tab = Literal["summary", "changes", "quality", "data", "findings", "history", "signature"]


class AdapterQuery(Query):
    name: str = Field(pattern=VERSIONED)
    tab: Tab = "summary"


class Happened(Value):
    """`words`: of a decision, what its reviewer said it means."""

    entry: int
    time: str
    type: str
    actor: str
    outcome: str
    words: str | None


class AdapterPage(Value):
    """`review`: the value of docs/formats/review-page.md, which is this page's JSON. It is None where the sealed folder
    cannot be read; `problem` then says why. `missing`: of each request, why it is not met. Beside the review, only what
    the chosen tab shows is filled."""

    name: str
    tab: Tab
    state: str
    review: ReviewPage | None
    problem: str | None
    missing: tuple[tuple[Reason, ...], ...]
    plots: Plots | None
    history: tuple[Happened, ...]

    @model_serializer
    def _as_review(self) -> dict[str, Any]:
        if self.review is None:
            return {"adapter": self.name, "problem": self.problem}
        return self.review.model_dump(mode="json")

    @property
    def tabs(self) -> tuple[str, ...]:
        """Of an adapter whose folder cannot be read, what the log alone tells."""
        return get_args(Tab) if self.review is not None else ("history",)

    @property
    def to_open(self) -> tuple[str, ...]:
        """The tabs to be opened before an approval can be signed in the browser."""
        return PARTS

    @property
    def findings(self) -> tuple[Found, ...]:
        """The open ones first, then by what is due first."""
        found = () if self.review is None else self.review.findings
        return tuple(sorted(found, key=lambda one: (not one.open, one.due, one.entry)))

    @property
    def privacy(self) -> list[tuple[str, str]]:
        found = None if self.review is None else self.review.privacy
        return [] if found is None else describe_privacy(found)

    @property
    def tried(self) -> str:
        return "" if self.review is None else describe_tries(self.review.tried)

    @property
    def bound_by(self) -> dict[str, int]:
        """The entry that binds a digest."""
        return {} if self.review is None else {one.digest: one.entry for one in self.review.entries}


def adapter(context: Context, viewer: Viewer, query: AdapterQuery) -> AdapterPage:
    found = find_adapter(context.ledger.state, query.name)
    problem, review = None, None
    try:
        review = review_page(context, query.name)
    except (BadInput, NotFound, Tampered) as error:
        problem = error.message
    judged = None if review is None else review.judged
    tab: Tab = "history" if review is None else query.tab
    return AdapterPage(
        name=query.name,
        tab=tab,
        state=state_of(found),
        review=review,
        problem=problem,
        missing=() if review is None else tuple(explain_reasons(one.missing) for one in review.asked),
        plots=plot_quality(judged, review.calibration) if review is not None and tab == "quality" else None,
        history=_history(context, query.name) if tab == "history" else (),
    )


def _history(context: Context, name: str) -> tuple[Happened, ...]:
    story = adapter_story(context, name)
    entries = [parse_entry(base64.b64decode(one["entry"])) for one in story["entries"]]
    return tuple(
        Happened(
            entry=one.index,
            time=one.time,
            type=one.type,
            actor=one.actor,
            outcome=one.outcome,
            words=_meaning(context, one.index) if one.type == ReviewRecorded.type else None,
        )
        for one in entries
    )


def _meaning(context: Context, index: int) -> str | None:
    """A text that was erased says so."""
    content = context.ledger.documents_of(index).get("order")
    if content is None:
        return None
    texts = {one["commitment"]: one["text"] for one in disclosed(context, [content])}
    return dict(read_order(content, texts)[1]).get("meaning")


_CHANGES = ("data", "recipe", "base", "teaching", "code")
_ROWS: dict[str, tuple[str, ...]] = {
    "summary": (
        *("entry", "decision", "unit", "field", "reviewer", "on_behalf_of"),
        *("valid_until", "again_by", "state", "superseded_by"),
    ),
    "changes": ("since", "of", "what", "before", "now"),
    "quality": (
        *("gate", "by", "value", "outcome", "items", "ours", "theirs"),
        *("gain", "lower", "upper", "adjusted", "worse"),
    ),
    "data": ("set", "model", "items", "judged_before", "named_before", "duplicates", "near_duplicates", "digest"),
    "findings": (
        *("entry", "open", "kind", "severity", "blocks", "field", "finder", "owner", "due"),
        *("finding", "remedy", "retest", "closed", "closed_by"),
    ),
    "history": tuple(Happened.model_fields),
    "signature": ("path", "size", "digest"),
}
"""The columns of each tab's CSV."""


def _table(value: AdapterPage) -> Table:
    headers = _ROWS[value.tab]
    return Table(headers, [[row.get(name) for name in headers] for row in _rows(value)])


def _rows(value: AdapterPage) -> list[dict[str, Any]]:
    """Of quality the gates, then their parts."""
    review = value.review
    if value.tab == "history" or review is None:
        return [one.model_dump() for one in value.history]
    if value.tab == "changes":
        return [
            {"since": changes.since, "of": topic, **change.model_dump()}
            for changes in review.changes
            for topic in _CHANGES
            for change in getattr(changes, topic)
        ]
    judged = review.judged
    listed: dict[str, tuple[Any, ...]] = {
        "summary": review.decisions,
        "quality": () if judged is None else (*judged.results, *judged.parts),
        "data": () if judged is None else judged.records,
        "findings": value.findings,
        "signature": review.bound.files,
    }
    return [one.model_dump() for one in listed[value.tab]]


def _opens(value: AdapterPage, whole: bool) -> tuple[str, tuple[Opened, ...]]:
    parts = PARTS if whole else tuple(part for part in PARTS if part == value.tab)
    return value.name, () if value.review is None else open_parts(value.review, parts)


PAGE = Page(
    "/adapters/{name}", "Adapter", PEOPLE, AdapterQuery, adapter, "reviewers/adapter.html", _table, opens=_opens
)
