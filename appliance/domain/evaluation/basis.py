"""What a verdict rests on beside the run's own items: the records that it is compared with, and how often the rows were
judged on before. All of it follows from the log, so every reader of the log finds the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.domain.core.names import split_version, versioned
from appliance.domain.core.records.adapters import Adapter, Judgement
from appliance.domain.core.records.data import LocalSet, ValidationSet
from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.data.imports import RELEASED_ENDING
from appliance.domain.data.local_sets import METRIC, SHIPPED, is_local
from appliance.domain.evaluation.gates import HELD_OUT, GateSet
from appliance.domain.evaluation.items import ITEMS_FILE

FULL = "full"


@dataclass(frozen=True)
class Record:
    """Items in a sealed folder: those of an `adapter` by their `digest`; where it is None, of the folder of the run
    that is judged, whose evaluation writes them."""

    path: str
    adapter: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Basis:
    """`sets`: what the run is judged on, the held-out rows first. `judged_before`, `named_before`: as a verdict's
    evidence has them. `others`: by comparison and set the record that it is compared with; None where no version is
    released, and missing where nothing can be compared."""

    sets: tuple[str, ...] = (HELD_OUT,)
    judged_before: Mapping[str, int] = field(default_factory=dict)
    named_before: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[tuple[str, str], Record | None] = field(default_factory=dict)

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """The sets on which the released version has to be evaluated, since it has no items of their rows."""
        return tuple(name for (_, name), one in self.others.items() if one is not None and one.adapter is None)


def items_path(name: str, *, released: bool = False) -> str:
    """The file of a set's items: of the run, or of the released version beside its base."""
    if released:
        return f"items-{name}{RELEASED_ENDING}.jsonl"
    return ITEMS_FILE if name == HELD_OUT else f"items-{name}.jsonl"


def find_basis(state: State, run: Run, gates: GateSet | None) -> Basis:
    """That of a run which is sealed next. `gates`: those that its order bound."""
    names = sets_by_name(run)
    rows = {HELD_OUT: _held_out_rows(state, run.dataset)}
    finals = set()
    for name, version in names.items():
        found = state.validation_sets.get(version)
        if found is not None:
            rows[name] = _rows_of_set(found)
            finals |= {name} if found.final else set()
    for bound in run.local_sets:
        rows[bound.set] = _rows_of_local(state, bound, run.dataset)
    others: dict[tuple[str, str], Record | None] = {}
    for gate in () if gates is None else gates.gates:
        if gate.comparison == "released":
            others |= _find_released_record(state, run, gate.set)
        elif gate.comparison == "full-fine-tuning":
            others |= _find_full_record(state, run, gate.set)
    return Basis(
        (HELD_OUT, *names, *(bound.set for bound in run.local_sets)),
        {name: _count(state, one) for name, one in rows.items()},
        {name: _count(state, rows[name], run.name) for name in finals},
        others,
    )


def sets_by_name(run: Run) -> dict[str, str]:
    """The versions of the validation sets that the run's order bound, by name."""
    return {split_version(bound.validation_set)[0]: bound.validation_set for bound in run.sets}


def _find_released_record(state: State, run: Run, name: str) -> dict[tuple[str, str], Record | None]:
    released = find_released(state, run.name, run.dataset, run.base_digest)
    if released is None:
        return {("released", name): None}
    if released.base_digest != run.base_digest:
        return {}  # the rows are rendered for another base
    judgement = state.judgements.get(versioned(released.name, released.version))
    recorded = None if judgement is None else _record_of(judgement, run, name)
    if recorded is None and is_local(name) and name not in SHIPPED:
        return {}  # the worker of tasks and metrics judges one adapter
    return {("released", name): recorded or Record(items_path(name, released=True))}


def _find_full_record(state: State, run: Run, name: str) -> dict[tuple[str, str], Record | None]:
    """Of the last sealed run of full fine-tuning on the same dataset."""
    full = [one for one in state.judgements.values() if one.dataset == run.dataset and _method(state, one) == FULL]
    records = [record for one in full if (record := _record_of(one, run, name)) is not None]
    return {("full-fine-tuning", name): records[-1]} if records else {}


def _record_of(judgement: Judgement, run: Run, name: str) -> Record | None:
    """What was recorded of the same rows."""
    if name == HELD_OUT:
        return Record(ITEMS_FILE, judgement.adapter, judgement.items) if judgement.dataset == run.dataset else None
    if is_local(name):
        return _local_record_of(judgement, run, name)
    version = sets_by_name(run).get(name)
    for one in judgement.sets:
        if one.validation_set == version:
            return Record(items_path(name), judgement.adapter, one.items)
    return None


def _local_record_of(judgement: Judgement, run: Run, name: str) -> Record | None:
    """A metric's rows are the dataset's."""
    digest = next((one.digest for one in run.local_sets if one.set == name), None)
    same = judgement.dataset == run.dataset or not name.startswith(METRIC)
    for one in judgement.local_sets:
        if same and (one.set, one.digest) == (name, digest):
            return Record(items_path(name), judgement.adapter, one.items)
    return None


def find_records(state: State) -> dict[str, tuple[str, str]]:
    """By the digest of their items, the adapter and the file of every record of a run's own items."""
    found = {}
    for one in state.judgements.values():
        found[one.items] = (one.adapter, ITEMS_FILE)
        for of_set in one.sets:
            found[of_set.items] = (one.adapter, items_path(split_version(of_set.validation_set)[0]))
        for local in one.local_sets:
            found[local.items] = (one.adapter, items_path(local.set))
    return found


@dataclass(frozen=True)
class _Rows:
    """Where rows come from: any version of a name, and the file that they came in, by its digest."""

    kind: str
    name: str
    file: str

    def same(self, other: _Rows) -> bool:
        return self.file == other.file or (self.kind, self.name) == (other.kind, other.name)


def count_judged(state: State, dataset: str) -> int:
    """The runs that were evaluated on the dataset's held-out rows and sealed: each showed its metrics, with gates or
    without. Every version of the dataset counts, and whatever judged on the same file, by its digest."""
    return _count(state, _held_out_rows(state, dataset))


def count_judged_locally(state: State, bound: LocalSet, dataset: str) -> int:
    """... on the set of no log, of runs on the dataset in any version."""
    return _count(state, _rows_of_local(state, bound, dataset))


def count_judged_on(state: State, validation_set: ValidationSet) -> int:
    """... on the validation set, in any version or in another set's or dataset's same file."""
    return _count(state, _rows_of_set(validation_set))


def list_judged(state: State, dataset: str) -> list[Judgement]:
    """Those that `count_judged` counts."""
    return _list(state, _held_out_rows(state, dataset))


def _count(state: State, rows: _Rows, adapter: str | None = None) -> int:
    return len(_list(state, rows, adapter))


def _list(state: State, rows: _Rows, adapter: str | None = None) -> list[Judgement]:
    """`adapter`: only those of this name."""
    return [
        one
        for one in state.judgements.values()
        if (adapter is None or split_version(one.adapter)[0] == adapter)
        and any(rows.same(other) for other in _judged_rows(state, one))
    ]


def _judged_rows(state: State, judgement: Judgement) -> Iterator[_Rows]:
    yield _held_out_rows(state, judgement.dataset)
    for one in judgement.sets:
        found = state.validation_sets.get(one.validation_set)
        if found is not None:
            yield _rows_of_set(found)
    for local in judgement.local_sets:
        yield _rows_of_local(state, local, judgement.dataset)


def _rows_of_set(found: ValidationSet) -> _Rows:
    return _Rows("validation-set", found.name, found.file)


def _rows_of_local(state: State, bound: LocalSet, dataset: str) -> _Rows:
    """Each run is a try on the same rows; of these, runs on other datasets are tries at other tasks. A dataset under
    another name is none where its held-out rows came in the same file."""
    task = _held_out_rows(state, dataset)
    return _Rows("local-set", f"{bound.set} with {task.name}", f"{bound.set} with {task.file}")


def _held_out_rows(state: State, name: str) -> _Rows:
    """By the file that the dataset's held-out rows came in."""
    dataset = state.datasets.get(name)
    ordered = None if dataset is None else state.imports.get(dataset.order)
    return _Rows("dataset", split_version(name)[0], name if ordered is None else ordered.held_out_of)


def find_released(state: State, name: str, dataset: str, base_digest: str) -> Adapter | None:
    """The version of this adapter name that answers a unit now. Where there is none, one on the same base with the same
    held-out rows, of any version of the dataset: another name gets around nothing. Of several, the newest release.
    """
    current = sorted((release.current for release in state.releases.values()), key=lambda one: one.index, reverse=True)
    found = [
        adapter for one in current if (adapter := state.adapters.get(one.adapter)) is not None and _stands(adapter)
    ]
    rows = _held_out_rows(state, dataset)
    named = [adapter for adapter in found if adapter.name == name]
    on_base = [adapter for adapter in found if adapter.base_digest == base_digest]
    alike = [adapter for adapter in on_base if rows.same(_held_out_rows(state, adapter.dataset))]
    return next(iter([*named, *alike]), None)


def _stands(adapter: Adapter) -> bool:
    return adapter.revoked is None and adapter.quarantined is None


def find_sets(state: State, names: Sequence[str], base_digest: str) -> dict[str, ValidationSet]:
    """Of each name the newest version that is not revoked and was rendered for the base."""
    standing = [one for one in state.validation_sets.values() if one.revoked is None and one.base_digest == base_digest]
    return {one.name: one for one in sorted(standing, key=lambda one: one.version) if one.name in names}


def _method(state: State, judgement: Judgement) -> str | None:
    run = state.runs.get(judgement.run)
    return None if run is None else run.method
