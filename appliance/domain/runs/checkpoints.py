"""Training checkpoints, as the log names them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import Decimal, Digest, RunId
from appliance.domain.core.records.runs import Run, TrainingCheckpoint, checkpoint_key
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule
from appliance.domain.runs.conditions import check_inputs, take_run


class RunCheckpointed(Event):
    """A training checkpoint, by the digest of its bytes; `machine`: what its bits depend on beside recipe and data."""

    type = "run.checkpointed"
    run: RunId
    step: int = Field(ge=1)
    checkpoint: Digest
    seconds: Decimal
    machine: dict[str, Any]

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


def run_checkpointed(case: Case) -> Changes:
    body = case.of(RunCheckpointed)
    run = take_run(case, body.run, "running")
    check_inputs(case, run)
    case.require(body.step > run.step, "step", f"one after {run.step}", body.step)
    made = TrainingCheckpoint(
        run=run.id,
        step=body.step,
        digest=body.checkpoint,
        seconds=body.seconds,
        machine=body.machine,
        index=case.entry.index,
    )
    changed = run.model_copy(update={"step": body.step})
    state = case.state
    return [(state.training_checkpoints, checkpoint_key(run.id, body.step), made), (state.runs, run.id, changed)]


def last_checkpoint(state: State, run: Run) -> TrainingCheckpoint | None:
    """Where the run goes on from."""
    return state.training_checkpoints.get(checkpoint_key(run.id, run.step))


EVENTS = (EventRule(RunCheckpointed, run_checkpointed),)
