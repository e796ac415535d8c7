"""Replays: an auditor has a window of steps trained again, and the result is compared with the record."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.records.runs import Replay, Run, TrainingCheckpoint, checkpoint_key
from appliance.domain.core.state import State
from appliance.domain.runs.replays import ReplayFailed, ReplayFinished, ReplayRun, compare_replay
from appliance.errors import ApplianceError, Denied, NotFound
from appliance.formats.core.digest import digest_bytes
from appliance.sandbox.output import read_output
from appliance.store.files import disk
from appliance.store.files.run_files import MAX_BYTES
from appliance.workflows.core.context import Frame, RunContext, WorkerContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.record import Effect, conceal
from appliance.workflows.core.retry import append_with_retry
from appliance.workflows.core.workers import carry_out, check_sandbox, worker
from appliance.workflows.data.imports import checked_base
from appliance.workflows.runs.places import TRAIN
from appliance.workflows.runs.steps import private_members, read_secret
from appliance.workflows.runs.train import train_order

BEFORE, EXPECTED, GOT = "before.safetensors", "expected.safetensors", "got.safetensors"


def enqueue(context: RunContext, order_digest: str) -> None:
    """Queue the replay behind the waiting runs, because there is one device and one queue."""
    if context.runs_here:
        context.runs.put(partial(compute_replay, context, order_digest))


def compute_replay(context: RunContext, order_digest: str) -> None:
    """Run the replay to a verdict or to a recorded failure. If the service ends meanwhile, the next start runs it
    again.
    """
    replay = context.ledger.state.replays.get(order_digest)
    if replay is None or replay.status != "requested" or context.closing.is_set():
        return
    if not context.items_in_progress.take(order_digest):
        return
    try:
        _run_to_end(context, replay)
    finally:
        context.items_in_progress.leave(order_digest)


def _run_to_end(context: RunContext, replay: Replay) -> None:
    try:
        with contain_defects(f"replay of {replay.run}"):
            body = _replay(context, replay)
            append_with_retry(context, body)
    except ApplianceError as error:
        if not context.closing.is_set():
            _fail(context, replay, error)
        return
    members = {"verdict", "expected", "got", "largest_difference"}
    context.progress.end(replay.order, result=body.model_dump(mode="json", include=members))


def _fail(context: WorkerContext, replay: Replay, error: ApplianceError) -> None:
    message = conceal(error.message)
    body = ReplayFailed(order=replay.order, run=replay.run, code=error.code, message=message.commitment)
    with suppress(Denied):
        append_with_retry(context, body, disclosures=(message,))
    context.progress.fail(replay.order, error.code, message)


def _replay(context: RunContext, replay: Replay) -> ReplayFinished:
    state = context.ledger.state
    run, end = state.runs.get(replay.run), _find_checkpoint(state, replay, replay.to_step)
    if run is None or end is None:
        raise NotFound(f"replay of {replay.run}: expected a run with that training checkpoint, got none")
    start = _find_checkpoint(state, replay, replay.from_step)
    # Both ends of the window are hashed first. The bytes of its end are needed only to measure a difference.
    begin = b"" if start is None else context.checkpoints.read(start.digest)
    expected = context.checkpoints.find(end.digest)
    with ExitStack() as stack:
        folder, scratch = (stack.enter_context(context.artifacts.staging()) for _ in range(2))
        result = _train_again(context, run, replay, end, begin, folder)
        got = read_output(folder, GOT, MAX_BYTES)
        measured = "0.0" if digest_bytes(got) == end.digest else None
        if measured is None and expected is not None and result["machine"] != end.machine:
            # The worker may have written links of these names, which are replaced and not followed.
            for name, data in ((EXPECTED, expected), *(((BEFORE, begin),) if begin else ())):
                with disk.disk_errors(f"{name} of the replay"):
                    disk.write_file(folder / name, data)
            measured = _measure(context, replay, folder, scratch)
    verdict = compare_replay(
        end.digest, digest_bytes(got), recorded=end.machine, machine=result["machine"], largest_difference=measured
    )
    return ReplayFinished(
        order=replay.order,
        run=run.id,
        from_step=replay.from_step,
        to_step=replay.to_step,
        expected=end.digest,
        got=digest_bytes(got),
        verdict=verdict,
        largest_difference=measured,
        machine=result["machine"],
        sandbox_probes=result["sandbox_probes"],
    )


def _find_checkpoint(state: State, replay: Replay, step: int) -> TrainingCheckpoint | None:
    return state.training_checkpoints.get(checkpoint_key(replay.run, step))


def _train_again(
    context: WorkerContext, run: Run, replay: Replay, end: TrainingCheckpoint, begin: bytes, folder: Path
) -> Frame:
    """Train the window again and return the result frame with the results of the sandbox probes.

    The folder then has the state at the window's end, and the state at its start if the window begins at step 0.
    """
    recipe = train_order(context, run, replayed=True).recipe
    base = checked_base(context, run.base)
    context.artifacts.check(run.dataset_digest)
    dataset = context.artifacts.path(run.dataset_digest)
    task = {
        "recipe": recipe.model_dump(mode="json"),
        "base": str(base),
        "dataset": str(dataset),
        "stop": replay.to_step,
        "before": str(folder / BEFORE),
        "got": str(folder / GOT),
        **(private_members(context, run, read_secret(context, run)) if run.privacy is not None else {}),
        # The ranks of a run on several nodes had more threads than this one machine would choose for each.
        **({"threads": int(end.machine["threads"])} if run.nodes > 1 and recipe.device == "cpu" else {}),
    }
    gpu, key = recipe.device == "cuda", f"replay-{replay.order[7:23]}"
    with worker(context, key, TRAIN, read=(base, dataset), write=(folder,), gpu=gpu) as started:
        probes = check_sandbox(started)
        result = carry_out(started, task, begin, on_frame=partial(_publish, context, run, replay))
    return {**result, "sandbox_probes": probes}


def _publish(context: WorkerContext, run: Run, replay: Replay, frame: Frame) -> None:
    """Publish a frame to followers. The steps of a private run are reduced to what the run's own record has."""
    if run.privacy is not None and frame.get("frame") == "step":
        frame = {**frame, "seconds": 0.0, "peak_bytes": 0}
    context.progress.publish(replay.order, frame)


def _measure(context: WorkerContext, replay: Replay, folder: Path, scratch: Path) -> str | None:
    """Return the largest difference of the states, measured by a separate worker that only reads them."""
    task: dict[str, Any] = {
        name: str(folder / file) for name, file in (("before", BEFORE), ("expected", EXPECTED), ("got", GOT))
    }
    key = f"replay-{replay.order[7:23]}"
    with worker(context, key, "appliance.worker.compare", read=(folder,), write=(scratch,)) as started:
        check_sandbox(started)
        result = carry_out(started, task)
    return result.get("largest_difference")


def _check_kept(context: RunContext, order: ReplayRun, _: str) -> None:
    """Check, before the order is recorded, that the state at the window's start still exists.

    Raises:
        NotFound: The state or the secret of a private run has been removed.
    """
    run = context.ledger.state.runs.get(order.run)
    if run is not None and run.privacy is not None:
        read_secret(context, run)
    begin = context.ledger.state.training_checkpoints.get(checkpoint_key(order.run, order.from_step))
    if begin is not None and not context.checkpoints.size(begin.digest):
        raise NotFound(
            f"replay of {order.run}, from step {order.from_step}: expected the bytes of its training checkpoint, got "
            "none: its retention has ended (training_checkpoint_retention_s); replay a window that begins at 0"
        )


EFFECTS = (Effect(ReplayRun, ready=_check_kept, start=lambda context, _, digest: enqueue(context, digest)),)
