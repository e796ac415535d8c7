"""The heartbeat: once a minute the service records that it runs, checks what it depends on, and takes up work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.workflows.core.context import Context
from appliance.workflows.core.retry import pause_workers, resume_workers
from appliance.workflows.governance import sessions
from appliance.workflows.governance.sessions import Refusals
from appliance.workflows.lifecycle import watch
from appliance.workflows.lifecycle.recovery import resume_forgotten

log = logging.getLogger("appliance")

BEAT_S = 60.0

Counted = Callable[[], AbstractContextManager[Refusals]]
"""Gives the count of refused requests; where its block ends without an error, the count begins again."""


def beat(
    context: Context,
    home: Path,
    *,
    counted: Counted,
    sweep: Callable[[], object],
    maintain: Callable[[], object],
) -> None:
    """One heartbeat. Where it cannot be written, workers are frozen until it can: nothing acts unrecorded. A sweep that
    fails is said, and done again a minute later."""
    try:
        for text in watch.warnings(context, home):
            log.critical("ALARM: %s", text)
        with counted() as refusals:
            sessions.beat(context, refusals)
        _sweep(sweep)
        resume_workers(context)  # before a worker is used
        maintain()
        resume_forgotten(context)
    except ApplianceError as error:
        log.critical("ALARM: the ledger cannot be written, workers are frozen: %s", error.message)
        pause_workers(context)


def _sweep(sweep: Callable[[], object]) -> None:
    try:
        sweep()
    except ApplianceError as error:
        log.critical("ALARM: what has ended could not be removed: %s", error.message)


def note_stall(context: Context, seconds: float) -> None:
    """A heartbeat hangs: on a disk, a database or a lock. What it holds, all others need: it is waited for.

    `seconds`: for how long it has hung; 0 where it goes on.
    """
    context.stalled = seconds > 0
    if context.stalled:
        log.critical("ALARM: the heartbeat has not ended for %d s, and the service is not ready", seconds)
    else:
        log.warning("the heartbeat goes on")
