"""Records of training runs, their checkpoints and replays, and of sealed adapters with their evaluations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.decisions import Finding, ReleaseRequest, ReviewRecord, Suspension
from appliance.domain.core.names import Canonical, Token, Value
from appliance.domain.core.records.data import BoundSet, LocalSet


class Authorisation(Value):
    """A second person's permission for a run to begin, recorded by the entry `index`."""

    by: str
    keyid: str
    order: str
    index: int


class Guarantee(Value):
    """The differential-privacy guarantee of a run for each row that it trained on."""

    epsilon: str
    delta: str


class SlurmJobStart(Canonical):
    """A start of a Slurm job: its id, the number of requeues by then, and its nodes."""

    id: int = Field(ge=1)
    restart: int = Field(ge=0)
    nodes: tuple[Token, ...] = Field(min_length=1, max_length=64)


class Run(Value):
    """A training run."""

    id: str
    order: str
    name: str
    ordered_by: str
    base: str
    base_digest: str
    dataset: str
    dataset_digest: str
    method: str
    purpose: str
    baseline: str | None
    index: int
    status: Literal["waiting", "queued", "running", "trained", "sealed", "failed", "cancelled", "refused"]
    queued: int = 0
    """Index of the entry that last queued it; runs start in this order."""
    planned_steps: int | None = None
    """Steps over all rows of its dataset; None if the dataset's facts do not count its rows.

    A run that validates makes fewer steps, since some rows are kept for validation.
    """
    early_stopping: int = 0
    eval_steps: int = 0
    weights: str | None = None
    record: str | None = None
    """The digest of its step records, once it is trained."""
    step: int = 0
    """Step of its last training checkpoint; 0 before the first."""
    resumes: int = 0
    """Number of automatic resumptions since the last order to resume it."""
    seconds: str | None = None
    """Duration of its training in seconds."""
    peak_bytes: int | None = None
    """Peak memory of its last worker in bytes."""
    gates: str | None = None
    """The digest of the gates file that its order bound, or None."""
    sets: tuple[BoundSet, ...] = ()
    """The validation sets that its order bound, which are those that its gates name."""
    local_sets: tuple[LocalSet, ...] = ()
    """The local sets, which are in no log, that its order bound."""
    tier: str | None = None
    """The tier of materiality that its order named."""
    authorised: Authorisation | None = None
    sweep: str | None = None
    """The sweep that it belongs to, named by its order."""
    privacy: Guarantee | None = None
    """The guarantee of a private run."""
    secret: str | None = None
    """The digest that binds the secret of a private run that has begun."""
    on: Literal["local", "slurm"] = "local"
    """The place of training that its order named."""
    nodes: int = 1
    """Number of nodes on Slurm."""
    job: SlurmJobStart | None = None
    """The Slurm job in which its last worker was started."""
    started: bool = False
    """True once a worker has begun to train it."""
    began: int = 0
    """Step from which its last worker continued."""


class TrainingCheckpoint(Value):
    """A checkpoint of a training run.

    `digest` is that of its bytes, `machine` describes the machine that made it, and `seconds` is the run's duration so
    far.
    """

    run: str
    step: int
    digest: str
    seconds: str
    machine: dict[str, Any]
    index: int


def checkpoint_key(run: str, step: int) -> str:
    return f"{run}/{step}"


ReplayVerdict = Literal["identical", "within-tolerance", "different"]


class Replay(Value):
    """An auditor's order to train a window of a run again; the order's digest identifies it."""

    order: str
    run: str
    from_step: int
    to_step: int
    signer: str
    index: int
    status: Literal["requested", "finished", "failed"]
    verdict: ReplayVerdict | None = None


class Adapter(Value):
    """A sealed version of an adapter."""

    name: str
    version: int
    manifest: str
    run: str
    ordered_by: str
    dataset_by: str
    base: str
    base_digest: str
    dataset: str
    purpose: str
    measured: dict[str, Any]
    """Metrics of the adapter on the held-out rows."""
    index: int
    verdict: str | None = None
    """The digest of the verdict that was sealed with it, if its run's order bound gates."""
    sets: tuple[BoundSet, ...] = ()
    """The validation sets that it was evaluated on beside the held-out rows."""
    gates: str | None = None
    passed: bool | None = None
    failed_gates: tuple[str, ...] = ()
    """The gates that a verdict did not pass."""
    authorised: Authorisation | None = None
    """The second person's authorisation of its run, if there was one."""
    engines: tuple[str, ...] = ()
    """Engines that it was evaluated on beside the service's own."""
    requests: tuple[ReleaseRequest, ...] = ()
    reviews: tuple[ReviewRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    suspensions: tuple[Suspension, ...] = ()
    revoked: int | None = None
    quarantined: int | None = None


class SetEvaluation(Value):
    """The evaluation on a validation set: its name and version, and the digest of the items."""

    validation_set: str
    items: str


class LocalSetEvaluation(LocalSet):
    """The evaluation on a local set, which is in no log: the digest of the items."""

    items: str


class AdapterEvaluation(Value):
    """The evaluation of a sealed adapter: the digest of its items and, if its run's order bound gates, of the verdict.

    `sets` are the evaluations on validation sets beside the held-out rows. `index` is the entry that sealed the
    adapter.
    """

    adapter: str
    run: str
    dataset: str
    items: str
    gates: str | None
    verdict: str | None
    target_passed: bool | None
    regression_passed: bool | None
    passed: bool | None
    index: int
    sets: tuple[SetEvaluation, ...] = ()
    local_sets: tuple[LocalSetEvaluation, ...] = ()
