"""What every entry of a run is checked against: its status, its inputs, and its worker's walls."""

from __future__ import annotations

from collections.abc import Container

from appliance.domain.core.case import Case, Changes, check_walls
from appliance.domain.core.event import Event
from appliance.domain.core.names import RunId
from appliance.domain.core.records.runs import Job, Run
from appliance.domain.core.state import State
from appliance.domain.data.standing import inputs_stand, sets_stand
from appliance.errors import Denied

UNDER_WAY = ("waiting", "queued", "running", "trained")
"""A run that has not ended."""
MOST_RESUMES = 3
"""How often a run is resumed without an order. After that it has failed, until an order resumes it."""


class WorkerStarted(Event):
    """A training worker starts. `walls`: what its own probes found; `layers`: which layers of the sandbox are in place;
    `job`: on Slurm, where."""

    run: RunId
    layers: dict[str, bool]
    accepted_missing: tuple[str, ...]
    walls: dict[str, str]
    job: Job | None

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


def next_queued(state: State, on: str = "here", but: Container[str] = ()) -> Run | None:
    """Whose turn it is in that place: the one that the earliest entry put into the queue."""
    waiting = [run for run in state.runs.values() if (run.status, run.on) == ("queued", on) and run.id not in but]
    return min(waiting, key=lambda run: run.queued, default=None)


def take_run(case: Case, name: str, *statuses: str) -> Run:
    run = case.state.runs.get(name)
    if run is None or run.status not in statuses:
        got = "none" if run is None else run.status
        raise Denied(f"entry {case.entry.index}: run {name}: expected one that is {' or '.join(statuses)}, got {got}")
    return run


def move(state: State, run: Run, status: str) -> Changes:
    return [(state.runs, run.id, run.model_copy(update={"status": status}))]


def inputs_withdrawn(state: State, run: Run) -> Denied | None:
    """Why nothing of the run is trained or sealed any more; the code says whether its base, its dataset
    or a validation set was revoked."""
    reasons = inputs_stand(state, run) + sets_stand(state, run.sets)
    if not reasons:
        return None
    sets = [state.validation_sets.get(bound.validation_set) for bound in run.sets]
    rows = (state.bases.get(run.base), state.datasets.get(run.dataset), *sets)
    revoked = any(row is not None and row.revoked is not None for row in rows)
    return Denied(f"run {run.id}", reasons=tuple(reasons), code="revoked" if revoked else "quarantined")


def check_inputs(case: Case, run: Run) -> None:
    """After its base, its dataset or a validation set was withdrawn, a run has no entry but its end."""
    error = inputs_withdrawn(case.state, run)
    if error is not None:
        raise error.within(f"entry {case.entry.index} ({case.entry.type})")


def check_sandbox(case: Case, body: WorkerStarted) -> None:
    check_walls(case, body.walls)
    missing = sorted(layer for layer, stands in body.layers.items() if not stands)
    accepted = case.state.parameters.accepted_missing_layers
    case.require(set(missing) <= set(accepted), "layers", f"all but {list(accepted)}", f"without {missing}")
    case.require(sorted(body.accepted_missing) == missing, "accepted_missing", missing, body.accepted_missing)


def begin(case: Case, run: Run, body: WorkerStarted) -> Changes:
    """Another worker of the run, where its order has it trained; by itself only so often. On a cluster, where a job
    can be preempted many times, a worker that got further than the one before it counts as the first."""
    on = "here" if body.job is None else "slurm"
    case.require(on == run.on, "job", f"a worker on {run.on}, as it was ordered", f"one on {on}")
    case.require(body.job is None or body.job != run.job, "job", "another start than the last", body.job)
    nodes = 1 if body.job is None else len(set(body.job.nodes))
    case.require(nodes == run.nodes, "job, nodes", f"{run.nodes}, as it was ordered", nodes)
    further = body.job is not None and run.step > run.began
    resumes = (0 if further else run.resumes) + (run.status != "queued")
    case.require(resumes <= MOST_RESUMES, "resumes", f"at most {MOST_RESUMES}", resumes)
    return move(case.state, run.model_copy(update={"resumes": resumes, "job": body.job, "began": run.step}), "running")
