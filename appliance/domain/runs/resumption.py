"""A run resumes from its last training checkpoint, by itself or by an order."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Ordered
from appliance.domain.core.names import Digest, RunId, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.data.standing import inputs_stand, sets_stand
from appliance.domain.runs.checkpoints import last_checkpoint
from appliance.domain.runs.conditions import WorkerStarted, begin, check_inputs, check_sandbox, move, take_run


class Resume(Order):
    """A run that failed goes on from its last training checkpoint."""

    verb = "resume"
    run: RunId

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class ResumeRequested(Ordered):
    """A failed run waits again, to go on from its last training checkpoint."""

    type = "resume.requested"


class RunResumed(WorkerStarted):
    """Another worker goes on from the run's last training checkpoint."""

    type = "run.resumed"
    step: int = Field(ge=1)
    checkpoint: Digest


def may_resume(state: State, order: Resume, signer: Principal, now: Time) -> Reasons:
    """Who ordered the run answers for it still; an administrator may where they are gone."""
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = needs(signer, "operator" if signer.name == run.ordered_by else "administrator")
    if run.status != "failed":
        reasons.append(f"run {run.id}: expected one that failed, got one that is {run.status}")
    if not run.step:
        reasons.append(f"run {run.id}: expected one that has a training checkpoint, got one that has none")
    return reasons + inputs_stand(state, run) + sets_stand(state, run.sets)


def resume_requested(case: Case) -> Changes:
    run = take_run(case, case.order(Resume).run, "failed")
    return move(case.state, run.model_copy(update={"resumes": 0, "queued": case.entry.index}), "queued")


def run_resumed(case: Case) -> Changes:
    """From the last training checkpoint and no other; by itself only so often."""
    body = case.of(RunResumed)
    run = take_run(case, body.run, "queued", "running", "trained")
    check_inputs(case, run)
    check_sandbox(case, body)
    last = last_checkpoint(case.state, run)
    expected = None if last is None else (last.step, last.digest)
    case.require((body.step, body.checkpoint) == expected, "checkpoint", expected, (body.step, body.checkpoint))
    return begin(case, run, body)


VERBS = (
    Verb(
        Resume,
        may=may_resume,
        signers=("who ordered it", "administrator"),
        meaning="The run continues from its last training checkpoint, in the name of the person who ordered it.",
        event=ResumeRequested,
        apply=resume_requested,
    ),
)
EVENTS = (EventRule(RunResumed, run_resumed),)
