"""Every sealed folder is hashed again, on schedule and at a gentle pace: what has changed is taken out of use at once.

A byte that changes under a running service is found without a request, in loaded adapters and in others. Adapters and
bases go into quarantine, which empties their slots; a dataset fails the next run that reads it.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from functools import partial

from appliance.domain.operations.integrity import ArtifactsChecked
from appliance.errors import ApplianceError, Denied, Unavailable
from appliance.workflows.core import rounds
from appliance.workflows.core.context import Context
from appliance.workflows.core.record import append
from appliance.workflows.integrity.quarantine import quarantine_adapter, quarantine_base

log = logging.getLogger("appliance")

BYTES_A_SECOND = 64 << 20
CLOSING = "closing"
MOST_NAMED = 500


class Pace:
    """Reads no faster than so many bytes a second; Unavailable where the service ends meanwhile."""

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing
        self._began = time.monotonic()
        self.size = 0

    def __call__(self, size: int) -> None:
        self.size += size
        lead_s = self.size / BYTES_A_SECOND - (time.monotonic() - self._began)
        if self._closing.wait(max(0.0, lead_s)):
            raise Unavailable("artifacts: expected the service to keep running, got its shutdown", code=CLOSING)


def start(context: Context, every_s: float) -> None:
    """Checks everything every so many seconds, until the service ends."""
    rounds.start(context, "check of the sealed folders", every_s, partial(check_all, context))


def check_all(context: Context) -> tuple[str, ...]:
    """What has changed, by subject; nothing is read where another process cares for what is stored. Unavailable, once
    the others are checked and recorded, where the disk does not give a folder: that says nothing of its bytes."""
    if not context.runs_here:
        return ()
    pace, folders, changed = Pace(context.closing), 0, []
    unread: dict[str, Unavailable] = {}
    for subject, digest in _list_artifacts(context):
        try:
            context.artifacts.check(digest, pace)
        except Unavailable as error:
            if error.code == CLOSING:
                raise
            unread[subject] = error
            continue
        except ApplianceError as error:
            told = _take_out(context, subject, error)
            changed.append(subject)
            log.critical("ALARM: %s has changed on disk: %s, %s", subject, error.code, told)
        folders += 1
    body = ArtifactsChecked(
        folders=folders, size=pace.size, changed=tuple(changed[:MOST_NAMED]), unread=tuple(unread)[:MOST_NAMED]
    )
    append(context, body, outcome="failure" if changed or unread else "success")
    if unread:
        subject, first = next(iter(unread.items()))
        raise Unavailable(f"expected to read every folder, got {len(unread)} unread, first {subject}: {first.message}")
    return tuple(changed)


def _list_artifacts(context: Context) -> list[tuple[str, str]]:
    """Bases and what is loaded first, then other adapters, then datasets and validation sets."""
    state = context.ledger.state
    loaded = {slot.adapter for slot in state.slots.values()}
    standing = [(key, adapter) for key, adapter in state.adapters.items() if adapter.quarantined is None]
    standing.sort(key=lambda item: item[0] not in loaded)
    return [
        *((f"base:{base.name}", base.digest) for base in state.bases.values() if base.quarantined is None),
        *((f"adapter:{key}", adapter.manifest) for key, adapter in standing),
        *((f"dataset:{key}", dataset.digest) for key, dataset in state.datasets.items()),
        *((f"validation-set:{key}", found.digest) for key, found in state.validation_sets.items()),
    ]


def _take_out(context: Context, subject: str, error: ApplianceError) -> str:
    """Puts it into quarantine, unless it is there; returns where to read what has changed."""
    kind, _, name = subject.partition(":")
    state = context.ledger.state
    adapter, base = state.adapters.get(name), state.bases.get(name)
    with suppress(Denied):
        if kind == "adapter" and adapter is not None:
            return f"entry {quarantine_adapter(context, adapter, error.message)} says what"
        if kind == "base" and base is not None:
            return f"entry {quarantine_base(context, base, error.message)} says what"
        return "ledger verify says what"
    return "its quarantine says what"
