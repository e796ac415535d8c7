"""Sealed adapters, the newest first."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.names import versioned
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.state import State
from appliance.domain.releases.blocking import is_open
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context


class AdaptersQuery(Query):
    before: int | None = Field(default=None, ge=0)


class AdapterRow(Value):
    """`passed`: what its gates decided; None where it was judged by none."""

    name: str
    base: str
    dataset: str
    purpose: str
    ordered_by: str
    run: str
    passed: bool | None
    reviews: int
    open_findings: int
    answers: tuple[str, ...]
    """UNIT/TASK that it is released to."""
    state: str
    entry: int


class Adapters(Value):
    adapters: tuple[AdapterRow, ...]
    next: int | None


def adapters(context: Context, viewer: Viewer, query: AdaptersQuery) -> Adapters:
    state = context.ledger.state
    found = [one for one in reversed(state.adapters.values()) if query.before is None or one.index < query.before]
    answers: dict[str, list[str]] = {}
    for release in state.releases.values():
        answers.setdefault(release.current.adapter, []).append(f"{release.unit}/{release.task}")
    rows = tuple(_row(state, one, answers) for one in found[:PAGE_ROWS])
    return Adapters(adapters=rows, next=rows[-1].entry if len(found) > PAGE_ROWS else None)


def state_of(adapter: Adapter) -> str:
    if adapter.revoked is not None:
        return "revoked"
    return "sealed" if adapter.quarantined is None else "quarantined"


def _row(state: State, adapter: Adapter, answers: dict[str, list[str]]) -> AdapterRow:
    name = versioned(adapter.name, adapter.version)
    judgement = state.judgements.get(name)
    return AdapterRow(
        name=name,
        base=adapter.base,
        dataset=adapter.dataset,
        purpose=adapter.purpose,
        ordered_by=adapter.ordered_by,
        run=adapter.run,
        passed=None if judgement is None else judgement.passed,
        reviews=len(adapter.reviews),
        open_findings=sum(is_open(state, finding) for finding in adapter.findings),
        answers=tuple(answers.get(name, ())),
        state=state_of(adapter),
        entry=adapter.index,
    )


def _table(value: Adapters) -> Table:
    headers = tuple(AdapterRow.model_fields)
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.adapters])


PAGE = Page(
    "/adapters", "Adapters", PEOPLE, AdaptersQuery, adapters, "reviewers/adapters.html", _table, "Adapters", "adapter"
)
