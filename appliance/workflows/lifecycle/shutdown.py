"""The service ends: its workers first, then its queues, then its last entry and the seal over its fold."""

from __future__ import annotations

import logging
from collections.abc import Callable

from appliance.errors import Unavailable
from appliance.workflows.core.context import Context
from appliance.workflows.governance import sessions
from appliance.workflows.integrity import snapshots
from appliance.workflows.lifecycle.heartbeat import Counted

log = logging.getLogger("appliance")

JOBS_END_S = 10.0
"""So long a job may take to notice that its worker has ended."""


def shut_down(context: Context, counted: Counted, reason: str, say: Callable[[str], None] = lambda _: None) -> None:
    """A run that is cut off here is resumed, or marked failed, by the next start. `say` gets what it waits for."""
    say("ends its workers")
    context.closing.set()
    for worker in list(context.workers.values()):
        worker.kill()
    for jobs in context.jobs:
        if jobs.busy:
            say(f"waits for its {jobs.name}, whose workers have ended")
        jobs.stop(JOBS_END_S)
    say("records its end and seals its snapshot")
    try:
        with counted() as refusals:
            sessions.record_stop(context, reason, refusals)
    except Unavailable as error:
        log.critical("ALARM: the end could not be recorded: %s", error.message)
    snapshots.seal(context)
