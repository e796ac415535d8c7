"""Training runs, their checkpoints and replays."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.names import Canonical, Token, Value
from appliance.domain.core.records.data import BoundSet, LocalSet


class Authorisation(Value):
    """A second person let a run begin, by the entry `index`."""

    by: str
    keyid: str
    order: str
    index: int


class Guarantee(Value):
    """Differential privacy: what a run tells of any one row that it trained on."""

    epsilon: str
    delta: str


class Job(Canonical):
    """A start of a job of Slurm: its id, how often it had been requeued by then, and the nodes that it had."""

    id: int = Field(ge=1)
    restart: int = Field(ge=0)
    nodes: tuple[Token, ...] = Field(min_length=1, max_length=64)


class Run(Value):
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
    """The entry that last put it into the queue, which is worked off in this order."""
    planned_steps: int | None = None
    """Steps over all rows of its dataset, which a run that validates does not reach: some rows are kept back for that.
    None where the dataset's facts do not count its rows."""
    early_stopping: int = 0
    validate_every: int = 0
    weights: str | None = None
    record: str | None = None
    """The digest of its steps, once it is trained."""
    step: int = 0
    """Of its last training checkpoint; 0 while it has none."""
    resumes: int = 0
    """How often it was resumed without an order since the last order to resume it."""
    seconds: str | None = None
    peak_bytes: int | None = None
    """What its training took: of its last worker's memory the most."""
    gates: str | None = None
    """The digest of the gate set that its order bound; None where it bound none."""
    sets: tuple[BoundSet, ...] = ()
    """The validation sets that its order bound, each that its gates name."""
    local_sets: tuple[LocalSet, ...] = ()
    """The sets of no log that its order bound."""
    tier: str | None = None
    """The tier of materiality that its order named."""
    authorised: Authorisation | None = None
    sweep: str | None = None
    """The sweep that it belongs to, as its order names it."""
    privacy: Guarantee | None = None
    """Of a private run."""
    secret: str | None = None
    """Of a private run that has begun, the digest that binds its secret."""
    on: Literal["here", "slurm"] = "here"
    """Where its order has it trained."""
    nodes: int = 1
    """On Slurm: on how many nodes."""
    job: Job | None = None
    """Of Slurm: where its last worker was started."""
    began: int = 0
    """The step from which its last worker went on."""


class TrainingCheckpoint(Value):
    """`digest` of the bytes, the machine that made them, and how long the run had taken until then."""

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
    """An auditor's order to train a window of a run again; `order` is its identity."""

    order: str
    run: str
    from_step: int
    to_step: int
    signer: str
    index: int
    status: Literal["requested", "finished", "failed"]
    verdict: ReplayVerdict | None = None
