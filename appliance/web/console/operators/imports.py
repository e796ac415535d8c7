"""Imports: what was ordered to be brought in, and what was found in it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context


class ImportsQuery(Query):
    before: int | None = Field(default=None, ge=0)


class ImportRow(Value):
    """`found`: what was measured of it. Why one failed is in the log, under its order."""

    subject: str
    verb: str
    status: str
    signer: str
    licence: str
    classification: str
    order: str
    entry: int
    found: dict[str, Any]


class Imports(Value):
    imports: tuple[ImportRow, ...]
    next: int | None


def imports(context: Context, viewer: Viewer, query: ImportsQuery) -> Imports:
    state = context.ledger.state
    every = state.imports.values()
    found = [one for one in reversed(every) if query.before is None or one.index < query.before][: PAGE_ROWS + 1]
    made: dict[str, Base | Dataset | ValidationSet] = {one.order: one for one in state.bases.values()}
    made.update({one.order: one for one in state.datasets.values()})
    made.update({one.order: one for one in state.validation_sets.values()})
    rows = tuple(_row(one, made.get(one.order)) for one in found[:PAGE_ROWS])
    return Imports(imports=rows, next=rows[-1].entry if len(found) > PAGE_ROWS else None)


def _row(one: Import, made: Base | Dataset | ValidationSet | None) -> ImportRow:
    facts = {} if made is None else made.facts
    return ImportRow(
        subject=one.subject,
        verb=one.verb,
        status=one.status,
        signer=one.signer,
        licence=one.licence,
        classification=one.classification,
        order=one.order,
        entry=one.index,
        found={name: value for name, value in facts.items() if not isinstance(value, dict)},
    )


def _table(value: Imports) -> Table:
    headers = tuple(name for name in ImportRow.model_fields if name != "found")
    return Table(headers, [[getattr(one, name) for name in headers] for one in value.imports])


PAGE = Page(
    "/imports", "Imports", PEOPLE, ImportsQuery, imports, "operators/imports.html", _table, "Training", "import"
)
