"""An auditor's replay: a window of a run is trained again and compared with what the log holds."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal as Number
from typing import Any

from pydantic import Field

from appliance.domain.core.case import Case, Changes, check_walls
from appliance.domain.core.event import Event, Failed, Ordered
from appliance.domain.core.names import Decimal, Digest, RunId, Time
from appliance.domain.core.order import Order, Subjects
from appliance.domain.core.records.people import Principal
from appliance.domain.core.records.runs import Replay, ReplayVerdict, checkpoint_key
from appliance.domain.core.roles import Reasons, needs
from appliance.domain.core.state import State
from appliance.domain.core.verb import EventRule, Verb
from appliance.domain.data.standing import base_is
from appliance.errors import Denied


class ReplayRun(Order):
    """Trains the steps after `from_step` up to `to_step` again, and compares: 0 is the beginning."""

    verb = "replay"
    run: RunId
    from_step: int = Field(ge=0)
    to_step: int = Field(ge=1)

    def subjects(self) -> Subjects:
        return self._self(f"run:{self.run}")


class ReplayRequested(Ordered):
    type = "replay.requested"


class ReplayFinished(Event):
    """The steps after `from_step` up to `to_step`, trained again: what the ledger holds, and what came of it.

    `largest_difference`: as a share of what the window changed, for the worst weight; null where nothing was measured.
    """

    type = "replay.finished"
    order: Digest
    run: RunId
    from_step: int = Field(ge=0)
    to_step: int = Field(ge=1)
    expected: Digest
    got: Digest
    verdict: ReplayVerdict
    largest_difference: Decimal | None
    machine: dict[str, Any]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"run:{self.run}")


class ReplayFailed(Failed):
    """No verdict: the window could not be trained again, and why."""

    type = "replay.failed"
    order: Digest
    run: RunId
    code: str

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"run:{self.run}")


def may_replay(state: State, order: ReplayRun, signer: Principal, now: Time) -> Reasons:
    """On a revoked dataset too: what is trained again proves what was made, and is thrown away."""
    run = state.runs.get(order.run)
    if run is None:
        return [f"run: expected a known one, got {order.run}"]
    reasons = needs(signer, "auditor")
    if order.from_step >= order.to_step:
        reasons.append(f"steps: expected a window that goes forward, got {order.from_step} to {order.to_step}")
    for step in (order.from_step, order.to_step):
        if step and checkpoint_key(run.id, step) not in state.training_checkpoints:
            reasons.append(f"step {step}: expected one of {run.id} that has a training checkpoint, got one without")
    return reasons + base_is(state, run.base, run.base_digest)


def replay_requested(case: Case) -> Changes:
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
    replay = case.state.replays.get(body.order)
    if replay is None or replay.status != "requested":
        got = "none" if replay is None else replay.status
        raise Denied(f"entry {case.entry.index}: replay {body.order}: expected one under way, got {got}")
    case.require(replay.run == body.run, "run", replay.run, body.run)
    return replay


def replay_finished(case: Case) -> Changes:
    """The verdict is the one that the digests, the machines and the measured difference give."""
    body = case.of(ReplayFinished)
    replay = requested_replay(case, body)
    check_walls(case, body.walls)
    window = (body.from_step, body.to_step)
    case.require(window == (replay.from_step, replay.to_step), "steps", (replay.from_step, replay.to_step), window)
    recorded = case.state.training_checkpoints.get(checkpoint_key(replay.run, replay.to_step))
    if recorded is None:
        raise Denied(f"entry {case.entry.index}: step {replay.to_step}: expected a training checkpoint, got none")
    case.require(body.expected == recorded.digest, "expected", recorded.digest, body.expected)
    verdict = judge(
        body.expected,
        body.got,
        recorded=recorded.machine,
        machine=body.machine,
        largest_difference=body.largest_difference,
    )
    case.require(body.verdict == verdict, "verdict", verdict, body.verdict)
    changed = replay.model_copy(update={"status": "finished", "verdict": verdict})
    return [(case.state.replays, replay.order, changed)]


def replay_failed(case: Case) -> Changes:
    replay = requested_replay(case, case.of(ReplayFailed))
    return [(case.state.replays, replay.order, replay.model_copy(update={"status": "failed"}))]


TOLERANCE = "0.02"
"""The largest distance between two ends of a window, as a share of what the window changed, for the worst weight."""


def judge(
    expected: str, got: str, *, recorded: Mapping[str, Any], machine: Mapping[str, Any], largest_difference: str | None
) -> ReplayVerdict:
    """The verdict over two digests, the machines that made them, and the difference where one was measured."""
    if expected == got:
        return "identical"
    if dict(recorded) == dict(machine) or largest_difference is None:
        return "different"
    return "within-tolerance" if Number(largest_difference) <= Number(TOLERANCE) else "different"


VERBS = (
    Verb(
        ReplayRun,
        may=may_replay,
        signers=("auditor",),
        meaning="The appliance trains these steps again and compares; the verdict is an entry, whatever it is.",
        event=ReplayRequested,
        apply=replay_requested,
    ),
)
EVENTS = (
    EventRule(ReplayFinished, replay_finished),
    EventRule(ReplayFailed, replay_failed),
)
