"""The pages of bases, datasets and imports."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import Base, Dataset, Import, ValidationSet
from appliance.domain.data.imports import CancelImport
from appliance.web.console.core.page import PAGE_ROWS, BeforeQuery, CsvTable, ListPage, Page, PageValue, Viewer, columns
from appliance.web.console.core.render import sign_link
from appliance.web.console.operators.inputs import describe_set, find_ended
from appliance.workflows.core.context import LedgerContext


class ImportedRow(PageValue):
    """A base, dataset or validation set. `state` says why it is no longer usable, or is None."""

    name: str
    about: str
    licence: str
    classification: str | None
    rows: int | None
    imported_by: str
    entry: int
    digest: str
    state: str | None


class Data(PageValue):
    """The page of bases, datasets and validation sets."""

    bases: tuple[ImportedRow, ...]
    datasets: tuple[ImportedRow, ...]
    validation_sets: tuple[ImportedRow, ...]
    """The newest validation sets."""
    next: int | str | None


def data(context: LedgerContext, viewer: Viewer, query: BeforeQuery) -> Data:
    """Return the bases, datasets and validation sets, newest first."""
    state = context.ledger.state
    datasets = ListPage[Dataset].of(query.list_newest(state.datasets.values()), attrgetter("index"))
    bases = reversed(state.bases.values()[-PAGE_ROWS:])
    sets = reversed(state.validation_sets.values()[-PAGE_ROWS:])
    return Data(
        bases=tuple(_describe(one, _parameters(one.facts)) for one in bases),
        datasets=tuple(_describe(one, str(one.facts.get("dataset_kind", ""))) for one in datasets.rows),
        validation_sets=tuple(_describe(one, "; ".join([one.dataset_kind, *describe_set(one)])) for one in sets),
        next=datasets.next,
    )


def _describe(one: Base | Dataset | ValidationSet, about: str) -> ImportedRow:
    return ImportedRow(
        name=_name(one),
        about=about,
        licence=one.licence,
        classification=None if isinstance(one, Base) else one.classification,
        rows=one.facts.get("rows"),
        imported_by=one.imported_by,
        entry=one.index,
        digest=one.digest,
        state=find_ended(one.revoked, one.quarantined if isinstance(one, Base) else None),
    )


def _name(one: Base | Dataset | ValidationSet) -> str:
    return one.name if isinstance(one, Base) else versioned(one.name, one.version)


def _parameters(facts: dict[str, Any]) -> str:
    count = facts.get("parameters")
    if not isinstance(count, int):
        return ""
    return f"{count / 1e6:,.0f} million parameters" if count >= 10**6 else f"{count:,} parameters"


def _table(value: Data) -> CsvTable:
    headers = tuple(ImportedRow.model_fields)
    kinds = {"base": value.bases, "dataset": value.datasets, "validation-set": value.validation_sets}
    rows = [[kind, *(getattr(one, name) for name in headers)] for kind, listed in kinds.items() for one in listed]
    return CsvTable(("kind", *headers), rows)


PAGE = Page("/data", "Bases and datasets", data, _table, group="Training", symbol="data")


class ImportRow(Import):
    """An import. `found` has the measured facts. The reason of a failure is in the log under its order."""

    found: dict[str, Any]
    made: str | None
    """Name of the base, dataset or validation set that it made."""
    path: str | None
    """Address of the page of what it made."""
    cancel: str | None
    """Address of the form that cancels it, if the viewer can do so."""


def imports(context: LedgerContext, viewer: Viewer, query: BeforeQuery) -> ListPage[ImportRow]:
    """Return the imports, newest first."""
    state = context.ledger.state
    made: dict[str, Base | Dataset | ValidationSet] = {one.order: one for one in state.bases.values()}
    made.update({one.order: one for one in state.datasets.values()})
    made.update({one.order: one for one in state.validation_sets.values()})
    found = query.list_newest(state.imports.values())
    rows = (_row(viewer, one, made.get(one.order)) for one in found)
    return ListPage[ImportRow].of(rows, attrgetter("index"))


_FOLDERS: dict[type, str] = {Base: "bases", Dataset: "datasets", ValidationSet: "validation-sets"}
"""First part of the address of the page of what an import made."""


def _row(viewer: Viewer, one: Import, made: Base | Dataset | ValidationSet | None) -> ImportRow:
    facts = {} if made is None else made.facts
    name = None if made is None else _name(made)
    can_cancel = one.status == "requested" and (viewer.name == one.signer or viewer.has("administrator"))
    return ImportRow(
        **dict(one),
        found={name: value for name, value in facts.items() if not isinstance(value, dict)},
        made=name,
        path=None if name is None else f"/{_FOLDERS[type(made)]}/{name}",
        cancel=sign_link(CancelImport, order=one.order).path if can_cancel else None,
    )


_COLUMNS = ("subject", "action", "status", "signer", "licence", "classification", "order", "index", "made")
"""Columns of the table of imports."""
IMPORTS_PAGE = Page("/imports", "Imports", imports, columns("rows", *_COLUMNS), group="Training", symbol="import")
