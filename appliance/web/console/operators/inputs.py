"""The pages of one base, one dataset and one validation set: what uses it, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import Field

from appliance.api.data import SplitRows
from appliance.domain.actions.registry import ACTIONS
from appliance.domain.core.names import versioned
from appliance.domain.core.order import Order
from appliance.domain.core.records.data import Base, Dataset, ValidationSet
from appliance.domain.core.records.runs import AdapterEvaluation, Run
from appliance.domain.core.state import State
from appliance.domain.data.artifacts import RevokeBase, RevokeDataset, RevokeValidationSet
from appliance.domain.data.imports import ImportDataset, ImportValidationSet
from appliance.domain.evaluation.basis import find_sets
from appliance.domain.evaluation.gates import parse_gates
from appliance.domain.retention import LiftHold, PlaceHold
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.errors import NotFound
from appliance.web.console.core.page import PAGE_ROWS, VERSIONED, FormLink, NameQuery, Page, PageValue, Query, Viewer
from appliance.web.console.core.render import sign_link
from appliance.web.console.operators.records import train_form
from appliance.workflows.core.context import LedgerContext
from appliance.workflows.queries.gates import put_on_set
from appliance.workflows.queries.questions import dataset_labels


def _offer(viewer: Viewer, order: type[Order], title: str, /, **given: str) -> Iterator[FormLink]:
    """Yield the form of an action if the viewer has a role that may sign it."""
    if viewer.may_sign(ACTIONS[order.action].signers):
        yield sign_link(order, title, **given)


def _offer_training(viewer: Viewer, given: Mapping[str, str]) -> Iterator[FormLink]:
    if viewer.has("operator"):
        yield FormLink(title=ACTIONS["train"].title, path=train_form(given))


def _offer_hold(state: State, viewer: Viewer, subject: str) -> Iterator[FormLink]:
    if subject in state.holds:
        yield from _offer(viewer, LiftHold, "Lift the legal hold", subject=subject)
    else:
        yield from _offer(viewer, PlaceHold, "Place a legal hold", subject=subject)


def find_ended(revoked: int | None, quarantined: int | None = None) -> str | None:
    """Return why an input is no longer usable, or None if it is."""
    if revoked is not None:
        return f"revoked by entry {revoked}"
    return None if quarantined is None else f"in quarantine by entry {quarantined}"


def _terms(found: Dataset | ValidationSet) -> dict[str, str]:
    """Return the values that another version of an input usually shares."""
    return {"base": found.base, "licence": found.licence, "classification": found.classification}


class InputRun(PageValue):
    """A run that uses an input."""

    id: str
    name: str
    status: str


def _list_runs(runs: list[Run]) -> tuple[InputRun, ...]:
    """Return the newest of these runs, newest first."""
    return tuple(InputRun(id=run.id, name=run.name, status=run.status) for run in reversed(runs[-PAGE_ROWS:]))


def _plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if not isinstance(value, dict)}


class BasePage(PageValue):
    """The page of a base."""

    row: dict[str, Any]
    facts: dict[str, Any]
    ended: str | None
    datasets: tuple[str, ...]
    """The newest datasets that were rendered for it."""
    validation_sets: tuple[str, ...]
    runs: tuple[InputRun, ...]
    actions: tuple[FormLink, ...]


def base(context: LedgerContext, viewer: Viewer, query: NameQuery) -> BasePage:
    """Return the page of a base.

    Raises: NotFound if there is none of this name.
    """
    state = context.ledger.state
    found = state.bases.get(query.name)
    if found is None:
        raise NotFound(f"base: expected an imported one, got {query.name}")
    row = found.model_dump(mode="json", exclude={"facts"})
    sets = [key for key, one in state.validation_sets.items() if one.base_digest == found.digest]
    return BasePage(
        row=row,
        facts=_plain_facts(found.facts),
        ended=find_ended(found.revoked, found.quarantined),
        datasets=tuple(
            reversed([key for key, one in state.datasets.items() if one.base_digest == found.digest][-PAGE_ROWS:])
        ),
        validation_sets=tuple(reversed(sets[-PAGE_ROWS:])),
        runs=_list_runs([run for run in state.runs.values() if run.base_digest == found.digest]),
        actions=tuple(_base_actions(state, viewer, found)),
    )


def _base_actions(state: State, viewer: Viewer, found: Base) -> Iterator[FormLink]:
    if find_ended(found.revoked, found.quarantined) is None:
        yield from _offer_training(viewer, {"recipe.base": found.name})
        yield from _offer(viewer, ImportDataset, "Import a dataset for it", base=found.name)
        yield from _offer(viewer, ImportValidationSet, "Import a validation set for it", base=found.name)
    if found.revoked is None:
        yield from _offer(viewer, RevokeBase, "Revoke it", base=found.name)
    yield from _offer_hold(state, viewer, f"base:{found.name}")


BASE = Page("/bases/{name}", "Base", base)


class VersionQuery(Query):
    """The NAME@VERSION of a dataset or validation set."""

    name: str = Field(pattern=VERSIONED)


class DatasetPage(PageValue):
    """The page of a dataset."""

    name: str
    row: dict[str, Any]
    facts: dict[str, Any]
    ended: str | None
    labels: tuple[tuple[str, int, int], ...]
    """Label, rows to train on, rows held out."""
    runs: tuple[InputRun, ...]
    actions: tuple[FormLink, ...]


def dataset(context: LedgerContext, viewer: Viewer, query: VersionQuery) -> DatasetPage:
    """Return the page of a dataset.

    Raises: NotFound if there is none of this name.
    """
    state = context.ledger.state
    found = state.datasets.get(query.name)
    if found is None:
        raise NotFound(f"dataset: expected an imported one, got {query.name}")
    labels = _labels(context, query.name, found.digest)
    return DatasetPage(
        name=query.name,
        row=found.model_dump(mode="json", exclude={"facts"}),
        facts=_plain_facts(found.facts),
        ended=find_ended(found.revoked),
        labels=tuple((label, sides.train, sides.held_out) for label, sides in labels.items()),
        runs=_list_runs([run for run in state.runs.values() if run.dataset == query.name]),
        actions=tuple(_dataset_actions(state, viewer, query.name, found)),
    )


Labels = dict[str, SplitRows]
"""Number of rows by label and split."""
_LABELS: WeakKeyDictionary[State, dict[str, Labels]] = WeakKeyDictionary()
"""Counts by dataset digest, for each state. Counting reads the whole file, which never changes."""


def _labels(context: LedgerContext, name: str, digest: str) -> Labels:
    known = _LABELS.setdefault(context.ledger.state, {})
    if digest not in known:
        known[digest] = dataset_labels(context, name)
    return known[digest]


def _dataset_actions(state: State, viewer: Viewer, name: str, found: Dataset) -> Iterator[FormLink]:
    if found.revoked is None:
        yield from _offer_training(viewer, {"recipe.base": found.base, "recipe.dataset": name})
    given = {"dataset": found.name, **_terms(found), "dataset_kind": str(found.facts.get("dataset_kind", ""))}
    yield from _offer(viewer, ImportDataset, "Import another version", **given)
    if found.revoked is None:
        yield from _offer(viewer, RevokeDataset, "Revoke it", dataset=name)
    yield from _offer_hold(state, viewer, f"dataset:{name}")


DATASET = Page("/datasets/{name}", "Dataset", dataset)


class SetPage(PageValue):
    """The page of a validation set.

    `used` is the version on which the next run on this base is evaluated if its gates name the set: the newest that is
    valid, or None. `waiting` are runs that bound this version and are not sealed.
    """

    name: str
    set: str
    row: dict[str, Any]
    facts: dict[str, Any]
    ended: str | None
    properties: tuple[str, ...]
    gates: str
    """Name of the gates file of the console's list that evaluates runs on the set."""
    needed: int
    """Number of rows for which the gates of this file ask."""
    used: str | None
    evaluated: tuple[AdapterEvaluation, ...]
    waiting: tuple[InputRun, ...]
    actions: tuple[FormLink, ...]


def validation_set(context: LedgerContext, viewer: Viewer, query: VersionQuery) -> SetPage:
    """Return the page of a validation set.

    Raises: NotFound if there is none of this name.
    """
    state = context.ledger.state
    found = state.validation_sets.get(query.name)
    if found is None:
        raise NotFound(f"validation set: expected an imported one, got {query.name}")
    used = find_sets(state, [found.name], found.base_digest).get(found.name)
    evaluations = [
        one for one in state.evaluations.values() if any(bound.validation_set == query.name for bound in one.sets)
    ]
    waiting = [
        run
        for run in state.runs.values()
        if run.sets and run.status in UNDER_WAY and any(bound.validation_set == query.name for bound in run.sets)
    ]
    gates = put_on_set(found)
    return SetPage(
        name=query.name,
        set=found.name,
        row=found.model_dump(mode="json", exclude={"facts", "blind", "final"}),
        facts=_plain_facts(found.facts),
        ended=find_ended(found.revoked),
        properties=describe_set(found),
        gates=gates.name,
        needed=max(one.least_items for one in parse_gates(gates.data).gates),
        used=None if used is None else versioned(used.name, used.version),
        evaluated=tuple(reversed(evaluations[-PAGE_ROWS:])),
        waiting=_list_runs(waiting),
        actions=tuple(_set_actions(state, viewer, query.name, found)),
    )


def _set_actions(state: State, viewer: Viewer, name: str, found: ValidationSet) -> Iterator[FormLink]:
    if found.revoked is None:
        yield from _offer_training(viewer, {"recipe.base": found.base, "gates": put_on_set(found).digest})
    given = {"validation_set": found.name, **_terms(found), "dataset_kind": found.dataset_kind}
    flags = {name: "yes" for name in ("blind", "final") if getattr(found, name)}
    yield from _offer(viewer, ImportValidationSet, "Import another version", **given, **flags)
    if found.revoked is None:
        yield from _offer(viewer, RevokeValidationSet, "Revoke it", validation_set=name)
    yield from _offer_hold(state, viewer, f"validation-set:{name}")


def describe_set(found: ValidationSet) -> tuple[str, ...]:
    """Return in words what is special about a validation set."""
    words = {"blind": "Rows hidden from everyone", "final": "Evaluates each adapter name once"}
    return tuple(text for name, text in words.items() if getattr(found, name))


VALIDATION_SET = Page("/validation-sets/{name}", "Validation set", validation_set)
