"""Replays: an auditor has a part of a run trained again and compared with the log. Also the limits of sweeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal as Number
from typing import Any

from pydantic import Field

from appliance.domain.core.action import Action, EventRule
from appliance.domain.core.case import Case, Changes, check_sandbox
from appliance.domain.core.entry import Event, Failed, Ordered
from appliance.domain.core.facts import ActionFacts
from appliance.domain.core.names import Code, Decimal, Digest, RunId, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Replay, ReplayVerdict, Run, checkpoint_key
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.data.validity import refuse_invalid_base
from appliance.domain.runs.conditions import UNDER_WAY, RunEntity, find_run
from appliance.domain.runs.steps import Reading
from appliance.errors import Denied, RefusalCode

STEPS_BACKWARD = RefusalCode(
    "replay-steps-backward",
    "order",
    "A replay goes forward. The order names the steps {start} to {end}.",
    "Name an end after the start.",
)
STEP_WITHOUT_CHECKPOINT = RefusalCode(
    "replay-step-without-checkpoint",
    "order",
    "Run {id} has no training checkpoint of step {step}.",
    "Name steps that have one: appliance run show.",
)
SWEEP_NAME_TAKEN = RefusalCode(
    "sweep-name-taken",
    "order",
    "The name of this sweep belongs to another person or another dataset.",
    "Give the sweep a name of its own.",
)
SWEEP_TOO_LARGE = RefusalCode(
    "sweep-too-large",
    "policy",
    "Policy (most_sweep_runs) allows {limit} runs in one sweep, together with the unfinished runs of your other sweeps "
    "on this dataset.",
    "Order fewer runs, or wait until your other sweeps have ended.",
)


class ReplayRun(Order):
    """A signed order to train the steps after `from_step` up to `to_step` again. Step 0 is the beginning of the run."""

    action = "replay"
    run: RunId
    from_step: int = Field(ge=0)
    to_step: int = Field(ge=1)

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class ReplayRequested(Ordered):
    """The entry that a replay was ordered."""

    type = "replay.requested"
    records = "replays"
    part = "opening"


class ReplayFinished(Event):
    """The entry of a finished replay of the steps after `from_step` up to `to_step`.

    `expected`: digest in the log. `got`: digest of the replay. `largest_difference`: difference of the weight that
    differs most, as a share of its change in these steps, null if it was not measured.
    """

    type = "replay.finished"
    records = "replays"
    part = "end"
    order: Digest
    run: RunId
    from_step: int = Field(ge=0)
    to_step: int = Field(ge=1)
    expected: Digest
    got: Digest
    verdict: ReplayVerdict
    largest_difference: Decimal | None
    machine: dict[str, Any]
    sandbox_probes: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"run:{self.run}")


class ReplayFailed(Failed):
    """The entry that a replay ended without a verdict. `code`: why it failed."""

    type = "replay.failed"
    records = "replays"
    part = "end"
    order: Digest
    run: RunId
    code: Code

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"run:{self.run}")


def authorise_replay(state: State, order: ReplayRun, signer: Principal, now: Time) -> Reasons:
    """Return the refusal reasons against a replay.

    Runs on a revoked dataset can be replayed, too: the result is only compared, then deleted.
    """
    run = find_run(state, order.run)
    if isinstance(run, list):
        return run
    reasons: Reasons = []
    if order.from_step >= order.to_step:
        reasons.append(STEPS_BACKWARD(start=order.from_step, end=order.to_step))
    for step in (order.from_step, order.to_step):
        if step and checkpoint_key(run.id, step) not in state.training_checkpoints:
            reasons.append(STEP_WITHOUT_CHECKPOINT(f"run:{run.id}", step=step))
    return reasons + refuse_invalid_base(state, run.base, run.base_digest)


def apply_replay_request(case: Case) -> Changes:
    """Record that a replay was ordered."""
    order = case.order(ReplayRun)
    replay = Replay(
        order=case.accepted.digest,
        run=order.run,
        from_step=order.from_step,
        to_step=order.to_step,
        signer=order.signer,
        index=case.entry.index,
        status="requested",
    )
    return [(case.state.replays, replay.order, replay)]


def requested_replay(case: Case, body: ReplayFinished | ReplayFailed) -> Replay:
    """Return the replay that this entry ends.

    Raises:
        Denied: no such replay is under way.
    """
    replay = case.state.replays.get(body.order)
    if replay is None or replay.status != "requested":
        got = "none" if replay is None else replay.status
        raise Denied(f"entry {case.entry.index}: replay {body.order}: expected one under way, got {got}")
    case.require(replay.run == body.run, "run", replay.run, body.run)
    return replay


def apply_replay_result(case: Case) -> Changes:
    """Record the verdict of a replay, after computing it from the digests, the machines and the measured difference."""
    body = case.of(ReplayFinished)
    replay = requested_replay(case, body)
    check_sandbox(case, body.sandbox_probes)
    window = (body.from_step, body.to_step)
    case.require(window == (replay.from_step, replay.to_step), "steps", (replay.from_step, replay.to_step), window)
    recorded = case.state.training_checkpoints.get(checkpoint_key(replay.run, replay.to_step))
    if recorded is None:
        raise Denied(f"entry {case.entry.index}: step {replay.to_step}: expected a training checkpoint, got none")
    case.require(body.expected == recorded.digest, "expected", recorded.digest, body.expected)
    verdict = compare_replay(
        body.expected,
        body.got,
        recorded=recorded.machine,
        machine=body.machine,
        largest_difference=body.largest_difference,
    )
    case.require(body.verdict == verdict, "verdict", verdict, body.verdict)
    changed = replay.model_copy(update={"status": "finished", "verdict": verdict})
    return [(case.state.replays, replay.order, changed)]


def apply_replay_failure(case: Case) -> Changes:
    """Record that a replay failed."""
    replay = requested_replay(case, case.of(ReplayFailed))
    return [(case.state.replays, replay.order, replay.model_copy(update={"status": "failed"}))]


TOLERANCE = "0.02"
"""Largest accepted difference of a weight, as a share of its change in the replayed steps."""


def compare_replay(
    expected: str, got: str, *, recorded: Mapping[str, Any], machine: Mapping[str, Any], largest_difference: str | None
) -> ReplayVerdict:
    """Return the verdict on two digests, from the machines that made them and the difference, if it was measured."""
    if expected == got:
        return "identical"
    if dict(recorded) == dict(machine) or largest_difference is None:
        return "different"
    return "within-tolerance" if Number(largest_difference) <= Number(TOLERANCE) else "different"


ACTIONS = (
    Action(
        ReplayRun,
        title="Replay a run",
        authorise=authorise_replay,
        signers=("auditor",),
        meaning="The appliance trains these steps again and compares; the verdict is an entry, whatever it is.",
        event=ReplayRequested,
        apply=apply_replay_request,
        facts=ActionFacts(RunEntity, "run", ("from_step", "to_step")),
        example_values={"signer": "audrey", "from_step": 0, "to_step": 10},
    ),
)
EVENTS = (
    EventRule(ReplayFinished, apply_replay_result),
    EventRule(ReplayFailed, apply_replay_failure),
)


KEPT = 2
"""Reciprocal of the share of runs that continue from a rung of a sweep."""


def is_rung(reading: int) -> bool:
    """Return True if the reading of this number, counted from 1, is a rung: a power of two."""
    return reading > 0 and reading & (reading - 1) == 0


def find_behind(own: Sequence[Reading], others: Iterable[Sequence[Reading]]) -> tuple[str, str] | None:
    """Return a run's loss and the worst loss that continues at its last reading, None if the run continues, too.

    Runs are compared at the same number of readings. A run whose last reading is not a rung continues. This is
    successive halving (Jamieson and Talwalkar 2016).
    """
    count = len(own)
    if not is_rung(count):
        return None
    reached = sorted(Number(readings[count - 1][1]) for readings in [*others, own] if len(readings) >= count)
    threshold = reached[-(-len(reached) // KEPT) - 1]
    return None if Number(own[-1][1]) <= threshold else (own[-1][1], str(threshold))


def refuse_sweep_run(state: State, sweep: str, signer: str, dataset_digest: str) -> Reasons:
    """Return the refusal reasons against one more run of this sweep.

    A sweep belongs to one signer and one dataset. Its author chooses its name, so the author's unfinished runs of
    other sweeps on the same dataset count, too.
    """

    def counts(run: Run) -> bool:
        own = run.ordered_by == signer and run.dataset_digest == dataset_digest and run.status in UNDER_WAY
        return run.sweep == sweep or (own and run.sweep is not None)

    for run in state.runs.values():
        if run.sweep == sweep and (run.ordered_by, run.dataset_digest) != (signer, dataset_digest):
            return [SWEEP_NAME_TAKEN()]
    limit = state.parameters.most_sweep_runs
    if sum(map(counts, state.runs.values())) < limit:
        return []
    return [SWEEP_TOO_LARGE(limit=limit)]
