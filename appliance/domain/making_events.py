"""The entries about what is made: bases, datasets, runs, adapters and their reviews."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.comparison import Verdict
from appliance.domain.entry import MAX_SUBJECTS
from appliance.domain.event import Event, Ordered
from appliance.domain.names import Commitment, Decimal, Digest, Identifier, RunId, VersionedName


class ImportRequested(Ordered):
    type = "import.requested"


class ImportFailed(Event):
    type = "import.failed"
    outcomes = ("failure",)
    order: Digest
    code: str
    message: Commitment

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}",)


class ImportCancelled(Ordered):
    type = "import.cancelled"


class BaseImported(Event):
    """`manifest` lists the converted folder's files; its digest is the base's identity."""

    type = "base.imported"
    documents = ("manifest",)
    order: Digest
    base: Identifier
    facts: dict[str, Any]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (
            f"order:{self.order}",
            f"base:{self.base}",
        )


class DatasetImported(Event):
    """`root` is the RFC 6962 root over the row digests, each under its own key."""

    type = "dataset.imported"
    documents = ("manifest",)
    order: Digest
    dataset: VersionedName
    base: Identifier
    root: Digest
    facts: dict[str, Any]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (
            f"order:{self.order}",
            f"dataset:{self.dataset}",
        )


class RunRequested(Ordered):
    type = "run.requested"
    run: RunId

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunStarted(Event):
    """`walls`: what the worker's own probes found; `layers`: what of the sandbox stands."""

    type = "run.started"
    run: RunId
    layers: dict[str, bool]
    accepted_missing: tuple[str, ...]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunCheckpointed(Event):
    """A training checkpoint, by the digest of its bytes; `machine`: what its bits depend on beside recipe and data."""

    type = "run.checkpointed"
    run: RunId
    step: int = Field(ge=1)
    checkpoint: Digest
    seconds: Decimal
    machine: dict[str, Any]

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class ResumeRequested(Ordered):
    """A failed run waits again, to go on from its last training checkpoint."""

    type = "resume.requested"


class RunResumed(Event):
    """Another worker goes on from the run's last training checkpoint; walls and layers as in `run.started`."""

    type = "run.resumed"
    run: RunId
    step: int = Field(ge=1)
    checkpoint: Digest
    layers: dict[str, bool]
    accepted_missing: tuple[str, ...]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunFinished(Event):
    """`record`: the digest of steps.jsonl; `validation`: (step, loss); `weights` are those after `weights_step`.

    Fewer steps than planned: the validation losses, by the recipe's patience, said that it was enough.
    """

    type = "run.finished"
    run: RunId
    weights: Digest
    weights_step: int = Field(ge=1)
    record: Digest
    validation: tuple[tuple[int, Decimal], ...]
    planned_steps: int = Field(ge=1)
    steps: int = Field(ge=1)
    trained_tokens: int = Field(ge=1)
    seconds: Decimal
    peak_bytes: int = Field(ge=1)
    final_loss: Decimal

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunFailed(Event):
    type = "run.failed"
    outcomes = ("failure",)
    run: RunId
    code: str
    message: Commitment

    def about(self) -> tuple[str, ...]:
        return (f"run:{self.run}",)


class RunCancelled(Ordered):
    type = "run.cancelled"


class ReplayRequested(Ordered):
    type = "replay.requested"


class ReplayFinished(Event):
    """The steps after `from_step` up to `to_step`, trained again: what the ledger holds, and what came of it.

    `largest_difference`: as a share of what the window changed, for the worst weight; null where nothing was measured.
    """

    type = "replay.finished"
    order: Digest
    run: RunId
    from_step: int = Field(ge=0)
    to_step: int = Field(ge=1)
    expected: Digest
    got: Digest
    verdict: Verdict
    largest_difference: Decimal | None
    machine: dict[str, Any]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"run:{self.run}")


class ReplayFailed(Event):
    """No verdict: the window could not be trained again, and why."""

    type = "replay.failed"
    outcomes = ("failure",)
    order: Digest
    run: RunId
    code: str
    message: Commitment

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}", f"run:{self.run}")


class AdapterSealed(Event):
    """The manifest's digest is the adapter's identity; `signature` is OpenSSF Model Signing, `provenance` SLSA.

    `metrics`: of `base` and `adapter` on the held-out rows, and what `baseline` that the order named makes of them.
    """

    type = "adapter.sealed"
    documents = ("manifest", "signature", "provenance")
    run: RunId
    adapter: VersionedName
    metrics: dict[str, dict[str, Any]]
    walls: dict[str, str]

    def about(self) -> tuple[str, ...]:
        return (
            f"run:{self.run}",
            f"adapter:{self.adapter}",
        )


class AdapterQuarantined(Event):
    type = "adapter.quarantined"
    outcomes = ("failure",)
    adapter: VersionedName
    message: Commitment

    def about(self) -> tuple[str, ...]:
        return (f"adapter:{self.adapter}",)


class BaseQuarantined(Event):
    """The base's folder no longer hashes to its manifest: nothing trains on it and nothing is served on it."""

    type = "base.quarantined"
    outcomes = ("failure",)
    base: Identifier
    message: Commitment

    def about(self) -> tuple[str, ...]:
        return (f"base:{self.base}",)


class ArtifactsChecked(Event):
    """Every sealed folder that the ledger names was hashed again, on schedule. `changed`: whatever does not hash to its
    manifest any more; adapters and bases among it are in quarantine by now. Subjects are the first, as many as fit."""

    type = "artifacts.checked"
    outcomes = ("success", "failure")
    folders: int = Field(ge=0)
    size: int = Field(ge=0)
    changed: tuple[str, ...] = Field(max_length=1000)

    def about(self) -> tuple[str, ...]:
        return self.changed[:MAX_SUBJECTS]


class ReviewRecorded(Ordered):
    type = "review.recorded"


class AdapterRevoked(Ordered):
    type = "adapter.revoked"


class BaseRevoked(Ordered):
    """Nothing is trained on it or served on it any more."""

    type = "base.revoked"


class DatasetRevoked(Ordered):
    """Nothing is trained on it, and nothing that was is served any more."""

    type = "dataset.revoked"
