"""A run from the queue to a sealed adapter. Each intent is recorded before its act, each outcome after it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from appliance.api.runs import WorkError
from appliance.domain.actions.registry import ORDERS
from appliance.domain.core.records.runs import Run, TrainingCheckpoint
from appliance.domain.recipe.methods import METHODS
from appliance.domain.runs.conditions import (
    MOST_RESUMES,
    UNDER_WAY,
    find_next_run,
    find_withdrawn_input,
    last_checkpoint,
)
from appliance.domain.runs.control import AuthoriseRun, Cancel, Resume, RunResumed
from appliance.domain.runs.training import RunFailed, RunFinished, RunStarted, Train
from appliance.errors import ApplianceError, Denied, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_file
from appliance.sandbox.host import RunningWorker
from appliance.workflows.core.context import LedgerContext, RunContext, WorkerContext
from appliance.workflows.core.jobs import Jobs, contain_defects
from appliance.workflows.core.record import Effect, conceal
from appliance.workflows.core.retry import append_with_retry, check_run_valid, state_with_retry, stop_run_workers
from appliance.workflows.core.workers import carry_out, check_sandbox
from appliance.workflows.data.folders import check_labels
from appliance.workflows.data.imports import checked_base
from appliance.workflows.evaluation.local_sets import check_local
from appliance.workflows.runs import checkpoints, evaluate, places, planning, steps
from appliance.workflows.runs.evaluate import seal
from appliance.workflows.runs.steps import begin_secret, bind, private_members, read_secret

RESULT = (
    "weights_step",
    "validation",
    "planned_steps",
    "steps",
    "trained_tokens",
    "seconds",
    "peak_bytes",
    "final_loss",
)
"""Fields of a training worker's result that `run.finished` records."""
ENDED = ("worker-ended", "truncated-frame")
"""Codes of a worker that was killed, between two frames or within one. Only after these does another worker continue;
a failure that the worker reports is final.
"""


@dataclass(frozen=True)
class RunFolders:
    """The folders of a run: two to read, two to write."""

    base: Path
    dataset: Path
    output: Path
    checkpoints: Path


def resume_run(context: RunContext, run_id: str) -> None:
    """Queue the continuation of an interrupted run."""

    def continue_run() -> None:
        execute_run(context, run_id)

    if context.runs_here:
        _queue(context, _find_place(context, run_id)).put(continue_run)


def requeue_run(context: RunContext, run_id: str) -> None:
    """Requeue a run whose turn may have come while another thread worked on it."""
    run = context.ledger.state.runs.get(run_id)
    if run is not None and run.status == "queued":
        enqueue(context, run.on)
    elif can_continue_run(run):
        resume_run(context, run_id)


def _find_place(context: LedgerContext, run_id: str) -> str:
    run = context.ledger.state.runs.get(run_id)
    return "local" if run is None else run.on


def enqueue(context: RunContext, on: str = "local") -> None:
    """Queue one turn at this place. At the turn, the run that has waited longest by the ledger starts.

    If another process has the queue, that process reads the entry and queues the run.
    """
    if context.runs_here:
        _queue(context, on).put(partial(_run_next, context, on))


def _queue(context: RunContext, on: str) -> Jobs:
    return context.runs if on == "local" else context.cluster_runs


def _run_next(context: RunContext, on: str) -> None:
    while (run := find_next_run(context.ledger.state, on, context.items_in_progress)) is not None:
        if execute_run(context, run.id):
            return


def enqueue_ordered(context: RunContext, order_digest: str) -> None:
    """Queue a turn for the run of this order, which has just been recorded."""
    for run in context.ledger.state.runs.values():
        if run.order == order_digest and run.status == "queued":
            enqueue(context, run.on)


def resume_ordered(context: RunContext, run_id: str) -> None:
    """Requeue a failed run and reopen its progress stream."""
    context.progress.reopen(run_id)
    enqueue(context, _find_place(context, run_id))


def can_continue_run(run: Run | None) -> bool:
    """Return True if the service continues an interrupted run without an order.

    It continues from the last training checkpoint, or from the first step if there is none. On Slurm, where a job can
    be preempted often, a worker that left a training checkpoint does not count against the limit.
    """
    if run is None or run.status not in ("running", "trained"):
        return False
    return run.resumes < MOST_RESUMES or (run.on == "slurm" and run.step > run.began)


def train_order(context: LedgerContext, run: Run, *, replayed: bool = False) -> Train:
    """Return the order of a run, read again from the ledger.

    A replay accepts an order whose key was revoked since, so that nobody can evade an audit by revoking their own key.

    Raises:
        NotAuthenticated: The key of the order is no longer valid, unless `replayed`.
    """
    state, document = context.ledger.state, context.ledger.documents_of(run.index)["order"]
    accepted = ORDERS.read_recorded(state, document) if replayed else ORDERS.read_logged(state, document, run.index)
    order = accepted.order
    if not isinstance(order, Train):
        raise NotFound(f"run {run.id}: expected an order to train, got {order.action}")
    return order


def execute_run(context: RunContext, run_id: str) -> bool:
    """Run to an outcome in any case (sealed, failed or cancelled) and record it. Return False if another thread has
    the run.

    If the service ends meanwhile, the next start continues the run, or records that it was interrupted.
    """
    run = context.ledger.state.runs.get(run_id)
    if run is None or context.closing.is_set() or not (run.status == "queued" or can_continue_run(run)):
        return True
    if not context.items_in_progress.take(run_id):
        return False
    try:
        _run_to_end(context, run)
    finally:
        context.items_in_progress.leave(run_id)
    if _was_resumed(context, run):
        requeue_run(context, run_id)
    return True


def _was_resumed(context: LedgerContext, run: Run) -> bool:
    """Return True if a person resumed the run while this thread still worked on it, for example to end its job."""
    now = context.ledger.state.runs.get(run.id)
    return now is not None and now.status == "queued" and now.queued != run.queued


def _run_to_end(context: RunContext, run: Run) -> None:
    run_id = run.id
    try:
        with contain_defects(f"run {run_id}"):
            adapter = _train_and_seal(context, run)
    except ApplianceError as error:
        if context.closing.is_set() and _is_left(context.ledger.state.runs.get(run_id)):
            return
        _fail(context, run_id, error)
    else:
        context.progress.end(run_id, result={"adapter": adapter})
    places.release(context, run_id)
    checkpoints.sweep(context)
    steps.sweep(context)


def _is_left(run: Run | None) -> bool:
    """Return True if the next start begins or continues the run, or records that the service's end interrupted it."""
    return run is not None and run.status in UNDER_WAY


def _train_and_seal(context: RunContext, run: Run) -> str:
    check_run_valid(context, run)
    order = train_order(context, run)
    places.check_place(context, run.on, order.recipe, run.nodes)
    if run.on == "local":
        planning.check_start(context, order.recipe)
    base = checked_base(context, run.base)
    context.artifacts.check(run.dataset_digest)
    dataset = context.artifacts.path(run.dataset_digest)
    with ExitStack() as stack:
        output, states, scratch = (stack.enter_context(context.artifacts.staging()) for _ in range(3))
        trained = _train(context, run.id, order, RunFolders(base, dataset, output, states))
        # The files on the cluster are removed before the run waits for its evaluation.
        places.release(context, run.id)
        evaluation = partial(
            _evaluate_and_seal, context, run, order, RunFolders(base, dataset, output, scratch), trained
        )
        return places.compute_in_turn(context, run, evaluation)


def _evaluate_and_seal(
    context: RunContext, run: Run, order: Train, folders: RunFolders, trained: dict[str, Any]
) -> str:
    """Evaluate and seal on this machine, wherever the run was trained.

    An adapter is served on the kind of machine that evaluated it.

    Raises:
        Unavailable: The service ends; its workers were ended before.
    """
    _check_open(context, run)
    base, dataset, output, scratch = vars(folders).values()
    evaluation = evaluate.evaluate(context, run, order, base, dataset, output, scratch)
    if not evaluate.is_comparison_current(context, run, evaluation):
        # Another version was released meanwhile. A second such case fails the run.
        _check_open(context, run)
        evaluation = evaluate.evaluate(context, run, order, base, dataset, output, scratch)
    return seal(context, run, order, output, trained, evaluation)


def _check_open(context: LedgerContext, run: Run) -> None:
    if context.closing.is_set():
        raise Unavailable(f"run {run.id}: expected to be evaluated, got the service's end", code="closing")


def _train(context: RunContext, run_id: str, order: Train, folders: RunFolders) -> dict[str, Any]:
    """Train to the last step. If a worker is killed, another one continues."""
    while True:
        try:
            return _train_on(context, run_id, order, folders)
        except ApplianceError as error:
            can_continue = can_continue_run(context.ledger.state.runs.get(run_id)) and not context.closing.is_set()
            if error.code not in ENDED or not can_continue:
                raise


def _train_on(context: RunContext, run_id: str, order: Train, folders: RunFolders) -> dict[str, Any]:
    """Train with one worker, from the last recorded training checkpoint.

    Raises:
        Tampered: The stored training checkpoint differs from the recorded one; raised before the worker starts.
    """
    state = context.ledger.state
    run = state.runs.require(run_id)
    check_run_valid(context, run)
    last = last_checkpoint(state, run)
    begin = b"" if last is None else context.checkpoints.read(last.digest)
    secret = _take_secret(context, run)
    read, write = (folders.base, folders.dataset), (folders.output, folders.checkpoints)
    with places.trainer(context, run, order.recipe, read, write) as started:
        _record_start(context, run, last, started, secret)
        task = {
            "recipe": order.recipe.model_dump(mode="json"),
            "seconds": 0.0 if last is None else float(last.seconds),
            **{name: str(path) for name, path in vars(folders).items()},
            **(private_members(context, run, secret) if secret else {}),
            **({"nodes": run.nodes} if run.nodes > 1 else {}),
        }
        recorder = steps.Recorder(context.steps, run_id, 0 if last is None else last.step, private=bool(secret))
        most = planning.max_checkpoint_bytes(context, order.recipe)
        keep = partial(checkpoints.take_frame, context, run_id, folders.checkpoints, most)
        result = carry_out(started, task, begin, on_frame=lambda frame: keep(recorder.take(frame)))
    weights, record = digest_file(folders.output / METHODS[order.recipe.method].weights), recorder.close(folders.output)
    make = partial(RunFinished, run=run_id, weights=weights, record=record)
    append_with_retry(context, checkpoints.read_body(make, result, RESULT))
    return {**result, "record": record}


def _take_secret(context: LedgerContext, run: Run) -> bytes:
    """Return the secret of a private run, or an empty value for other runs."""
    if run.privacy is None:
        return b""
    return begin_secret(context, run) if run.secret is None else read_secret(context, run)


def _record_start(
    context: WorkerContext, run: Run, last: TrainingCheckpoint | None, started: RunningWorker, secret: bytes
) -> None:
    probes, run_id = check_sandbox(started), run.id
    if places.has_begun_before(run, started):
        return
    missing = tuple(sorted(layer for layer, is_active in started.layers.items() if not is_active))
    sandbox: dict[str, Any] = {
        "run": run_id,
        "layers": started.layers,
        "accepted_missing": missing,
        "sandbox_probes": probes,
    }
    sandbox["job"] = places.job_of(started)
    if last is None:
        append_with_retry(context, RunStarted(secret=bind(run, secret) if secret else None, **sandbox))
    else:
        append_with_retry(context, RunResumed(step=last.step, checkpoint=last.digest, **sandbox))
    frame = {
        "frame": "started",
        "sandbox_probes": probes,
        "layers": started.layers,
        "step": 0 if last is None else last.step,
    }
    context.progress.publish(run.id, frame)


def _fail(context: WorkerContext, run_id: str, error: ApplianceError) -> None:
    """Record the failure of the run. A cancelled run has its entry already."""
    state = state_with_retry(context)
    run = state.runs.get(run_id)
    if run is not None and run.status == "cancelled":
        context.progress.end(run_id, error=WorkError(code="cancelled", message=f"run {run_id} was cancelled"))
        return
    if run is not None and not isinstance(error, Tampered):
        # After a revocation, the worker's end or a refusal is only a consequence. Changed bytes are reported as such.
        error = find_withdrawn_input(state, run) or error
    message = conceal(error.message)
    with suppress(Denied, Tampered):
        body = RunFailed(run=run_id, code=error.code, message=message.commitment)
        append_with_retry(context, body, disclosures=(message,))
    context.progress.fail(run_id, error.code, message)


def _check_ready(context: RunContext, order: Train, _: str) -> None:
    places.check_place(context, order.on, order.recipe, order.nodes)
    if order.on == "local":
        planning.check_order(context, order.recipe)
    check_labels(context, order.recipe.dataset, order.sets)
    check_local(context, order)


EFFECTS = (
    Effect(Train, ready=_check_ready, start=lambda context, _, digest: enqueue_ordered(context, digest)),
    Effect(AuthoriseRun, start=lambda context, order, _: enqueue(context, _find_place(context, order.run))),
    Effect(Cancel, start=lambda context, order, _: stop_run_workers(context, order.run)),
    Effect(Resume, start=lambda context, order, _: resume_ordered(context, order.run)),
)
