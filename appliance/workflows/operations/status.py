"""The status of the service on one screen: work in progress, pending items with their people, and storage."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from appliance.api.operations import (
    ActiveJob,
    EngineRow,
    HomeDisk,
    LogRow,
    ProcessRow,
    ServiceRow,
    Status,
    Storage,
    StoredItem,
    StoredKind,
    UnauthorisedRun,
    UnreleasedAdapter,
    UnreviewedAdapter,
    WitnessRow,
    Work,
)
from appliance.domain.core.names import Time
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.roles import is_unit
from appliance.domain.core.state import State
from appliance.domain.governance.countersignature import list_waiting_orders
from appliance.domain.queries.alarms import find_alarms
from appliance.domain.queries.measures import seconds_between
from appliance.domain.queries.pending import list_pending, list_unreleased
from appliance.domain.releases.approval import approved_by_activator, list_counted_approvals, list_latest_reviews
from appliance.domain.releases.requests import compute_requirement, find_current_request, find_tier
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.domain.runs.control import list_authorisers
from appliance.formats.log.checkpoint import claimed_size
from appliance.store.files.space import RESERVE, measure_space
from appliance.workflows.core.context import LedgerContext, RunContext, WorkerContext
from appliance.workflows.queries.measures import measure
from appliance.workflows.queries.people import shown_orders
from appliance.workflows.runs import checkpoints

MOST_YOURS = 100
"""Maximum number of a person's pending items of one kind."""


def status(context: WorkerContext, principal: str) -> Status:
    """Return the status as of the log's last entry, with the pending items of the person who asks.

    It has no secret and no text of a person or a request.
    """
    with context.ledger.lock:
        state = context.ledger.state
        now = context.now(state)
        return Status(
            **dict(work(context)),
            log=LogRow(
                origin=state.site.origin,
                size=state.size,
                last_entry=state.last_time,
                checkpoint=claimed_size(context.ledger.checkpoint()),
            ),
            witnesses=tuple(describe_witness(state, vkey, now) for vkey in state.parameters.witnesses),
            authorisations=tuple(_list_unauthorised(state)),
            orders=shown_orders(list_waiting_orders(state, now)),
            reviews=tuple(_review(state, adapter, now) for adapter in _list_unreviewed(state, now)),
            releases=_list_unreleased(state, now),
            yours=tuple(list_pending(state, now, principal, MOST_YOURS)),
        )


def work(context: WorkerContext) -> Work:
    """Return the service's current work, without pending items of people."""
    with context.ledger.lock:
        state = context.ledger.state
        slots = list(state.slots.values())
        return Work(
            service=ServiceRow(
                version=context.code.version,
                pid=os.getpid(),
                since=context.began,
                ready=not (context.missing_from_log or context.stalled or context.closing.is_set()),
            ),
            alarms=find_alarms(measure(context)),
            database=context.ledger.dialect,
            processes=_processes(context),
            jobs=(*_imports(state), *_runs(context, state), *_replays(state)),
            engine=EngineRow(
                device=context.host,
                workers=len(context.workers),
                slots=len(slots),
                loaded=sum(slot.loaded is not None for slot in slots),
                requests=len(list(state.requests.values())),
            ),
        )


def _processes(context: LedgerContext) -> tuple[ProcessRow, ...]:
    """Return the named processes of this log."""
    processes = context.processes
    return tuple(
        ProcessRow(
            name=member.name,
            roles=tuple(member.about.roles),
            host=member.about.host,
            pid=member.about.pid,
            since=member.about.since,
            version=member.about.version,
            epoch=member.epoch,
            contact_s=max(0, processes.server_ms - member.seen) // 1000,
            this=member.name == processes.name,
        )
        for member in processes.members
        if member.name
    )


def describe_witness(state: State, vkey: str, now: Time) -> WitnessRow:
    """Return the last cosignature of a witness of the policy."""
    witness = next((one for one in state.witnesses.values() if one.vkey == vkey), None)
    age = None if witness is None else seconds_between(witness.time, now)
    return WitnessRow(
        name=vkey.partition("+")[0],
        vkey=vkey,
        size=None if witness is None else witness.size,
        time=None if witness is None else witness.time,
        age_s=age,
        counts=age is not None and age <= state.parameters.witness_lifetime_s,
        entry=None if witness is None else witness.index,
    )


def _imports(state: State) -> list[ActiveJob]:
    """Return the open imports. The first of the bases and the first of the datasets are running."""
    running_kinds: set[str] = set()
    found = []
    for record in state.imports.values():
        if record.status == "requested":
            first = record.action not in running_kinds
            running_kinds.add(record.action)
            found.append(_job(record.action, record.subject, "running" if first else "queued"))
    return found


def _runs(context: WorkerContext, state: State) -> list[ActiveJob]:
    waiting = sorted(
        (run for run in state.runs.values() if run.status in UNDER_WAY and run.status != "waiting"),
        key=lambda run: (run.status == "queued", run.queued),
    )
    return [
        _job("run", run.id, "queued" if run.status == "queued" else "running", _step_of(context, run.id))
        for run in waiting
    ]


def _list_unauthorised(state: State) -> list[UnauthorisedRun]:
    """Return the runs that wait for a second person, with the people who can authorise them."""
    return [
        UnauthorisedRun(
            run=run.id, tier=run.tier, ordered_by=run.ordered_by, authorisers=tuple(list_authorisers(state, run))
        )
        for run in state.runs.values()
        if run.status == "waiting"
    ]


def _step_of(context: WorkerContext, run: str) -> str | None:
    """Return the progress of a training run in the form `step 12 of 80`, or None."""
    for frame in reversed(list(context.progress.read(run).frames)):
        if frame.get("frame") == "step":
            return f"step {frame['step']} of {frame['steps']}"
    return None


def _replays(state: State) -> list[ActiveJob]:
    return [
        _job("replay", replay.run, "queued", f"steps {replay.from_step} to {replay.to_step}")
        for replay in state.replays.values()
        if replay.status == "requested"
    ]


def _job(kind: str, name: str, status: Literal["running", "queued"], progress: str | None = None) -> ActiveJob:
    return ActiveJob(kind=kind, name=name, status=status, progress=progress)


def _list_unreviewed(state: State, now: Time) -> list[Adapter]:
    """Return the sealed adapters without a rejection that have too few approvals for every unit."""
    return [
        adapter
        for adapter in state.adapters.values()
        if adapter.revoked is None
        and adapter.quarantined is None
        and (found := _find_most_approvals(state, adapter, now))[1] < _count_needed(state, adapter, found[0])
        and not any(
            review.decision == "reject"
            for unit in _units(adapter)
            for review in list_latest_reviews(state, adapter, unit)
        )
    ]


def _list_unreleased(state: State, now: Time) -> tuple[UnreleasedAdapter, ...]:
    """Return approved adapters that no release of the unit ever named, and the people who can release them."""
    waiting = [(adapter, unit) for adapter, unit in list_unreleased(state, now) if is_unit(state, unit)]
    owners = {
        unit: sorted(p.name for p in state.principals.values() if p.has(f"release-owner:{unit}"))
        for unit in {unit for _, unit in waiting}
    }
    return tuple(
        UnreleasedAdapter(
            adapter=f"{adapter.name}@{adapter.version}",
            unit=unit,
            owners=tuple(one for one in owners[unit] if not approved_by_activator(state, adapter, unit, one, now)),
        )
        for adapter, unit in waiting
    )


def _units(adapter: Adapter) -> list[str]:
    return sorted({review.unit for review in adapter.reviews} | {request.unit for request in adapter.requests})


def _find_most_approvals(state: State, adapter: Adapter, now: Time) -> tuple[str | None, int]:
    """Return the unit with the most valid approvals, and their number."""
    found = [(len(list_counted_approvals(state, adapter, unit, now)), unit) for unit in _units(adapter)]
    approvals, unit = max(found, default=(0, None))
    return unit, approvals


def _count_needed(state: State, adapter: Adapter, unit: str | None) -> int:
    """Return the number of required approvals, by policy and the tier of the unit's request."""
    request = None if unit is None else find_current_request(state, adapter, unit)
    return compute_requirement(
        state.parameters, None if request is None else find_tier(state.parameters, request)
    ).reviewers


def _review(state: State, adapter: Adapter, now: Time) -> UnreviewedAdapter:
    unit, approvals = _find_most_approvals(state, adapter, now)
    return UnreviewedAdapter(
        adapter=f"{adapter.name}@{adapter.version}",
        unit=unit,
        approvals=approvals,
        needed=_count_needed(state, adapter, unit),
    )


def storage(context: RunContext) -> Storage:
    """Return the stored items and their bytes by kind, and in all."""
    state, home, uploads = context.ledger.state, context.logs.parent, context.artifacts.uploads()
    folder = context.artifacts.path
    kinds = {
        "bases": [(name, size_of(folder(base.digest))) for name, base in state.bases.items()],
        "datasets": [(name, size_of(folder(dataset.digest))) for name, dataset in state.datasets.items()],
        "validation sets": [(name, size_of(folder(one.digest))) for name, one in state.validation_sets.items()],
        "adapters": [(name, size_of(folder(adapter.manifest))) for name, adapter in state.adapters.items()],
        # Senders and digests are left out, because only the sender may learn of an upload.
        "uploads": [(f"upload {place}", sent.size) for place, (_, sent) in enumerate(sorted(uploads.items()), start=1)],
        "logs": _files(home / "logs"),
        "steps": _files(home / "steps"),
    }
    space = measure_space(home, context.reserve)
    shown = {kind: _kind(StoredItem(name=name, bytes=size) for name, size in items) for kind, items in kinds.items()}
    shown["training checkpoints"] = _kind(_checkpoints(context))
    shown["reserve"] = _kind([StoredItem(name="released on a full disk", bytes=size_of(home / RESERVE))])
    shown["database"] = _kind([StoredItem(name=context.ledger.dialect, bytes=context.ledger.stored_bytes())])
    return Storage(
        kinds=shown,
        bytes=sum(kind.bytes for kind in shown.values()),
        disk=HomeDisk(bytes=space.total, free_bytes=space.free),
    )


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder without following links. Return 0 if it does not
    exist.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(size_of(below) for below in path.iterdir())
    except OSError:
        return 0  # removed meanwhile


def _files(folder: Path) -> list[tuple[str, int]]:
    try:
        return sorted((path.name, size_of(path)) for path in folder.iterdir())
    except OSError:
        return []


def _checkpoints(context: RunContext) -> list[StoredItem]:
    """Return the training checkpoints by run, with the reason and end of their retention.

    Two runs that made the same bytes share a file.
    """
    keeping, list_counted_approvals = checkpoints.list_kept(context), set[str]()
    sizes: dict[str, list[int]] = {}
    for made in context.ledger.state.training_checkpoints.values():
        if made.digest not in list_counted_approvals and (size := context.checkpoints.size(made.digest)):
            sizes.setdefault(made.run, []).append(size)
        list_counted_approvals.add(made.digest)
    return [
        StoredItem(
            name=run,
            bytes=sum(found),
            files=len(found),
            kept_for="the next sweep" if (why := keeping.get(run)) is None else why.why,
            kept_until=None if why is None else why.until,
        )
        for run, found in sizes.items()
    ]


def _kind(items: Iterable[StoredItem]) -> StoredKind:
    listed = tuple(items)
    return StoredKind(bytes=sum(item.bytes for item in listed), items=listed)
