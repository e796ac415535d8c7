"""The service's status, its use of the disk, and the checks of `appliance doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.api.people import WaitingOrder
from appliance.domain.core.names import Time, Value
from appliance.domain.queries.alarms import Alarm
from appliance.domain.queries.pending import PendingItem


@dataclass(frozen=True)
class Check:
    """The result of one check. It contains no secret.

    `fail`: the appliance does not start or work. `warn`: it works, and an administrator should act.
    """

    check: str
    level: Literal["ok", "warn", "fail"]
    found: str
    expected: str
    action: str = ""


class BackupRow(Value):
    """A backup in the folder of the settings. `entries`: the size of its log. `problem`: why it is not valid."""

    name: str
    folder: str
    entries: int
    problem: str | None


class ServiceRow(Value):
    """The service's own process.

    `ready` is False while the ledger lacks witnessed entries, a heartbeat hangs, or the service ends.
    """

    version: str
    pid: int
    since: str
    ready: bool


class ProcessRow(Value):
    """A named process of the log. `contact_s` are the seconds since its last sign of life."""

    name: str
    roles: tuple[str, ...]
    host: str
    pid: int
    since: str
    version: str
    epoch: int
    contact_s: int
    this: bool


class ActiveJob(Value):
    """An import, a run or a replay that is queued or running."""

    kind: str
    name: str
    status: Literal["running", "queued"]
    progress: str | None


class EngineRow(Value):
    """The serving engine. `requests` are those that are open."""

    device: str
    workers: int
    slots: int
    loaded: int
    requests: int


class Work(Value):
    """The service's current work."""

    service: ServiceRow
    alarms: tuple[Alarm, ...]
    """The alarms that are on, critical ones first."""
    database: str
    processes: tuple[ProcessRow, ...]
    jobs: tuple[ActiveJob, ...]
    engine: EngineRow


class LogRow(Value):
    """The log's size, the time of its last entry, and the size of its checkpoint."""

    origin: str
    size: int
    last_entry: Time
    checkpoint: int


class WitnessRow(Value):
    """A witness of the valid policy. Values of its last cosignature are None if it has made none.

    `counts` is true while that cosignature is recent enough for the policy, and `entry` is the entry that recorded it.
    """

    name: str
    vkey: str
    size: int | None
    time: Time | None
    age_s: int | None
    counts: bool
    entry: int | None


class UnauthorisedRun(Value):
    """A run that waits for a second person, and the people who can authorise it."""

    run: str
    tier: str | None
    ordered_by: str
    authorisers: tuple[str, ...]


class UnreviewedAdapter(Value):
    """An adapter with too few approvals, and the unit for which it has the most."""

    adapter: str
    unit: str | None
    approvals: int
    needed: int


class UnreleasedAdapter(Value):
    """An approved adapter that no release of the unit ever named, and the people who can release it."""

    adapter: str
    unit: str
    owners: tuple[str, ...]


class Status(Work):
    """The status of the service, with the decisions that wait for people."""

    log: LogRow
    witnesses: tuple[WitnessRow, ...]
    authorisations: tuple[UnauthorisedRun, ...]
    orders: tuple[WaitingOrder, ...]
    reviews: tuple[UnreviewedAdapter, ...]
    releases: tuple[UnreleasedAdapter, ...]
    yours: tuple[PendingItem, ...]
    """Pending items of the person who asks."""


class StoredItem(Value):
    """A stored item. `files`, `kept_for` and `kept_until` are those of a run's training checkpoints."""

    name: str
    bytes: int
    files: int | None = None
    kept_for: str | None = None
    kept_until: str | None = None


class StoredKind(Value):
    """All stored items of one kind."""

    bytes: int
    items: tuple[StoredItem, ...]


class HomeDisk(Value):
    """The size of the home's disk, and its free bytes."""

    bytes: int
    free_bytes: int


class Storage(Value):
    """The stored items by kind, their bytes together, and the disk."""

    kinds: dict[str, StoredKind]
    bytes: int
    disk: HomeDisk
