"""The rules of a run: asked for, started, checkpointed, resumed, finished or not; and of windows trained again."""

from __future__ import annotations

from appliance.domain.approval import inputs_stand
from appliance.domain.case import Case, Puts
from appliance.domain.comparison import judge
from appliance.domain.events import (
    ReplayFailed,
    ReplayFinished,
    RunCheckpointed,
    RunFailed,
    RunFinished,
    RunRequested,
    RunResumed,
    RunStarted,
)
from appliance.domain.orders import Cancel, Resume, Train
from appliance.domain.orders import Replay as ReplayOrder
from appliance.domain.records import Replay, Run, TrainingCheckpoint, checkpoint_key
from appliance.domain.state import State
from appliance.domain.stopping import best_step, read_steps, stops
from appliance.errors import Denied

MOST_RESUMES = 3
"""So often a run goes on by itself; then it failed, until somebody orders it to go on."""


def run_requested(case: Case) -> Puts:
    order = case.allowed(Train)
    body = case.of(RunRequested)
    expected = f"r-{len(case.state.runs) + 1:06d}"
    case.require(body.run == expected, "run", expected, body.run)
    run = Run(
        id=body.run,
        order=case.accepted.digest,
        name=order.recipe.name,
        ordered_by=order.signer,
        base=order.recipe.base,
        base_digest=order.base_digest,
        dataset=order.recipe.dataset,
        dataset_digest=order.dataset_digest,
        method=order.recipe.method,
        purpose=order.recipe.purpose,
        baseline=order.recipe.baseline,
        index=case.entry.index,
        status="queued",
        queued=case.entry.index,
        early_stopping=order.recipe.early_stopping,
        validate_every=order.recipe.validate_every,
    )
    return [(case.state.runs, run.id, run)]


def next_queued(state: State) -> Run | None:
    """Whose turn it is: the one that the earliest entry put into the queue."""
    return min((run for run in state.runs.values() if run.status == "queued"), key=lambda run: run.queued, default=None)


def take_run(case: Case, name: str, *statuses: str) -> Run:
    run = case.state.runs.get(name)
    if run is None or run.status not in statuses:
        got = "none" if run is None else run.status
        raise Denied(f"entry {case.entry.index}: run {name}: expected one that is {' or '.join(statuses)}, got {got}")
    return run


def move(state: State, run: Run, status: str) -> Puts:
    return [(state.runs, run.id, run.model_copy(update={"status": status}))]


def fallen(state: State, run: Run) -> Denied | None:
    """Why nothing of the run is trained or sealed any more; the code says whether its base or dataset was revoked."""
    reasons = inputs_stand(state, run)
    if not reasons:
        return None
    rows = (state.bases.get(run.base), state.datasets.get(run.dataset))
    revoked = any(row is not None and row.revoked is not None for row in rows)
    return Denied(f"run {run.id}", reasons=tuple(reasons), code="revoked" if revoked else "quarantined")


def check_inputs(case: Case, run: Run) -> None:
    """After its base or its dataset has fallen, a run has no entry but its end."""
    error = fallen(case.state, run)
    if error is not None:
        raise error.within(f"entry {case.entry.index} ({case.entry.type})")


def run_started(case: Case) -> Puts:
    """Nothing trains behind a wall that a probe got through, or without a layer that policy does not do without."""
    body = case.of(RunStarted)
    run = take_run(case, body.run, "queued")
    check_inputs(case, run)
    case.require(run.step == 0, "run", "run.resumed, for one that has a training checkpoint", "run.started")
    check_sandbox(case, body)
    return move(case.state, run, "running")


def check_sandbox(case: Case, body: RunStarted | RunResumed) -> None:
    check_walls(case, body.walls)
    missing = sorted(layer for layer, stands in body.layers.items() if not stands)
    accepted = case.state.parameters.accepted_missing_layers
    case.require(set(missing) <= set(accepted), "layers", f"all but {list(accepted)}", f"without {missing}")
    case.require(sorted(body.accepted_missing) == missing, "accepted_missing", missing, body.accepted_missing)


def check_walls(case: Case, walls: dict[str, str]) -> None:
    """Every probe was made and every one was refused."""
    through = sorted(name for name, result in walls.items() if result != "refused")
    case.require(bool(walls), "walls", "the worker's probes", "none")
    case.require(not through, "walls", "every probe refused", f"through: {', '.join(through)}")


def run_finished(case: Case) -> Puts:
    """No run ends without the training checkpoint of its last step: what is sealed can be replayed to its end."""
    body = case.of(RunFinished)
    run = take_run(case, body.run, "running")
    check_inputs(case, run)
    case.require(body.steps == run.step, "steps", f"{run.step}, of its last training checkpoint", body.steps)
    check_end(case, run, body)
    made = {name: getattr(body, name) for name in ("weights", "record", "seconds", "peak_bytes")}
    return move(case.state, run.model_copy(update=made), "trained")


def check_end(case: Case, run: Run, body: RunFinished) -> None:
    """It ended where its plan or its validation losses end it, at no other step, and the weights are those to seal."""
    readings, patience, steps = body.validation, run.early_stopping, body.steps
    expected = read_steps(steps, body.planned_steps, run.validate_every)
    got = tuple(step for step, _ in readings)
    case.require(got == expected, "validation", f"losses after the steps {expected}", f"after {got}")
    early = any(stops(readings[:count], patience) for count in range(1, len(readings)))
    case.require(not early, "steps", "an earlier end, by its validation losses", steps)
    ended = steps == body.planned_steps or (steps < body.planned_steps and stops(readings, patience))
    case.require(ended, "steps", f"{body.planned_steps}, or validation losses that stop it", steps)
    best = best_step(readings) if patience else steps
    case.require(body.weights_step == best, "weights_step", best, body.weights_step)


def run_failed(case: Case) -> Puts:
    return move(case.state, take_run(case, case.of(RunFailed).run, "queued", "running", "trained"), "failed")


def run_cancelled(case: Case) -> Puts:
    order = case.allowed(Cancel)
    return move(case.state, take_run(case, order.run, "queued", "running", "trained"), "cancelled")


def run_checkpointed(case: Case) -> Puts:
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


def resume_requested(case: Case) -> Puts:
    run = take_run(case, case.allowed(Resume).run, "failed")
    return move(case.state, run.model_copy(update={"resumes": 0, "queued": case.entry.index}), "queued")


def run_resumed(case: Case) -> Puts:
    """From the last training checkpoint and no other; by itself only so often."""
    body = case.of(RunResumed)
    run = take_run(case, body.run, "queued", "running", "trained")
    check_inputs(case, run)
    check_sandbox(case, body)
    last = last_checkpoint(case.state, run)
    expected = None if last is None else (last.step, last.digest)
    case.require((body.step, body.checkpoint) == expected, "checkpoint", expected, (body.step, body.checkpoint))
    resumes = run.resumes + (run.status != "queued")
    case.require(resumes <= MOST_RESUMES, "resumes", f"at most {MOST_RESUMES}", resumes)
    return move(case.state, run.model_copy(update={"resumes": resumes}), "running")


def replay_requested(case: Case) -> Puts:
    order = case.allowed(ReplayOrder)
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


def _replay(case: Case, body: ReplayFinished | ReplayFailed) -> Replay:
    replay = case.state.replays.get(body.order)
    if replay is None or replay.status != "requested":
        got = "none" if replay is None else replay.status
        raise Denied(f"entry {case.entry.index}: replay {body.order}: expected one under way, got {got}")
    case.require(replay.run == body.run, "run", replay.run, body.run)
    return replay


def replay_finished(case: Case) -> Puts:
    """The verdict is the one that the digests, the machines and the measured difference give."""
    body = case.of(ReplayFinished)
    replay = _replay(case, body)
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


def replay_failed(case: Case) -> Puts:
    replay = _replay(case, case.of(ReplayFailed))
    return [(case.state.replays, replay.order, replay.model_copy(update={"status": "failed"}))]


RULES = {
    "run.requested": run_requested,
    "run.started": run_started,
    "run.checkpointed": run_checkpointed,
    "resume.requested": resume_requested,
    "run.resumed": run_resumed,
    "run.finished": run_finished,
    "run.failed": run_failed,
    "run.cancelled": run_cancelled,
    "replay.requested": replay_requested,
    "replay.finished": replay_finished,
    "replay.failed": replay_failed,
}
