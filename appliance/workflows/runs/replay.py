"""An auditor has a window of steps trained again: what is recorded is checked first, then trained, then compared."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.records.runs import Replay, Run, TrainingCheckpoint, checkpoint_key
from appliance.domain.core.state import State
from appliance.domain.runs.replays import ReplayFailed, ReplayFinished, ReplayRun, judge
from appliance.errors import ApplianceError, Denied, NotFound
from appliance.formats.core.digest import digest_bytes
from appliance.runners.output import read_output
from appliance.store.files.checkpoints import MAX_BYTES
from appliance.workflows.core.context import Context, Frame
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.effects import Effect
from appliance.workflows.core.record import conceal
from appliance.workflows.core.retry import append_with_retry
from appliance.workflows.core.workers import carry_out, check_walls, worker
from appliance.workflows.data.imports import checked_base
from appliance.workflows.runs.privacy import private_members, read_secret
from appliance.workflows.runs.train import train_order

BEFORE, EXPECTED, GOT = "before.safetensors", "expected.safetensors", "got.safetensors"


def enqueue(context: Context, order_digest: str) -> None:
    """Behind the runs that wait: one device, one queue."""
    if context.runs_here:
        context.runs.put(partial(carry_through, context, order_digest))


def carry_through(context: Context, order_digest: str) -> None:
    """To a verdict, or to the reason why there is none; a service that ends leaves it to the next start."""
    replay = context.ledger.state.replays.get(order_digest)
    if replay is None or replay.status != "requested" or context.closing.is_set():
        return
    try:
        with contain_defects(f"replay of {replay.run}"):
            body = _replay(context, replay)
            append_with_retry(context, body)
    except ApplianceError as error:
        if not context.closing.is_set():
            _fail(context, replay, error)
        return
    members = {"verdict", "expected", "got", "largest_difference"}
    context.progress.end(order_digest, result=body.model_dump(mode="json", include=members))


def _fail(context: Context, replay: Replay, error: ApplianceError) -> None:
    message = conceal(error.message)
    body = ReplayFailed(order=replay.order, run=replay.run, code=error.code, message=message.commitment)
    with suppress(Denied):
        append_with_retry(context, body, disclosures=(message,))
    context.progress.fail(replay.order, error.code, message)


def _replay(context: Context, replay: Replay) -> ReplayFinished:
    state = context.ledger.state
    run, end = state.runs.get(replay.run), _recorded(state, replay, replay.to_step)
    if run is None or end is None:
        raise NotFound(f"replay of {replay.run}: expected a run with that training checkpoint, got none")
    start = _recorded(state, replay, replay.from_step)
    # Both ends are hashed before anything runs. The end's own bytes are needed only to measure a difference.
    begin = b"" if start is None else context.checkpoints.read(start.digest)
    expected = context.checkpoints.find(end.digest)
    with ExitStack() as stack:
        folder, scratch = (stack.enter_context(context.artifacts.staging()) for _ in range(2))
        result = _train_again(context, run, replay, end, begin, folder)
        got = read_output(folder, GOT, MAX_BYTES)
        measured = "0.0" if digest_bytes(got) == end.digest else None
        if measured is None and expected is not None and result["machine"] != end.machine:
            (folder / EXPECTED).write_bytes(expected)
            if begin:
                (folder / BEFORE).write_bytes(begin)
            measured = _measure(context, replay, folder, scratch)
    verdict = judge(
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
        walls=result["walls"],
    )


def _recorded(state: State, replay: Replay, step: int) -> TrainingCheckpoint | None:
    return state.training_checkpoints.get(checkpoint_key(replay.run, step))


def _train_again(
    context: Context, run: Run, replay: Replay, end: TrainingCheckpoint, begin: bytes, folder: Path
) -> Frame:
    """The result frame, with the walls; the folder then holds the window's end, and its beginning where that is 0."""
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
        # Each rank of several nodes had more threads than this one machine can give it by itself.
        **({"threads": int(end.machine["threads"])} if run.nodes > 1 and recipe.device == "cpu" else {}),
    }
    module, gpu, key = "appliance.worker.replay", recipe.device == "cuda", f"replay-{replay.order[7:23]}"
    with worker(context, key, module, read=(base, dataset), write=(folder,), gpu=gpu) as started:
        walls = check_walls(started)
        result = carry_out(started, task, begin, on_frame=partial(_publish, context, run, replay))
    return {**result, "walls": walls}


def _publish(context: Context, run: Run, replay: Replay, frame: Frame) -> None:
    """To those who follow; of a private run's steps no more than its own record has."""
    if run.privacy is not None and frame.get("frame") == "step":
        frame = {**frame, "seconds": 0.0, "peak_bytes": 0}
    context.progress.publish(replay.order, frame)


def _measure(context: Context, replay: Replay, folder: Path, scratch: Path) -> str | None:
    """By another worker than the one that trained: it only reads the three states."""
    task: dict[str, Any] = {
        name: str(folder / file) for name, file in (("before", BEFORE), ("expected", EXPECTED), ("got", GOT))
    }
    key = f"replay-{replay.order[7:23]}"
    with worker(context, key, "appliance.worker.compare", read=(folder,), write=(scratch,)) as started:
        check_walls(started)
        result = carry_out(started, task)
    return result.get("largest_difference")


def _check_kept(context: Context, order: ReplayRun) -> None:
    """Before the order is recorded: what the window begins from is still there."""
    run = context.ledger.state.runs.get(order.run)
    if run is not None and run.privacy is not None:
        read_secret(context, run)
    begin = context.ledger.state.training_checkpoints.get(checkpoint_key(order.run, order.from_step))
    if begin is not None and not context.checkpoints.size(begin.digest):
        raise NotFound(
            f"replay of {order.run}, from step {order.from_step}: expected the bytes of its training checkpoint, got "
            "none: its retention has ended (training_checkpoint_retention_s); replay a window that begins at 0"
        )


EFFECTS = (Effect(ReplayRun, ready=_check_kept, start=lambda context, accepted: enqueue(context, accepted.digest)),)
