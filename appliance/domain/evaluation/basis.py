"""The inputs of a verdict that follow from the ledger, which are the same for every reader of the ledger.

They are the records to compare with, and the earlier runs on the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.domain.core.names import split_version, versioned
from appliance.domain.core.records.data import LocalSet, ValidationSet
from appliance.domain.core.records.runs import Adapter, AdapterEvaluation, Run
from appliance.domain.core.state import State
from appliance.domain.data.imports import RELEASED_ENDING
from appliance.domain.data.kinds import METRIC, SHIPPED, is_local
from appliance.domain.evaluation.gates import HELD_OUT, GatesFile
from appliance.domain.evaluation.items import ITEMS_FILE

FULL = "full"
"""The method of full fine-tuning."""


@dataclass(frozen=True)
class ItemsFile:
    """A file of items in a sealed folder.

    With an `adapter`, it is in that adapter's folder and has this `digest`. Otherwise it is in the folder of the run
    that is evaluated, whose evaluation writes it.
    """

    path: str
    adapter: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class VerdictBasis:
    """The inputs of a verdict that follow from the ledger.

    `sets`: the sets that the run is evaluated on, the held-out rows first. `evaluated_before`, `named_before`: as in
    the verdict's evidence. `others`: by comparison and set, the record to compare with; None where no version is
    released, and missing where no comparison is possible.
    """

    sets: tuple[str, ...] = (HELD_OUT,)
    evaluated_before: Mapping[str, int] = field(default_factory=dict)
    named_before: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[tuple[str, str], ItemsFile | None] = field(default_factory=dict)

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """Return the sets on which the released version must be evaluated now, since it has no items of their rows."""
        return tuple(name for (_, name), one in self.others.items() if one is not None and one.adapter is None)


def items_path(name: str, *, released: bool = False) -> str:
    """Return the file name of a set's items, those of the run or those of the released version."""
    if released:
        return f"items-{name}{RELEASED_ENDING}.jsonl"
    return ITEMS_FILE if name == HELD_OUT else f"items-{name}.jsonl"


def find_basis(state: State, run: Run, gates: GatesFile | None) -> VerdictBasis:
    """Return the basis of a run that is to be sealed. `gates` are those that its order bound."""
    names = sets_by_name(run)
    rows = {HELD_OUT: rows_of_dataset(state, run.dataset)}
    finals = set()
    for name, version in names.items():
        found = state.validation_sets.get(version)
        if found is not None:
            rows[name] = rows_of_set(found)
            finals |= {name} if found.final else set()
    for bound in run.local_sets:
        rows[bound.set] = rows_of_local(state, bound, run.dataset)
    others: dict[tuple[str, str], ItemsFile | None] = {}
    for gate in () if gates is None else gates.gates:
        if gate.comparison == "released":
            others |= _find_released_record(state, run, gate.set)
        elif gate.comparison == "full-fine-tuning":
            others |= _find_full_record(state, run, gate.set)
    return VerdictBasis(
        (HELD_OUT, *names, *(bound.set for bound in run.local_sets)),
        {name: count_evaluations(state, one) for name, one in rows.items()},
        {name: count_evaluations(state, rows[name], run.name) for name in finals},
        others,
    )


def sets_by_name(run: Run) -> dict[str, str]:
    """Return the validation sets that the run's order bound: their versioned names, by name."""
    return {split_version(bound.validation_set)[0]: bound.validation_set for bound in run.sets}


def _find_released_record(state: State, run: Run, name: str) -> dict[tuple[str, str], ItemsFile | None]:
    released = find_released(state, run.name, run.dataset, run.base_digest)
    if released is None:
        return {("released", name): None}
    if released.base_digest != run.base_digest:
        return {}  # its rows were rendered for another base
    evaluation = state.evaluations.get(versioned(released.name, released.version))
    recorded = None if evaluation is None else _record_of(evaluation, run, name)
    if recorded is None and is_local(name) and name not in SHIPPED:
        return {}  # the worker for lm-eval tasks and metrics evaluates only one adapter
    return {("released", name): recorded or ItemsFile(items_path(name, released=True))}


def _find_full_record(state: State, run: Run, name: str) -> dict[tuple[str, str], ItemsFile | None]:
    """Return the record of the last sealed run of full fine-tuning on the same dataset."""
    full = [one for one in state.evaluations.values() if one.dataset == run.dataset and _method(state, one) == FULL]
    records = [record for one in full if (record := _record_of(one, run, name)) is not None]
    return {("full-fine-tuning", name): records[-1]} if records else {}


def _record_of(evaluation: AdapterEvaluation, run: Run, name: str) -> ItemsFile | None:
    """Return the record that an evaluation has of the same rows; None where it has none.

    A metric's rows are those of the dataset, so the datasets must be the same.
    """
    if name.startswith(METRIC) and evaluation.dataset != run.dataset:
        return None
    bound = {HELD_OUT: run.dataset} | sets_by_name(run) | {one.set: one.digest for one in run.local_sets}
    for found, identity, items in _list_records(evaluation):
        if (found, identity) == (name, bound.get(name)):
            return ItemsFile(items_path(name), evaluation.adapter, items)
    return None


def _list_records(evaluation: AdapterEvaluation) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each evaluated set, its version or digest, and the digest of its items."""
    yield HELD_OUT, evaluation.dataset, evaluation.items
    for one in evaluation.sets:
        yield split_version(one.validation_set)[0], one.validation_set, one.items
    for local in evaluation.local_sets:
        yield local.set, local.digest, local.items


def find_records(state: State) -> dict[str, tuple[str, str]]:
    """Return, by the digest of the items, the adapter and the file name of every record of a run's own items."""
    return {
        items: (one.adapter, items_path(name))
        for one in state.evaluations.values()
        for name, _, items in _list_records(one)
    }


@dataclass(frozen=True)
class RowOrigin:
    """The origin of rows: the name of their set in any version, and the digest of their file."""

    kind: str
    name: str
    file: str

    def same(self, other: RowOrigin) -> bool:
        """Return True if the rows have the same file, or are versions of the same set."""
        return self.file == other.file or (self.kind, self.name) == (other.kind, other.name)


def list_evaluations(state: State, rows: RowOrigin, adapter: str | None = None) -> list[AdapterEvaluation]:
    """Return the evaluations of sealed runs on these rows, with gates or without: each of them showed its metrics.

    With `adapter`, only those of adapters of this name.
    """
    return [
        one
        for one in state.evaluations.values()
        if (adapter is None or split_version(one.adapter)[0] == adapter)
        and any(rows.same(other) for other in _evaluated_rows(state, one))
    ]


def count_evaluations(state: State, rows: RowOrigin, adapter: str | None = None) -> int:
    return len(list_evaluations(state, rows, adapter))


def _evaluated_rows(state: State, evaluation: AdapterEvaluation) -> Iterator[RowOrigin]:
    yield rows_of_dataset(state, evaluation.dataset)
    for one in evaluation.sets:
        found = state.validation_sets.get(one.validation_set)
        if found is not None:
            yield rows_of_set(found)
    for local in evaluation.local_sets:
        yield rows_of_local(state, local, evaluation.dataset)


def rows_of_set(found: ValidationSet) -> RowOrigin:
    """Return the rows of a validation set, of which all versions and all other sets with the same file are the same."""
    return RowOrigin("validation-set", found.name, found.file)


def rows_of_local(state: State, bound: LocalSet, dataset: str) -> RowOrigin:
    """Return the rows of a local set for runs on this dataset.

    Each run is a trial on the same rows. Runs on other datasets are trials of other tasks and are not counted, unless
    their held-out rows are the same file.
    """
    task = rows_of_dataset(state, dataset)
    return RowOrigin("local-set", f"{bound.set} with {task.name}", f"{bound.set} with {task.file}")


def rows_of_dataset(state: State, name: str) -> RowOrigin:
    """Return the dataset's held-out rows, identified by the file that they were imported from."""
    dataset = state.datasets.get(name)
    ordered = None if dataset is None else state.imports.get(dataset.order)
    return RowOrigin("dataset", split_version(name)[0], name if ordered is None else ordered.held_out_of)


def find_released(state: State, name: str, dataset: str, base_digest: str) -> Adapter | None:
    """Return the version of this adapter name that is active for a unit.

    Where there is none, return one on the same base whose dataset has the same held-out rows, in any version, so that
    renaming an adapter does not avoid the comparison. Of several, return the newest release.
    """
    current = sorted((release.current for release in state.releases.values()), key=lambda one: one.index, reverse=True)
    active = [
        adapter for one in current if (adapter := state.adapters.get(one.adapter)) is not None and _is_usable(adapter)
    ]
    rows = rows_of_dataset(state, dataset)
    named = [adapter for adapter in active if adapter.name == name]
    on_base = [adapter for adapter in active if adapter.base_digest == base_digest]
    same_rows = [adapter for adapter in on_base if rows.same(rows_of_dataset(state, adapter.dataset))]
    return next(iter([*named, *same_rows]), None)


def _is_usable(adapter: Adapter) -> bool:
    return adapter.revoked is None and adapter.quarantined is None


def find_sets(state: State, names: Sequence[str], base_digest: str) -> dict[str, ValidationSet]:
    """Return, for each name, the newest version that is not revoked and was rendered for the base."""
    usable = [one for one in state.validation_sets.values() if one.revoked is None and one.base_digest == base_digest]
    return {one.name: one for one in sorted(usable, key=lambda one: one.version) if one.name in names}


def _method(state: State, evaluation: AdapterEvaluation) -> str | None:
    run = state.runs.get(evaluation.run)
    return None if run is None else run.method
