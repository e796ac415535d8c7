"""Appends and rounds that are repeated until they succeed.

While the ledger cannot be written, jobs pause their workers and wait, because no client waits for their answer and
their results took hours. Other requests get an error at once.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar, Unpack

from appliance.domain.actions.apply import parse_body
from appliance.domain.core.entry import Event, parse_entry
from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.runs.conditions import find_withdrawn_input
from appliance.errors import ApplianceError, Denied, Unavailable
from appliance.formats.log.export import read_removed
from appliance.store.ledger.queue import AppendedEntry
from appliance.workflows.core.context import LedgerContext, WorkerContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.record import EntryFields, append

RETRY_S = 1.0
"""Seconds between two tries."""

Done = TypeVar("Done")


def append_with_retry(
    context: WorkerContext, body: Event, *, most_s: float = math.inf, **fields: Unpack[EntryFields]
) -> AppendedEntry:
    """Append like `append`, and repeat it while the ledger cannot be written.

    Raises:
        Unavailable: The service ends, or `most_s` seconds have passed.
    """
    before: int | None = None

    def act() -> AppendedEntry:
        nonlocal before
        if before is not None and (found := _find(context, before, body)) is not None:
            return found
        size = context.ledger.state.size
        try:
            return append(context, body, **fields)
        except Unavailable as error:
            before = size if error.code == "commit-unknown" and before is None else before
            raise

    return _with_retry(context, act, most_s)


def state_with_retry(context: WorkerContext) -> State:
    """Return the state over all entries, once the ledger can be read again."""
    return _with_retry(context, lambda: context.ledger.state, math.inf)


def _with_retry(context: WorkerContext, act: Callable[[], Done], most_s: float) -> Done:
    began, frozen = time.monotonic(), False
    while True:
        try:
            done = act()
        except Unavailable:
            pause_workers(context)
            frozen = True
            if time.monotonic() - began > most_s or context.closing.wait(RETRY_S):
                raise
        else:
            if frozen:
                resume_workers(context)
            return done


def _find(context: LedgerContext, since: int, body: Event) -> AppendedEntry | None:
    """Return the entry of this body after index `since`, if its commit succeeded although the reply to it was lost."""
    context.ledger.refresh()
    for data in context.ledger.entries(since):
        if read_removed(data) is not None:
            continue
        entry = parse_entry(data)
        if entry.type == body.type and parse_body(entry) == body:
            context.appended(entry, body)
            return AppendedEntry(entry, data, context.ledger.checkpoint())
    return None


def pause_workers(context: WorkerContext) -> None:
    """Pause every worker until the ledger can be written, so that no worker acts without a record."""
    for worker in list(context.workers.values()):
        worker.pause()


def resume_workers(context: WorkerContext) -> None:
    """Resume every worker."""
    for worker in list(context.workers.values()):
        worker.resume()


def stop_run_workers(context: WorkerContext, run: str) -> None:
    """End every worker of the run, whichever stage it is in: training, evaluation, or evaluation with vLLM.

    The caller has recorded the reason already. The function waits for no process and no disk. A worker that registers
    only after this call runs `check_run_valid` afterwards, so it is stopped as well.
    """
    for key, started in list(context.workers.items()):
        if key == run or key.startswith(f"{run}:"):
            started.end()


def stop_withdrawn_runs(context: WorkerContext) -> None:
    """End the workers of every run whose base or dataset was revoked or quarantined."""
    state = context.ledger.state
    for key in list(context.workers):
        run = state.runs.get(key.partition(":")[0])
        if run is not None and find_withdrawn_input(state, run) is not None:
            stop_run_workers(context, run.id)


def stop_cancelled_work(context: WorkerContext) -> None:
    """End the workers of every run and import that was cancelled at another process."""
    state = context.ledger.state
    for key in list(context.workers):
        run, ordered = state.runs.get(key.partition(":")[0]), state.imports.get(key)
        if (run is not None and run.status == "cancelled") or (ordered is not None and ordered.status == "cancelled"):
            stop_run_workers(context, key.partition(":")[0] if run is not None else key)


def check_run_valid(context: LedgerContext, run: Run) -> None:
    """Raise an error if the run was cancelled, or its base or dataset withdrawn.

    Raises:
        Denied: With the code `cancelled`, `revoked` or `quarantined`.
    """
    state = context.ledger.state
    now = state.runs.get(run.id)
    if now is not None and now.status == "cancelled":
        raise Denied(f"run {run.id}: expected one that was not cancelled, got a cancelled one", code="cancelled")
    error = find_withdrawn_input(state, run)
    if error is not None:
        raise error


log = logging.getLogger("appliance")

AFTER_FAILURE_S = 60.0
"""Least seconds between a failed round and the next. A thread that fails each second would fill the log."""


def start(
    context: LedgerContext, name: str, every_s: float, work: Callable[[], object], *, at_once: bool = False
) -> None:
    """Start a thread that repeats `work`, with `every_s` seconds between two rounds, until the service ends.

    `at_once`: the first round starts now. A failed round is logged, and the next follows after `AFTER_FAILURE_S` or
    more.
    """

    def repeat_work() -> None:
        pause_s = 0.0 if at_once else every_s
        while not context.closing.wait(pause_s):
            pause_s = every_s
            try:
                with contain_defects(name):
                    work()
            except ApplianceError as error:
                pause_s = max(every_s, AFTER_FAILURE_S)
                if not context.closing.is_set():
                    log.critical("ALARM: %s failed and is tried again: %s", name, error.message)

    threading.Thread(target=repeat_work, name=name, daemon=True).start()
