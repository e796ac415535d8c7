"""Checks that all entries of a run have in common: its status, inputs, sandbox and place."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pydantic import Field

from appliance.domain.core.action import EventRule
from appliance.domain.core.case import Case, Changes, check_sandbox
from appliance.domain.core.entry import Event
from appliance.domain.core.facts import Entity, PrincipalEntity
from appliance.domain.core.names import Decimal, Digest, RunId
from appliance.domain.core.records.runs import Run, SlurmJobStart, TrainingCheckpoint, checkpoint_key
from appliance.domain.core.roles import Reasons
from appliance.domain.core.state import State
from appliance.domain.data.imports import BaseEntity, DatasetEntity
from appliance.domain.data.validity import refuse_invalid_inputs, refuse_invalid_sets
from appliance.errors import Denied, RefusalCode, Rejected

SLURM_ACCOUNT_MISSING = RefusalCode(
    "slurm-account-missing",
    "policy",
    "Policy (slurm_accounts) gives {id} no Slurm account.",
    "Train on the service's machine, or have the policy give you an account.",
)
PRIVATE_RUN_ON_SLURM = RefusalCode(
    "private-run-on-slurm",
    "rule",
    "A run with privacy stays on this machine, because its secret does.",
    "Train on the service's machine: appliance run start --on local.",
)
ONE_NODE = RefusalCode(
    "one-node", "order", "A run on this machine has one node. The order asks for {nodes}.", "Order one node."
)
NODES_DO_NOT_DIVIDE = RefusalCode(
    "nodes-do-not-divide",
    "order",
    "The recipe's {processes} processes cannot be divided equally among {nodes} nodes.",
    "Order a number of nodes that divides {processes}.",
)
RUN_UNKNOWN = RefusalCode("run-unknown", "order", "There is no run {run}.", "Choose one of: appliance run list.")


UNDER_WAY = ("waiting", "queued", "running", "trained")
"""Statuses of a run that has not ended."""
MOST_RESUMES = 3
"""Number of resumes without an order. At the next interruption the run fails until an order resumes it."""


class WorkerStarted(Event):
    """Base class of the entries that a training worker started.

    `sandbox_probes`: results of the worker's escape attempts. `layers`: whether each layer of the sandbox is in place.
    `job`: the Slurm job, if the run is on Slurm.
    """

    run: RunId
    layers: dict[str, bool]
    accepted_missing: tuple[str, ...]
    sandbox_probes: dict[str, str]
    job: SlurmJobStart | None

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


def find_next_run(state: State, on: str = "local", but: Container[str] = ()) -> Run | None:
    """Return the run that is next in this place, the one that was queued first, without those named in `but`."""
    waiting = [run for run in state.runs.values() if (run.status, run.on) == ("queued", on) and run.id not in but]
    return min(waiting, key=lambda run: run.queued, default=None)


def find_run(state: State, name: str) -> Run | Reasons:
    """Return the run of this name, or the refusal reason if there is none."""
    run = state.runs.get(name)
    return [RUN_UNKNOWN(run=Rejected(name))] if run is None else run


def take_run(case: Case, name: str, *statuses: str) -> Run:
    """Return the run of this name.

    Raises:
        Denied: there is no such run, or its status is not one of `statuses`.
    """
    run = case.state.runs.get(name)
    if run is None or run.status not in statuses:
        got = "none" if run is None else run.status
        raise Denied(f"entry {case.entry.index}: run {name}: expected one that is {' or '.join(statuses)}, got {got}")
    return run


def move(state: State, run: Run, status: str) -> Changes:
    """Return the change that gives the run this status."""
    return [(state.runs, run.id, run.model_copy(update={"status": status}))]


def find_withdrawn_input(state: State, run: Run) -> Denied | None:
    """Return the error if the run's base, dataset or a validation set was withdrawn, else None.

    A run with withdrawn inputs is neither trained nor sealed. The error's code says whether an input was revoked or
    quarantined.
    """
    reasons = refuse_invalid_inputs(state, run) + refuse_invalid_sets(state, run.sets)
    if not reasons:
        return None
    sets = [state.validation_sets.get(bound.validation_set) for bound in run.sets]
    rows = (state.bases.get(run.base), state.datasets.get(run.dataset), *sets)
    revoked = any(row is not None and row.revoked is not None for row in rows)
    return Denied(f"run {run.id}", refusals=reasons, code="revoked" if revoked else "quarantined")


def check_inputs(case: Case, run: Run) -> None:
    """Check that no input of the run was withdrawn. Afterwards the run has only the entry of its end.

    Raises:
        Denied: an input was withdrawn.
    """
    error = find_withdrawn_input(case.state, run)
    if error is not None:
        raise error.within(f"entry {case.entry.index} ({case.entry.type})")


def check_worker_sandbox(case: Case, body: WorkerStarted) -> None:
    """Check the results of the escape attempts, and that only layers are missing that policy accepts as missing."""
    check_sandbox(case, body.sandbox_probes)
    missing = sorted(layer for layer, is_active in body.layers.items() if not is_active)
    accepted = case.state.parameters.accepted_missing_layers
    case.require(set(missing) <= set(accepted), "layers", f"all but {list(accepted)}", f"without {missing}")
    case.require(sorted(body.accepted_missing) == missing, "accepted_missing", missing, body.accepted_missing)


def begin(case: Case, run: Run, body: WorkerStarted) -> Changes:
    """Record another worker of the run, in the place that the run's order names.

    A run is resumed without an order `MOST_RESUMES` times at most. On Slurm, where jobs can be preempted often, a
    worker that got further than the one before it resets this count.
    """
    place = "local" if body.job is None else "slurm"
    case.require(place == run.on, "job", f"a worker on {run.on}, as it was ordered", f"one on {place}")
    case.require(body.job is None or body.job != run.job, "job", "another start than the last", body.job)
    nodes = 1 if body.job is None else len(set(body.job.nodes))
    case.require(nodes == run.nodes, "job, nodes", f"{run.nodes}, as it was ordered", nodes)
    got_further = body.job is not None and run.step > run.began
    resumes = (0 if got_further else run.resumes) + (run.status != "queued")
    case.require(resumes <= MOST_RESUMES, "resumes", f"at most {MOST_RESUMES}", resumes)
    changes = {"resumes": resumes, "job": body.job, "began": run.step, "started": True}
    return move(case.state, run.model_copy(update=changes), "running")


class RunCheckpointed(Event):
    """The entry of a training checkpoint, with the digest of its bytes.

    `machine`: the facts of the machine that the bits depend on, beside recipe and data.
    """

    type = "run.checkpointed"
    run: RunId
    step: int = Field(ge=1)
    checkpoint: Digest
    seconds: Decimal
    machine: dict[str, Any]

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


def apply_run_checkpoint(case: Case) -> Changes:
    """Record a training checkpoint."""
    body = case.of(RunCheckpointed)
    run = take_run(case, body.run, "running")
    check_inputs(case, run)
    case.require(body.step > run.step, "step", f"one after {run.step}", body.step)
    checkpoint = TrainingCheckpoint(
        run=run.id,
        step=body.step,
        digest=body.checkpoint,
        seconds=body.seconds,
        machine=body.machine,
        index=case.entry.index,
    )
    changed = run.model_copy(update={"step": body.step})
    state = case.state
    return [(state.training_checkpoints, checkpoint_key(run.id, body.step), checkpoint), (state.runs, run.id, changed)]


def last_checkpoint(state: State, run: Run) -> TrainingCheckpoint | None:
    """Return the training checkpoint from which the run resumes, None if it has none."""
    return state.training_checkpoints.get(checkpoint_key(run.id, run.step))


class RunEntity(Entity):
    """A training run, such as `r-000001`."""

    table = "runs"
    name: str = Field(description="the name of the adapter that the run makes")
    status: str
    ordered_by: PrincipalEntity
    base: BaseEntity
    dataset: DatasetEntity


EVENTS = (EventRule(RunCheckpointed, apply_run_checkpoint),)


def account_of(state: State, person: str) -> str | None:
    """Return the Slurm account that policy gives this person, None if it gives none."""
    return next((row.account for row in state.parameters.slurm_accounts if row.person == person), None)


def refuse_place(state: State, on: str, person: str, *, private: bool) -> Reasons:
    """Return the refusal reasons against training in this place.

    If policy lists Slurm accounts, only the listed persons order runs on Slurm. Private runs stay on this machine,
    because anyone who reads the secret can subtract the noise.
    """
    if on == "local":
        return []
    reasons: Reasons = []
    if state.parameters.slurm_accounts and account_of(state, person) is None:
        reasons.append(SLURM_ACCOUNT_MISSING(f"principal:{person}"))
    if private:
        reasons.append(PRIVATE_RUN_ON_SLURM())
    return reasons


def refuse_nodes(on: str, nodes: int, processes: int) -> Reasons:
    """Return the refusal reasons against this number of nodes.

    Only Slurm has several nodes. The recipe's processes must divide equally among them.
    """
    if on == "local" and nodes > 1:
        return [ONE_NODE(nodes=nodes)]
    if processes % nodes:
        return [NODES_DO_NOT_DIVIDE(processes=processes, nodes=nodes)]
    return []
