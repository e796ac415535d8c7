"""The heartbeat, which logs the alarms, and the end of the service.

NIST 800-53 AU-5(1): warn before the audit trail can no longer be written.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from appliance.domain.queries.alarms import find_alarms
from appliance.errors import ApplianceError, Unavailable
from appliance.workflows import governance, integrity
from appliance.workflows.core.context import Context, LedgerContext, RunContext
from appliance.workflows.core.retry import pause_workers, resume_workers
from appliance.workflows.governance import Refusals
from appliance.workflows.lifecycle.recovery import start_missed_work
from appliance.workflows.queries.measures import measure, measure_database

log = logging.getLogger("appliance")

BEAT_S = 60.0
"""Seconds between two heartbeats."""


def log_alarms(context: LedgerContext) -> None:
    """Measure the database, then log the alarms that are on: critical ones each time, warnings when they begin."""
    context.database_measures = measure_database(context)
    alarms = find_alarms(measure(context))
    for alarm in alarms:
        if alarm.severity == "critical":
            log.critical("ALARM: %s: %s %s", alarm.code, alarm.text, alarm.action)
        elif alarm.code not in context.logged_alarms:
            log.warning("%s: %s %s", alarm.code, alarm.text, alarm.action)
    context.logged_alarms = frozenset(alarm.code for alarm in alarms)


Counted = Callable[[], AbstractContextManager[Refusals]]
"""Function that opens the count of refused requests. The count restarts if the context ends without an error."""


def beat(
    context: RunContext,
    *,
    counted: Counted,
    sweep: Callable[[], object],
    maintain: Callable[[], object],
) -> None:
    """Perform one heartbeat. If it cannot be written, pause the workers until it can, so that they do nothing
    unrecorded.

    A sweep that fails is logged and repeated at the next heartbeat.
    """
    if context.reserve is not None:
        context.reserve.maintain()
    try:
        log_alarms(context)
        with counted() as refusals:
            governance.beat(context, refusals)
        _sweep(sweep)
        resume_workers(context)  # maintain() uses workers
        maintain()
        start_missed_work(context)
    except ApplianceError as error:
        log.critical("ALARM: the ledger cannot be written, workers are frozen: %s", error.message)
        pause_workers(context)


def _sweep(sweep: Callable[[], object]) -> None:
    try:
        sweep()
    except ApplianceError as error:
        log.critical("ALARM: what has ended could not be removed: %s", error.message)


def note_stall(context: LedgerContext, seconds: float) -> None:
    """Record that a heartbeat hangs on a disk, a database or a lock, or that it continues again.

    The service waits for it, because everything else needs what it holds. `seconds`: for how long it has hung; 0 if it
    continues.
    """
    context.stalled = seconds > 0
    if context.stalled:
        log.critical("ALARM: the heartbeat has not ended for %d s, and the service is not ready", seconds)
    else:
        log.warning("the heartbeat continues")


JOBS_END_S = 3.0
"""Seconds that the jobs of all queues have to end after their workers were killed."""


def end_jobs(context: Context, timeout_s: float, say: Callable[[str], None] = lambda _: None) -> None:
    """Kill the workers and wait for the jobs that used them, at most `timeout_s` seconds."""
    context.closing.set()
    for worker in list(context.workers.values()):
        worker.kill()
    deadline = time.monotonic() + timeout_s
    for jobs in context.jobs:
        if jobs.busy:
            say(f"waits for its {jobs.name}, whose workers have ended")
        jobs.stop(max(0.0, deadline - time.monotonic()))


def shut_down(context: Context, counted: Counted, reason: str, say: Callable[[str], None] = lambda _: None) -> None:
    """End the workers and jobs, record the service's end, and write a snapshot.

    The next start resumes an interrupted run or marks it as failed. `say` gets the current step.
    """
    say("ends its workers")
    end_jobs(context, JOBS_END_S, say)
    say("records its end and seals its snapshot")
    try:
        with counted() as refusals:
            governance.record_stop(context, reason, refusals)
    except Unavailable as error:
        log.critical("ALARM: the end could not be recorded: %s", error.message)
    integrity.seal(context)


def tune_garbage_collector() -> None:
    """Exclude the loaded objects from garbage collection and collect less often.

    A collection of all loaded objects stops every answer for some 30 ms. Few later objects are garbage that reference
    counts do not free: a collection after every 700 took an eighth of the time of many concurrent appends.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])
