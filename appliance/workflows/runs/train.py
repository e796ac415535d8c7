"""A run, from the queue to a sealed adapter: intent before each act, outcome after it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.core.records.runs import Run, TrainingCheckpoint
from appliance.domain.core.signatures import Accepted
from appliance.domain.recipe.methods import METHODS
from appliance.domain.rulebook.registry import ORDERS
from appliance.domain.runs.authorisation import AuthoriseRun
from appliance.domain.runs.cancellation import Cancel
from appliance.domain.runs.checkpoints import last_checkpoint
from appliance.domain.runs.conditions import MOST_RESUMES, inputs_withdrawn, next_queued
from appliance.domain.runs.resumption import Resume, RunResumed
from appliance.domain.runs.training import RunFailed, RunFinished, RunStarted, Train
from appliance.errors import ApplianceError, Denied, NotFound, Tampered, Unavailable
from appliance.formats.core.digest import digest_file
from appliance.runners.running import Running
from appliance.workflows.core.context import Context
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.effects import Effect
from appliance.workflows.core.halt import check_standing, halt
from appliance.workflows.core.jobs import Jobs
from appliance.workflows.core.record import conceal
from appliance.workflows.core.retry import append_with_retry, state_with_retry
from appliance.workflows.core.workers import carry_out, check_walls
from appliance.workflows.data.imports import checked_base
from appliance.workflows.data.teaching import check_labels
from appliance.workflows.evaluation.local_sets import check_local
from appliance.workflows.runs import checkpoints, evaluate, places, planning, privacy, steps
from appliance.workflows.runs.seal import seal

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
ENDED = ("worker-ended", "truncated-frame")
"""A worker that was killed, between two frames or within one. What it says itself is no accident."""


@dataclass(frozen=True)
class Places:
    """The folders of a run: two to read, two to write."""

    base: Path
    dataset: Path
    output: Path
    checkpoints: Path


def go_on(context: Context, run_id: str) -> None:
    """Carries on with a run that was cut off, before those that wait."""

    def carry() -> None:
        carry_through(context, run_id)

    if context.runs_here:
        _queue(context, _place_of(context, run_id)).put(carry)


def put_back(context: Context, run_id: str) -> None:
    """A run whose turn may have come while another thread had it in hand gets one more."""
    run = context.ledger.state.runs.get(run_id)
    if run is not None and run.status == "queued":
        enqueue(context, run.on)
    elif can_go_on(run):
        go_on(context, run_id)


def _place_of(context: Context, run_id: str) -> str:
    run = context.ledger.state.runs.get(run_id)
    return "here" if run is None else run.on


def enqueue(context: Context, on: str = "here") -> None:
    """One run more is carried through there: whichever waits longest by the ledger when its turn comes. Where another
    process has the queue, that process sees the entry."""
    if context.runs_here:
        _queue(context, on).put(partial(_carry_next, context, on))


def _queue(context: Context, on: str) -> Jobs:
    return context.runs if on == "here" else context.cluster_runs


def _carry_next(context: Context, on: str) -> None:
    while (run := next_queued(context.ledger.state, on, context.in_hand)) is not None:
        if carry_through(context, run.id):
            return


def enqueue_ordered(context: Context, order_digest: str) -> None:
    """... the run that this order, recorded now, asked for."""
    for run in context.ledger.state.runs.values():
        if run.order == order_digest and run.status == "queued":
            enqueue(context, run.on)


def resume_ordered(context: Context, run_id: str) -> None:
    """... a run that failed before; followers see it continue."""
    context.progress.reopen(run_id)
    enqueue(context, _place_of(context, run_id))


def _cancel(context: Context, accepted: Accepted) -> None:
    if isinstance(accepted.order, Cancel):
        halt(context, accepted.order.run)


def _authorise(context: Context, accepted: Accepted) -> None:
    if isinstance(accepted.order, AuthoriseRun):
        enqueue(context, _place_of(context, accepted.order.run))


def _resume(context: Context, accepted: Accepted) -> None:
    if isinstance(accepted.order, Resume):
        resume_ordered(context, accepted.order.run)


def can_go_on(run: Run | None) -> bool:
    """Whether a run that was cut off is resumed by itself."""
    if run is None or run.status not in ("running", "trained"):
        return False
    if run.on == "slurm":
        # A job is found again, or begins again where it was preempted before its first training checkpoint.
        return run.resumes < MOST_RESUMES or run.step > run.began
    return run.step > 0 and run.resumes < MOST_RESUMES


def train_order(context: Context, run: Run, *, replayed: bool = False) -> Train:
    """The order of a run, read again from the ledger; NotAuthenticated where its key does not count there any more.

    A replay does not check that: revoking one's own key must not keep an auditor from checking a run.
    """
    state, document = context.ledger.state, context.ledger.documents_of(run.index)["order"]
    accepted = ORDERS.read_recorded(state, document) if replayed else ORDERS.read_logged(state, document, run.index)
    order = accepted.order
    if not isinstance(order, Train):
        raise NotFound(f"run {run.id}: expected an order to train, got {order.verb}")
    return order


def carry_through(context: Context, run_id: str) -> bool:
    """Runs to an outcome in any case: sealed, failed or cancelled, and recorded as such.

    A service that ends leaves a run that can go on to its next start. False where another thread has the run in hand.
    """
    run = context.ledger.state.runs.get(run_id)
    if run is None or context.closing.is_set() or not (run.status == "queued" or can_go_on(run)):
        return True
    if not context.in_hand.take(run_id):
        return False
    try:
        _carry_to_end(context, run)
    finally:
        context.in_hand.leave(run_id)
    if _was_resumed(context, run):
        put_back(context, run_id)
    return True


def _was_resumed(context: Context, run: Run) -> bool:
    """Whether a person resumed it before it was out of hand: its job may still have had to be ended."""
    now = context.ledger.state.runs.get(run.id)
    return now is not None and now.status == "queued" and now.queued != run.queued


def _carry_to_end(context: Context, run: Run) -> None:
    run_id = run.id
    try:
        with contain_defects(f"run {run_id}"):
            adapter = _carry_through(context, run)
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
    """Whether the next start goes on with a run that the service's end cut off here; a job of Slurm may still wait."""
    return can_go_on(run) or (run is not None and run.on == "slurm" and run.status == "queued")


def _carry_through(context: Context, run: Run) -> str:
    check_standing(context, run)
    order = train_order(context, run)
    places.check_place(context, run.on, order.recipe, run.nodes)
    if run.on == "here":
        planning.check_start(context, order.recipe)
    base = checked_base(context, run.base)
    context.artifacts.check(run.dataset_digest)
    dataset = context.artifacts.path(run.dataset_digest)
    with ExitStack() as stack:
        output, states, scratch = (stack.enter_context(context.artifacts.staging()) for _ in range(3))
        trained = _train(context, run.id, order, Places(base, dataset, output, states))
        # What crossed to the cluster is not left there while the run waits for its evaluation.
        places.release(context, run.id)
        judge = partial(_judge, context, run, order, Places(base, dataset, output, scratch), trained)
        return places.in_turn(context, run, judge)


def _judge(context: Context, run: Run, order: Train, folders: Places, trained: dict[str, Any]) -> str:
    """Evaluates and seals on this machine, wherever the run was trained: an adapter is served on the kind of machine
    that evaluated it. Unavailable where the service ends, whose workers were ended before."""
    _check_open(context, run)
    base, dataset, output, scratch = vars(folders).values()
    evaluation = evaluate.evaluate(context, run, order, base, dataset, output, scratch)
    if not evaluate.still_compares(context, run, evaluation):
        # Another version was released meanwhile. A second such case fails the run.
        _check_open(context, run)
        evaluation = evaluate.evaluate(context, run, order, base, dataset, output, scratch)
    return seal(context, run, order, output, trained, evaluation)


def _check_open(context: Context, run: Run) -> None:
    if context.closing.is_set():
        raise Unavailable(f"run {run.id}: expected to be evaluated, got the service's end", code="closing")


def _train(context: Context, run_id: str, order: Train, folders: Places) -> dict[str, Any]:
    """To the last step, by as many workers as it takes: one that was killed is followed by another."""
    while True:
        try:
            return _train_on(context, run_id, order, folders)
        except ApplianceError as error:
            going = can_go_on(context.ledger.state.runs.get(run_id)) and not context.closing.is_set()
            if error.code not in ENDED or not going:
                raise


def _train_on(context: Context, run_id: str, order: Train, folders: Places) -> dict[str, Any]:
    """By one worker, from the last recorded training checkpoint: Tampered before it starts where that is another."""
    state = context.ledger.state
    run = state.runs.get(run_id)
    if run is None:
        raise NotFound(f"run: expected a known one, got {run_id}")
    check_standing(context, run)
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
            **(privacy.private_members(context, run, secret) if secret else {}),
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


def _take_secret(context: Context, run: Run) -> bytes:
    """Of a private run; none of any other."""
    if run.privacy is None:
        return b""
    return privacy.begin_secret(context, run) if run.secret is None else privacy.read_secret(context, run)


def _record_start(context: Context, run: Run, last: TrainingCheckpoint | None, started: Running, secret: bytes) -> None:
    walls, run_id = check_walls(started), run.id
    if places.begun_before(run, started):
        return
    missing = tuple(sorted(layer for layer, stands in started.layers.items() if not stands))
    sandbox: dict[str, Any] = {"run": run_id, "layers": started.layers, "accepted_missing": missing, "walls": walls}
    sandbox["job"] = places.job_of(started)
    if last is None:
        append_with_retry(context, RunStarted(secret=privacy.bind(run, secret) if secret else None, **sandbox))
    else:
        append_with_retry(context, RunResumed(step=last.step, checkpoint=last.digest, **sandbox))
    frame = {"frame": "started", "walls": walls, "layers": started.layers, "step": 0 if last is None else last.step}
    context.progress.publish(run.id, frame)


def _fail(context: Context, run_id: str, error: ApplianceError) -> None:
    """The run's failure as an entry; a cancelled run has its entry already."""
    state = state_with_retry(context)
    run = state.runs.get(run_id)
    if run is not None and run.status == "cancelled":
        context.progress.end(run_id, error={"code": "cancelled", "message": f"run {run_id} was cancelled"})
        return
    if run is not None and not isinstance(error, Tampered):
        # Its worker's end, or what a rule refused, only follows from a revocation. Changed bytes say more.
        error = inputs_withdrawn(state, run) or error
    message = conceal(error.message)
    with suppress(Denied, Tampered):
        body = RunFailed(run=run_id, code=error.code, message=message.commitment)
        append_with_retry(context, body, disclosures=(message,))
    context.progress.fail(run_id, error.code, message)


def _check_ready(context: Context, order: Train) -> None:
    places.check_place(context, order.on, order.recipe, order.nodes)
    if order.on == "here":
        planning.check_order(context, order.recipe)
    check_labels(context, order.recipe.dataset, order.sets)
    check_local(context, order)


EFFECTS = (
    Effect(
        Train,
        ready=_check_ready,
        start=lambda context, accepted: enqueue_ordered(context, accepted.digest),
    ),
    Effect(AuthoriseRun, start=_authorise),
    Effect(Cancel, start=_cancel),
    Effect(Resume, start=_resume),
)
