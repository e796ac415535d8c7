"""Where a run is trained, as its order says: by a worker on this machine, or by a job of the site's Slurm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from appliance.domain.core.records.runs import Job, Run
from appliance.domain.recipe.processes import misfits_machine
from appliance.domain.recipe.recipe import ResolvedRecipe
from appliance.domain.runs.clusters import account_of
from appliance.domain.runs.conditions import inputs_withdrawn
from appliance.errors import ApplianceError, BadInput, Unavailable, refuse
from appliance.formats.artifacts.manifest import MANIFEST_PATH, parse_manifest
from appliance.runners.running import Running
from appliance.runners.slurm.cluster import Cluster, describe_inputs
from appliance.runners.slurm.folder import Description, Input, attempts_of
from appliance.runners.slurm.records import JobRecord
from appliance.runners.slurm.worker import ClusterWorker
from appliance.workflows.core import rounds
from appliance.workflows.core.context import Context
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.disk_reserve import kept_free
from appliance.workflows.core.workers import worker

log = logging.getLogger("appliance")

TRAIN = "appliance.worker.train"
LOOK_S = 1.0
SWEEP_S = 300.0

Done = TypeVar("Done")
PutBack = Callable[[Context, str], None]
"""Puts this run into its queue again."""


def check_place(context: Context, on: str, recipe: ResolvedRecipe, nodes: int = 1) -> None:
    """BadInput where this appliance has no cluster, or the run's processes cannot share out its nodes."""
    if on == "here":
        return
    cluster = cluster_of(context)
    cards = 64  # Slurm knows how many a node has
    refuse("recipe", misfits_machine(recipe.processes // nodes, recipe.device, cluster.site.resources.cpus, cards))


def cluster_of(context: Context) -> Cluster:
    if context.cluster is None:
        raise BadInput("order, on: expected `here`, since this appliance has no Slurm (set slurm_folder), got `slurm`")
    return context.cluster


@contextmanager
def trainer(
    context: Context, run: Run, recipe: ResolvedRecipe, read: tuple[Path, ...], write: tuple[Path, ...]
) -> Iterator[Running]:
    """A started worker that trains the run, findable by the run's name while it lives."""
    gpu = recipe.device == "cuda"
    if run.on == "here":
        with worker(context, run.id, TRAIN, read=read, write=write, gpu=gpu) as started:
            yield started
        return
    stop = partial(_is_stopped, context, run.id)
    with _open(context, run, recipe, read, write, stop) as found, kept_free(found, write[0], engine=False):
        context.workers[run.id] = found
        try:
            if stop():
                # Whoever stopped the run before this line found no worker to end.
                raise Unavailable(f"run {run.id}: expected it to go on, got its end or the service's", code="closing")
            yield found
        finally:
            if context.workers.get(run.id) is found:
                del context.workers[run.id]


def begun_before(run: Run, started: Running) -> bool:
    """Whether its start is recorded already, by a service that ended since; the task may still have to be given."""
    return isinstance(started, ClusterWorker) and run.job is not None and run.job == job_of(started)


def job_of(started: Running) -> Job | None:
    """Where a worker of the cluster was started; None for one on this machine."""
    if not isinstance(started, ClusterWorker):
        return None
    return Job(id=started.pid, restart=started.attempt or 0, nodes=started.nodes)


def _open(
    context: Context,
    run: Run,
    recipe: ResolvedRecipe,
    read: tuple[Path, ...],
    write: tuple[Path, ...],
    stop: Callable[[], bool],
) -> ClusterWorker:
    """The next start of the run's job: of the one that exists, or of a new one."""
    cluster = cluster_of(context)
    if run.status == "trained":
        # What it left is not taken twice: its last step is trained again, as here.
        cluster.release(run.id)
    record = cluster.find_job(run.id, stop)
    if record is not None and not _has_more(cluster, record, stop):
        cluster.release(run.id)
        record = None
    if record is None:
        described = _describe(context, run, recipe, read, len(write))
        record = cluster.submit(described, read, account_of(context.ledger.state, run.ordered_by), stop)
    told = partial(_tell, context, run.id)
    told(f"job {record.job} is submitted")
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
        told=told,
    )


def _is_stopped(context: Context, run_id: str) -> bool:
    state = context.ledger.state
    run = state.runs.get(run_id)
    return (
        context.closing.is_set() or run is None or run.status == "cancelled" or inputs_withdrawn(state, run) is not None
    )


def _tell(context: Context, run_id: str, text: str) -> None:
    context.progress.publish(run_id, {"frame": "waiting", "on": "slurm", "state": text})


def _has_more(cluster: Cluster, record: JobRecord, stop: Callable[[], bool]) -> bool:
    """Whether the job will start again, or a start of it has not been read to its end."""
    if any(number > record.done for number in attempts_of(Path(record.folder))):
        return True
    job = cluster.ask(lambda: cluster.look(record), stop)
    return job is not None and not job.over


def _describe(context: Context, run: Run, recipe: ResolvedRecipe, read: tuple[Path, ...], writes: int) -> Description:
    cluster = cluster_of(context)
    return Description(
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


def _describe_input(context: Context, path: Path) -> Input:
    digest = f"sha256:{path.name}"
    data = context.artifacts.read(digest, MANIFEST_PATH)
    files = [(file.path, file.size, file.digest) for file in parse_manifest(data).files]
    return describe_inputs(path.name, [*files, (MANIFEST_PATH, len(data), digest)])


def release(context: Context, run_id: str) -> None:
    """Nobody waits for the run's job any more: it is ended, and what crossed is removed. Where slurmctld does not
    answer the next sweep does it."""
    if context.cluster is None:
        return
    try:
        context.cluster.release(run_id)
    except (ApplianceError, OSError) as error:
        log.critical("ALARM: the job of run %s could not be ended; it is tried again: %s", run_id, error)


def start(context: Context, put_back: PutBack) -> None:
    """Sweeps every few minutes, where the queue of runs is this process's."""
    if context.cluster is not None:
        rounds.start(context, "jobs of Slurm", SWEEP_S, lambda: sweep(context, put_back) if context.runs_here else None)


def sweep(context: Context, put_back: PutBack) -> None:
    """The same of every run that is not under way, such as one that was cancelled while slurmctld was gone. What was
    resumed meanwhile may have missed its turn: it is put back."""
    if context.cluster is None:
        return
    for key in context.cluster.list_keys():
        # A run that goes on while this looks at it keeps its job.
        if _is_under_way(context, key) or not context.in_hand.take(key):
            continue
        try:
            if not _is_under_way(context, key):
                release(context, key)
        finally:
            context.in_hand.leave(key)
        if _is_under_way(context, key):
            put_back(context, key)
    try:
        context.cluster.clear()
    except ApplianceError as error:
        log.critical("ALARM: the shared folder of Slurm could not be cleared; it is tried again: %s", error.message)


def _is_under_way(context: Context, key: str) -> bool:
    run = context.ledger.state.runs.get(key)
    return run is not None and run.on == "slurm" and run.status in ("queued", "running", "trained")


def in_turn(context: Context, run: Run, act: Callable[[], Done]) -> Done:
    """Does what this machine computes of a run when its turn comes: one device, one queue. At once for a run that has
    its turn already. Unavailable where the service ends meanwhile."""
    if run.on == "here":
        return act()
    future: Future[Done] = Future()

    def carry() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with contain_defects(f"run {run.id}"):
                future.set_result(act())
        except ApplianceError as error:
            future.set_exception(error)

    context.runs.put(carry)
    while not wait((future,), LOOK_S).done:
        # What has begun is waited for: it uses folders that the caller removes.
        if context.closing.is_set() and future.cancel():
            raise Unavailable(f"run {run.id}: expected its turn to be evaluated, got the service's end", code="closing")
    return future.result()
