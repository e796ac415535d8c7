"""Runs and replays of another process, told to those who follow them at this one: the steps as they lie in the shared
folder, and the end as the log has it."""

from __future__ import annotations

from appliance.domain.core.records.runs import Run
from appliance.domain.core.state import State
from appliance.domain.runs.conditions import UNDER_WAY
from appliance.workflows.core.context import Context
from appliance.workflows.runs.steps import earlier_frames


def tell_runs(context: Context) -> None:
    """Of each run that is followed here and that no worker of this process does."""
    if context.runs_here:
        return
    state = context.ledger.state
    for key in context.progress.followed():
        if (run := state.runs.get(key)) is not None:
            _tell(context, state, run)
        elif (replay := state.replays.get(key)) is not None and replay.status != "requested":
            ended = {"code": "failed", "message": "the replay failed; its entry says why"}
            failed = replay.status == "failed"
            context.progress.end(
                key, result=None if failed else {"verdict": replay.verdict}, error=ended if failed else None
            )


def _tell(context: Context, state: State, run: Run) -> None:
    known = context.progress.read(run.id).next
    for frame in earlier_frames(state, context.artifacts, context.steps, run.id)[known:]:
        context.progress.publish(run.id, frame)
    if run.status in UNDER_WAY:
        return
    adapter = next((name for name, adapter in state.adapters.items() if adapter.run == run.id), None)
    if adapter is not None:
        context.progress.end(run.id, result={"adapter": adapter})
    else:
        said = {"code": run.status, "message": f"run {run.id} has ended: {run.status}; its last entry says why"}
        context.progress.end(run.id, error=said)
