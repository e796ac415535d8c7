"""A run is halted: by a cancellation, or because what it is trained on was withdrawn. Its workers end at once."""

from __future__ import annotations

from appliance.domain.core.records.runs import Run
from appliance.domain.runs.conditions import inputs_withdrawn
from appliance.workflows.core.context import Context


def halt(context: Context, run: str) -> None:
    """Ends the run's worker, whichever stage it is in; why is recorded already. Waits for no process and no disk."""
    for key in (run, f"{run}:evaluate"):
        started = context.workers.get(key)
        if started is not None:
            started.end()


def halt_withdrawn(context: Context) -> None:
    """... of every run whose base or dataset has been revoked or put into quarantine. A worker that only now becomes
    findable has its entry, or `check_standing`, before it."""
    state = context.ledger.state
    for key in list(context.workers):
        run = state.runs.get(key.partition(":")[0])
        if run is not None and inputs_withdrawn(state, run) is not None:
            halt(context, run.id)


def halt_cancelled(context: Context) -> None:
    """... of every run and import that was cancelled at another process."""
    state = context.ledger.state
    for key in list(context.workers):
        run, ordered = state.runs.get(key.partition(":")[0]), state.imports.get(key)
        if (run is not None and run.status == "cancelled") or (ordered is not None and ordered.status == "cancelled"):
            halt(context, key.partition(":")[0] if run is not None else key)


def check_standing(context: Context, run: Run) -> None:
    """Denied (`revoked`, `quarantined`) where the run's base or dataset was withdrawn."""
    error = inputs_withdrawn(context.ledger.state, run)
    if error is not None:
        raise error
