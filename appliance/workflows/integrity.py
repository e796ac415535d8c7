"""The quarantine of folders that no longer match their manifest, periodic checks of all folders, and state snapshots.

A changed folder is recorded, unloaded from its slots, then moved aside. The description of the change may contain names
that an attacker chose. It is stored only as a text of the entry, which can be erased; other messages name the entry.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from appliance.domain.core.names import versioned
from appliance.domain.core.records.data import Base
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import State
from appliance.domain.data.artifacts import BaseQuarantined
from appliance.domain.operations import ArtifactsChecked
from appliance.domain.releases.adapters import AdapterQuarantined
from appliance.errors import ApplianceError, Denied, Unavailable
from appliance.workflows.core import retry
from appliance.workflows.core.context import LedgerContext, RunContext, WorkerContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.record import append, conceal
from appliance.workflows.core.retry import stop_withdrawn_runs


def quarantine_adapter(context: LedgerContext, adapter: Adapter, message: str) -> int:
    """Quarantine an adapter and return the index of the entry."""
    text = conceal(message)
    name = versioned(adapter.name, adapter.version)
    appended = append(context, AdapterQuarantined(adapter=name, message=text.commitment), disclosures=(text,))
    context.recheck_answers()
    context.artifacts.quarantine(adapter.manifest)
    return appended.entry.index


def quarantine_base(context: WorkerContext, base: Base, message: str) -> int:
    """Quarantine a base and return the index of the entry."""
    text = conceal(message)
    appended = append(context, BaseQuarantined(base=base.name, message=text.commitment), disclosures=(text,))
    context.recheck_answers()
    stop_withdrawn_runs(context)
    context.artifacts.quarantine(base.digest)
    return appended.entry.index


class NamedFolder(NamedTuple):
    """A sealed folder that an entry names."""

    subject: str
    digest: str
    is_revoked: bool
    """True if the subject was revoked, so that the folder may be missing."""


def list_sealed_folders(state: State, *, quarantined: bool = False) -> list[NamedFolder]:
    """Return the sealed folders that entries name. Quarantined ones, which were moved away, are left out by default.

    Entries may be appended meanwhile.
    """
    return [
        *(
            NamedFolder(f"base:{name}", base.digest, base.revoked is not None)
            for name, base in tuple(state.bases.items())
            if quarantined or base.quarantined is None
        ),
        *(
            NamedFolder(f"adapter:{name}", adapter.manifest, adapter.revoked is not None)
            for name, adapter in tuple(state.adapters.items())
            if quarantined or adapter.quarantined is None
        ),
        *(
            NamedFolder(f"dataset:{name}", dataset.digest, dataset.revoked is not None)
            for name, dataset in tuple(state.datasets.items())
        ),
        *(
            NamedFolder(f"validation-set:{name}", found.digest, found.revoked is not None)
            for name, found in tuple(state.validation_sets.items())
        ),
    ]


log = logging.getLogger("appliance")

BYTES_A_SECOND = 64 << 20
"""Most bytes that the periodic check reads in a second."""
CLOSING = "closing"
"""Error code of a check that the service's end interrupts."""
MOST_NAMED = 500
"""Most subjects that an entry names."""


class ReadThrottle:
    """A limit on the speed of reading.

    A call with the bytes just read waits as needed, and raises Unavailable if the service ends.
    """

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing
        self._began = time.monotonic()
        self.size = 0

    def __call__(self, size: int) -> None:
        self.size += size
        lead_s = self.size / BYTES_A_SECOND - (time.monotonic() - self._began)
        if self._closing.wait(max(0.0, lead_s)):
            raise Unavailable("artifacts: expected the service to keep running, got its shutdown", code=CLOSING)


def start_rehash(context: RunContext, every_s: float) -> None:
    """Start the thread that checks every folder every `every_s` seconds until the service ends."""
    retry.start(context, "check of the sealed folders", every_s, partial(check_all, context))


def check_all(context: RunContext) -> tuple[str, ...]:
    """Hash every sealed folder, quarantine the changed ones, record the check, and return the changed subjects.

    Only the process that cares for stored data does this.

    Raises:
        Unavailable: A folder could not be read, which does not mean that its bytes changed. It is raised after all
            other folders are checked and recorded.
    """
    if not context.runs_here:
        return ()
    pace, folders, changed = ReadThrottle(context.closing), 0, []
    unread: dict[str, Unavailable] = {}
    state = context.ledger.state
    loaded = {f"adapter:{slot.adapter}" for slot in state.slots.values()}
    for subject, digest, _ in sorted(list_sealed_folders(state), key=lambda folder: folder.subject not in loaded):
        try:
            context.artifacts.check(digest, pace)
        except Unavailable as error:
            if error.code == CLOSING:
                raise
            unread[subject] = error
            continue
        except ApplianceError as error:
            where_described = _quarantine(context, subject, error)
            changed.append(subject)
            log.critical("ALARM: %s has changed on disk: %s, %s", subject, error.code, where_described)
        folders += 1
    body = ArtifactsChecked(
        folders=folders, size=pace.size, changed=tuple(changed[:MOST_NAMED]), unread=tuple(unread)[:MOST_NAMED]
    )
    append(context, body, outcome="failure" if changed or unread else "success")
    if unread:
        subject, first = next(iter(unread.items()))
        raise Unavailable(f"expected to read every folder, got {len(unread)} unread, first {subject}: {first.message}")
    return tuple(changed)


def _quarantine(context: WorkerContext, subject: str, error: ApplianceError) -> str:
    """Quarantine the subject, unless it already is, and return a note on where the change is described."""
    kind, _, name = subject.partition(":")
    state = context.ledger.state
    adapter, base = state.adapters.get(name), state.bases.get(name)
    with suppress(Denied):
        if kind == "adapter" and adapter is not None:
            return f"see entry {quarantine_adapter(context, adapter, error.message)}"
        if kind == "base" and base is not None:
            return f"see entry {quarantine_base(context, base, error.message)}"
        return "see ledger verify"
    return "see its quarantine"


EVERY_S = 60.0
"""Seconds between two snapshots of the state."""
LEAST = 10_000
"""Number of new entries below which no snapshot is made while the service runs. Replaying so many, with every check of
a row, takes less than half a second. A start does not load the state from a snapshot of fewer entries. It only
checks that the log still has them.
"""
SHARE = 16
"""Divisor of the log's size that gives the growth after which a snapshot is made again, since its cost grows with the
log.
"""


def start_snapshots(context: LedgerContext) -> None:
    """Start the thread that makes snapshots until the service ends."""
    retry.start(context, "snapshots", EVERY_S, partial(seal, context, SHARE))


def seal(context: LedgerContext, share: int | None = None) -> None:
    """Write a snapshot of the state if the log has grown enough.

    With a share, while the service runs, enough is `LEAST` entries and the share of the log. Without one, at the end of
    the service, it is a single entry. From then on a start refuses an older copy of the log, however short it is.
    """
    try:
        with contain_defects("snapshot"):
            grown = 1 if share is None else max(LEAST, context.ledger.state.size // share)
            context.ledger.seal_snapshot(grown)
    except ApplianceError as error:
        log.warning("the state could not be saved: %s", error.message)


WRITEBACK_EVERY_S = 1.0
"""Seconds between two copies of SQLite's write-ahead log."""


def start_writeback(context: LedgerContext) -> None:
    """Start the thread that copies SQLite's write-ahead log into the database file until the service ends."""
    retry.start(context, "write-back", WRITEBACK_EVERY_S, context.ledger.write_back)
