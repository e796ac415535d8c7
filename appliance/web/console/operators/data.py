"""Bases, datasets and imports."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from pydantic import Field

from appliance.domain.core.names import versioned
from appliance.domain.core.state import State
from appliance.errors import NotFound
from appliance.web.console.core.page import PAGE_ROWS, PEOPLE, VERSIONED, Page, Query, Table, Value, Viewer
from appliance.workflows.core.context import Context
from appliance.workflows.queries.questions import dataset_labels

Labels = dict[str, dict[str, int]]


class PagedQuery(Query):
    before: int | None = Field(default=None, ge=0)


class Imported(Value):
    """A base or a dataset. `state`: why it stands no more, None while it does."""

    name: str
    about: str
    licence: str
    classification: str | None
    rows: int | None
    imported_by: str
    entry: int
    digest: str
    state: str | None


class Data(Value):
    bases: tuple[Imported, ...]
    datasets: tuple[Imported, ...]
    validation_sets: tuple[Imported, ...]
    """The last ones."""
    next: int | None


def data(context: Context, viewer: Viewer, query: PagedQuery) -> Data:
    state = context.ledger.state
    fitting = [
        (key, one)
        for key, one in zip(*_columns(state.datasets), strict=True)
        if query.before is None or one.index < query.before
    ][::-1]
    shown = fitting[:PAGE_ROWS]
    return Data(
        bases=tuple(
            Imported(
                name=one.name,
                about=_parameters(one.facts),
                licence=one.licence,
                classification=None,
                rows=None,
                imported_by=one.imported_by,
                entry=one.index,
                digest=one.digest,
                state=_gone(one.revoked, one.quarantined),
            )
            for one in reversed(state.bases.values()[-PAGE_ROWS:])
        ),
        datasets=tuple(
            Imported(
                name=key,
                about=str(one.facts.get("task", "")),
                licence=one.licence,
                classification=one.classification,
                rows=one.facts.get("rows"),
                imported_by=one.imported_by,
                entry=one.index,
                digest=one.digest,
                state=_gone(one.revoked, None),
            )
            for key, one in shown
        ),
        validation_sets=tuple(
            Imported(
                name=versioned(one.name, one.version),
                about=", ".join([one.task, *(word for word in ("blind", "final") if getattr(one, word))]),
                licence=one.licence,
                classification=one.classification,
                rows=one.facts.get("rows"),
                imported_by=one.imported_by,
                entry=one.index,
                digest=one.digest,
                state=_gone(one.revoked, None),
            )
            for one in reversed(state.validation_sets.values()[-PAGE_ROWS:])
        ),
        next=shown[-1][1].index if len(fitting) > PAGE_ROWS else None,
    )


def _columns(table: Any) -> tuple[list[str], list[Any]]:
    pairs = list(table.items())
    return [key for key, _ in pairs], [value for _, value in pairs]


def _parameters(facts: dict[str, Any]) -> str:
    count = facts.get("parameters")
    return f"{count / 1e6:,.0f} million parameters" if isinstance(count, int) else ""


def _gone(revoked: int | None, quarantined: int | None) -> str | None:
    if revoked is not None:
        return f"revoked by entry {revoked}"
    return None if quarantined is None else f"in quarantine by entry {quarantined}"


_LABELS: WeakKeyDictionary[State, dict[str, Labels]] = WeakKeyDictionary()
"""Of each state, by the dataset's digest: counting reads the whole file, which never changes."""


def _labels(context: Context, name: str, digest: str) -> Labels:
    known = _LABELS.setdefault(context.ledger.state, {})
    if digest not in known:
        known[digest] = dataset_labels(context, name)
    return known[digest]


def _table(value: Data) -> Table:
    headers = tuple(Imported.model_fields)
    rows = [[kind, *(getattr(one, name) for name in headers)] for kind, one in _both(value)]
    return Table(("kind", *headers), rows)


def _both(value: Data) -> list[tuple[str, Imported]]:
    kinds = (("base", value.bases), ("dataset", value.datasets), ("validation-set", value.validation_sets))
    return [(kind, one) for kind, listed in kinds for one in listed]


class DatasetQuery(Query):
    name: str = Field(pattern=VERSIONED)


class DatasetPage(Value):
    name: str
    row: dict[str, Any]
    facts: dict[str, Any]
    labels: tuple[tuple[str, int, int], ...]
    """Label, rows to train on, rows held out."""
    runs: tuple[tuple[str, str, str], ...]
    """The last ones on it: id, name, status."""


def dataset(context: Context, viewer: Viewer, query: DatasetQuery) -> DatasetPage:
    found = context.ledger.state.datasets.get(query.name)
    if found is None:
        raise NotFound(f"dataset: expected an imported one, got {query.name}")
    row = found.model_dump(mode="json")
    facts = row.pop("facts")
    runs = [run for run in context.ledger.state.runs.values() if run.dataset == query.name]
    labels = _labels(context, query.name, found.digest)
    return DatasetPage(
        name=query.name,
        row=row,
        facts={name: value for name, value in facts.items() if not isinstance(value, dict)},
        labels=tuple((label, sides["train"], sides["held-out"]) for label, sides in labels.items()),
        runs=tuple((run.id, run.name, run.status) for run in reversed(runs[-PAGE_ROWS:])),
    )


PAGE = Page("/data", "Bases and datasets", PEOPLE, PagedQuery, data, "operators/data.html", _table, "Training", "data")
DATASET = Page("/datasets/{name}", "Dataset", PEOPLE, DatasetQuery, dataset, "operators/dataset.html")
