"""The place of a run's training, as its order says: a worker on this machine, or a job of the site's Slurm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from appliance.api.runs import WorkError
from appliance.domain.core.records.runs import Run, SlurmJobStart
from appliance.domain.core.state import State
from appliance.domain.recipe.methods import list_machine_problems
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.runs.conditions import UNDER_WAY, account_of, find_withdrawn_input
from appliance.errors import ApplianceError, BadInput, Unavailable, refuse
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.sandbox.host import RunningWorker
from appliance.slurm.cluster import Cluster, describe_inputs
from appliance.slurm.folder import Input, JobDescription, JobRecord, attempts_of, job_folder
from appliance.slurm.worker import ClusterWorker
from appliance.workflows.core import retry
from appliance.workflows.core.context import LedgerContext, RunContext, WorkerContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.workers import keep_disk_free, worker
from appliance.workflows.runs.steps import earlier_frames

log = logging.getLogger("appliance")

TRAIN = "appliance.worker.train"
LOOK_S = 1.0
"""Seconds between two checks for the service's end while a run waits for its turn."""
SWEEP_S = 300.0
"""Seconds between two sweeps of the cluster's jobs."""

Done = TypeVar("Done")
RequeueRun = Callable[[RunContext, str], None]
"""Function that requeues a run."""


def check_place(context: RunContext, on: str, recipe: ResolvedRecipe, nodes: int = 1) -> None:
    """Check that the run can be trained at the ordered place.

    Raises:
        BadInput: This appliance has no cluster, or the run's processes cannot be divided among its nodes.
    """
    if on == "local":
        return
    cluster = cluster_of(context)
    cards = 64  # Slurm checks the number of cards of a node
    refuse(
        "recipe", list_machine_problems(recipe.processes // nodes, recipe.device, cluster.site.resources.cpus, cards)
    )


def cluster_of(context: RunContext) -> Cluster:
    """Return the cluster.

    Raises:
        BadInput: This appliance has no Slurm.
    """
    if context.cluster is None:
        raise BadInput("trains on: expected local, since this appliance has no Slurm (set slurm_folder), got slurm")
    return context.cluster


@contextmanager
def trainer(
    context: RunContext, run: Run, recipe: ResolvedRecipe, read: tuple[Path, ...], write: tuple[Path, ...]
) -> Iterator[RunningWorker]:
    """Start a worker that trains the run, and register it under the run's name while it runs."""
    gpu = recipe.device == "cuda"
    if run.on == "local":
        with worker(context, run.id, TRAIN, read=read, write=write, gpu=gpu) as started:
            yield started
        return
    stop = partial(_is_stopped, context, run.id)
    with (
        _open(context, run, recipe, read, write, stop) as found,
        keep_disk_free(found, write[0], context.reserve, engine=False),
    ):
        context.workers[run.id] = found
        try:
            if stop():
                # A stop from before the registration found no worker to end.
                raise Unavailable(
                    f"run {run.id}: expected it to continue, got its end or the service's", code="closing"
                )
            yield found
        finally:
            if context.workers.get(run.id) is found:
                del context.workers[run.id]


def has_begun_before(run: Run, started: RunningWorker) -> bool:
    """Return True if a service that has ended since recorded this start already. The worker may still need its task."""
    return isinstance(started, ClusterWorker) and run.job is not None and run.job == job_of(started)


def job_of(started: RunningWorker) -> SlurmJobStart | None:
    """Return the Slurm job of a worker, or None for a worker on this machine."""
    if not isinstance(started, ClusterWorker):
        return None
    return SlurmJobStart(id=started.pid, restart=started.attempt or 0, nodes=started.nodes)


def _open(
    context: RunContext,
    run: Run,
    recipe: ResolvedRecipe,
    read: tuple[Path, ...],
    write: tuple[Path, ...],
    stop: Callable[[], bool],
) -> ClusterWorker:
    """Return the next start of the run's job, which may be an existing job or a new one."""
    cluster = cluster_of(context)
    if run.status == "trained":
        # Its output cannot be fetched twice, so its last step is trained again, as on this machine.
        cluster.release(run.id)
    record = cluster.find_job(run.id, stop)
    if record is not None and not _has_more(cluster, record, stop):
        cluster.release(run.id)
        record = None
    if record is None:
        described = _describe(context, run, recipe, read, len(write))
        record = cluster.submit(described, read, account_of(context.ledger.state, run.ordered_by), stop)
    publish_state = partial(_publish_state, context, run.id)
    publish_state(f"job {record.job} is submitted")
    name = f"{run.id}-train.log"
    return ClusterWorker(
        cluster,
        record,
        code=context.code.digest,
        read=read,
        write=write,
        log=context.logs / name,
        skip=run.step,
        nodes=run.nodes,
        ranks_here=recipe.processes // run.nodes,
        report_state=publish_state,
    )


def _is_stopped(context: LedgerContext, run_id: str) -> bool:
    state = context.ledger.state
    run = state.runs.get(run_id)
    return (
        context.closing.is_set()
        or run is None
        or run.status == "cancelled"
        or find_withdrawn_input(state, run) is not None
    )


def _publish_state(context: WorkerContext, run_id: str, text: str) -> None:
    context.progress.publish(run_id, {"frame": "waiting", "on": "slurm", "state": text})


def _has_more(cluster: Cluster, record: JobRecord, stop: Callable[[], bool]) -> bool:
    """Return True if the job will start again, or if one of its starts was not yet read to its end."""
    if any(number > record.done for number in attempts_of(job_folder(record.folder))):
        return True
    job = cluster.ask(lambda: cluster.look(record), stop)
    return job is not None and not job.over


def _describe(
    context: RunContext, run: Run, recipe: ResolvedRecipe, read: tuple[Path, ...], writes: int
) -> JobDescription:
    cluster = cluster_of(context)
    return JobDescription(
        key=run.id,
        module=TRAIN,
        code=context.code.digest,
        gpu=recipe.device == "cuda",
        accepted_missing=tuple(context.ledger.state.parameters.accepted_missing_layers),
        inputs=tuple(_describe_input(context, path) for path in read),
        writes=writes,
        scratch=cluster.site.scratch,
        nodes=run.nodes,
        ranks_here=recipe.processes // run.nodes,
        commands=str(cluster.commands.folder),
    )


def _describe_input(context: LedgerContext, path: Path) -> Input:
    digest = f"sha256:{path.name}"
    data = context.artifacts.read(digest, MANIFEST_PATH)
    files = [(file.path, file.size, file.digest) for file in parse_manifest(data).files]
    return describe_inputs(path.name, [*files, (MANIFEST_PATH, len(data), digest)])


def release(context: RunContext, run_id: str) -> None:
    """End the run's job and remove the files that were copied to the cluster.

    If slurmctld does not respond, the next sweep tries again.
    """
    if context.cluster is None:
        return
    try:
        context.cluster.release(run_id)
    except (ApplianceError, OSError) as error:
        log.critical("ALARM: the job of run %s could not be ended; it is tried again: %s", run_id, error)


def start(context: RunContext, requeue: RequeueRun) -> None:
    """Start the sweep of the cluster's jobs, at once and every few minutes.

    Only the process that has the queue of runs sweeps.
    """
    if context.cluster is None:
        return

    def work() -> None:
        if context.runs_here:
            sweep(context, requeue)

    retry.start(context, "jobs of Slurm", SWEEP_S, work, at_once=True)


def sweep(context: RunContext, requeue: RequeueRun) -> None:
    """Release the jobs of all runs that are not in progress, such as those cancelled while slurmctld did not respond.

    A run that was resumed meanwhile may have missed its turn, so it is requeued.
    """
    if context.cluster is None:
        return
    for key in context.cluster.list_keys():
        # A run that is in progress, or that another thread works on, keeps its job.
        if _is_under_way(context, key) or not context.items_in_progress.take(key):
            continue
        try:
            if not _is_under_way(context, key):
                release(context, key)
        finally:
            context.items_in_progress.leave(key)
        if _is_under_way(context, key):
            requeue(context, key)
    try:
        context.cluster.clear()
    except ApplianceError as error:
        log.critical("ALARM: the shared folder of Slurm could not be cleared; it is tried again: %s", error.message)


def _is_under_way(context: LedgerContext, key: str) -> bool:
    run = context.ledger.state.runs.get(key)
    return run is not None and run.on == "slurm" and run.status in ("queued", "running", "trained")


def compute_in_turn(context: RunContext, run: Run, act: Callable[[], Done]) -> Done:
    """Compute what this machine computes for a run when the run's turn comes, because there is one device and one
    queue.

    A run on this machine has its turn already, so `act` runs at once.

    Raises:
        Unavailable: With the code `closing`, if the service ends before the turn comes.
    """
    if run.on == "local":
        return act()
    future: Future[Done] = Future()

    def compute() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with contain_defects(f"run {run.id}"):
                future.set_result(act())
        except ApplianceError as error:
            future.set_exception(error)

    context.runs.put(compute)
    while not wait((future,), LOOK_S).done:
        # A computation that has begun is awaited, because it uses folders that the caller removes.
        if context.closing.is_set() and future.cancel():
            raise Unavailable(f"run {run.id}: expected its turn to be evaluated, got the service's end", code="closing")
    return future.result()


def publish_runs(context: RunContext) -> None:
    """Publish the progress of the followed runs and replays that another process works on."""
    if context.runs_here:
        return
    state = context.ledger.state
    for key in context.progress.list_open():
        if (run := state.runs.get(key)) is not None:
            _publish_to_followers(context, state, run)
        elif (replay := state.replays.get(key)) is not None and replay.status != "requested":
            ended = WorkError(code="failed", message="the replay failed; its entry says why")
            failed = replay.status == "failed"
            context.progress.end(
                key, result=None if failed else {"verdict": replay.verdict}, error=ended if failed else None
            )


def _publish_to_followers(context: RunContext, state: State, run: Run) -> None:
    known = context.progress.read(run.id).next
    for frame in earlier_frames(state, context.artifacts, context.steps, run.id)[known:]:
        context.progress.publish(run.id, frame)
    if run.status in UNDER_WAY:
        return
    adapter = next((name for name, adapter in state.adapters.items() if adapter.run == run.id), None)
    if adapter is not None:
        context.progress.end(run.id, result={"adapter": adapter})
    else:
        message = f"run {run.id} has ended: {run.status}; its last entry says why"
        context.progress.end(run.id, error=WorkError(code=run.status, message=message))
