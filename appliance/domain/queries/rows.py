"""Reconstruction of a state from the rows of projections, and queries about the use of datasets."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.domain.core.names import Time, Value
from appliance.domain.core.records.runs import Run
from appliance.domain.core.records.serving import release_key
from appliance.domain.core.state import UNPROJECTED, State

MODELS: dict[str, type[Value]] = {table.kind: table.row for table in State().tables if table.kind not in UNPROJECTED}
"""Class of the rows of each kind that is projected."""


def state_of(rows: Iterable[tuple[str, str, str]], size: int, last_time: Time) -> State:
    """Return the state of these rows (kind, id, value in JSON). It lacks kinds that are not projected."""
    state = State()
    put_rows(state, rows)
    state.size, state.last_time = size, last_time
    return state


def put_rows(state: State, rows: Iterable[tuple[str, str, str | None]]) -> None:
    """Put rows into the state. A value of None deletes the row."""
    tables = {table.kind: table for table in state.tables}
    for kind, key, value in rows:
        tables[kind].set(key, None if value is None else MODELS[kind].model_validate_json(value))


LISTED_OF_ADAPTERS = (
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
    "release.suspended",
    "release.resumed",
    "adapter.exported",
    "adapter.admitted",
    "admission.refused",
    "adapter.loaded",
    "adapter.unloaded",
)
"""Types of entries about an adapter that its history lists one by one. The history omits all other types."""


COUNTED_OF_ADAPTERS = ("request.admitted", "request.finished")
"""Types of entries about an adapter that its history only counts, because there is one for each request."""


class Use(Value):
    """A run that used a dataset, with its adapter, if it made one, and the releases of that adapter."""

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
    """A version of a dataset and all runs that used it."""

    dataset: str
    imported: int
    root: str
    rows: int
    uses: tuple[Use, ...]


def used_by(state: State, name: str) -> tuple[DatasetUses, ...]:
    """Return the runs that used a dataset, for each of its versions, or for one version if `name` is `name@version`."""
    dataset_uses, sealed = [], {adapter.run: key for key, adapter in state.adapters.items()}
    for key, dataset in state.datasets.items():
        if name in (key, dataset.name):
            uses = tuple(
                _describe_use(state, run, sealed.get(run.id)) for run in state.runs.values() if run.dataset == key
            )
            rows = int(dataset.facts.get("rows", 0))
            dataset_uses.append(
                DatasetUses(dataset=key, imported=dataset.index, root=dataset.root, rows=rows, uses=uses)
            )
    return tuple(dataset_uses)


def _describe_use(state: State, run: Run, key: str | None) -> Use:
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
        released_to=tuple(release_key(release.unit, release.served_model) for release in releases),
        released_now=tuple(release_key(r.unit, r.served_model) for r in releases if r.current.adapter == key),
    )
