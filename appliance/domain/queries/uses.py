"""What was made of a dataset."""

from __future__ import annotations

from appliance.domain.core.names import Value
from appliance.domain.core.records.runs import Run
from appliance.domain.core.records.serving import release_key
from appliance.domain.core.state import State

TOLD_OF_ADAPTERS = (
    "adapter.sealed",
    "adapter.quarantined",
    "adapter.revoked",
    "order.pending",
    "release.requested",
    "request.withdrawn",
    "finding.added",
    "finding.closed",
    "samples.requested",
    "samples.shown",
    "try.requested",
    "try.finished",
    "review.recorded",
    "release.emergency",
    "release.activated",
    "release.rolled-back",
    "adapter.exported",
    "adapter.admitted",
    "admission.refused",
    "adapter.loaded",
    "adapter.unloaded",
)
"""The types of entries about an adapter that its story tells one by one."""


COUNTED_OF_ADAPTERS = ("request.admitted", "request.finished")
"""The types of entries about an adapter that its story only counts: there are as many as there were questions."""


class Use(Value):
    """A run that saw a dataset; with its adapter, if it made one, and where that was ever released."""

    run: str
    status: str
    ordered_by: str
    requested: int
    adapter: str | None
    sealed: int | None
    revoked: int | None
    quarantined: int | None
    released_to: tuple[str, ...]
    released_now: tuple[str, ...]


class DatasetUses(Value):
    """A version of a dataset and everything that was made of it."""

    dataset: str
    imported: int
    root: str
    rows: int
    uses: tuple[Use, ...]


def used_by(state: State, name: str) -> tuple[DatasetUses, ...]:
    """For each version of the dataset, or for the one that `name@version` says: its runs, in their order."""
    found, sealed = [], {adapter.run: key for key, adapter in state.adapters.items()}
    for key, dataset in state.datasets.items():
        if name in (key, dataset.name):
            uses = tuple(_use(state, run, sealed.get(run.id)) for run in state.runs.values() if run.dataset == key)
            rows = int(dataset.facts.get("rows", 0))
            found.append(DatasetUses(dataset=key, imported=dataset.index, root=dataset.root, rows=rows, uses=uses))
    return tuple(found)


def _use(state: State, run: Run, key: str | None) -> Use:
    adapter = None if key is None else state.adapters.get(key)
    releases = [release for release in state.releases.values() if any(a.adapter == key for a in release.history)]
    return Use(
        run=run.id,
        status=run.status,
        ordered_by=run.ordered_by,
        requested=run.index,
        adapter=key,
        sealed=None if adapter is None else adapter.index,
        revoked=None if adapter is None else adapter.revoked,
        quarantined=None if adapter is None else adapter.quarantined,
        released_to=tuple(release_key(release.unit, release.task) for release in releases),
        released_now=tuple(release_key(r.unit, r.task) for r in releases if r.current.adapter == key),
    )
