"""The vocabulary of entries: for each type, the body it has and the documents it binds.

Bodies hold what the service found or decided; what a person asked for stands in the order, which is a document.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from appliance.domain.entry import Outcome
from appliance.domain.names import (
    Base64,
    Canonical,
    Commitment,
    Decimal,
    Digest,
    Identifier,
    RunId,
    Time,
    VersionedName,
)


class Event(Canonical):
    """The body of one type of entry, and the roles of the documents that the entry binds."""

    type: ClassVar[str]
    documents: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    outcomes: ClassVar[tuple[Outcome, ...]] = ("success",)

    def about(self) -> tuple[str, ...]:
        """The subjects that the body itself names."""
        return ()

    @property
    def actor(self) -> str | None:
        """Who must stand as the entry's actor; None where the rule takes it from a document."""
        return "service"


class Ordered(Event):
    """An entry that stands because a person signed; `policy` names the set whose site policies allowed it."""

    documents: ClassVar[tuple[str, ...]] = ("order",)
    policy: Digest

    @property
    def actor(self) -> str | None:
        return None


class Endorsed(Ordered):
    """Needs two administrators: `order` endorses the one in `endorsed`, except where the site has a single one."""

    optional = ("endorsed",)


class Administrator(Canonical):
    name: Identifier
    key: Base64
    keyid: Digest


class Initialized(Event):
    type = "appliance.initialized"
    documents = ("policy",)
    origin: str = Field(pattern=r"^[a-z0-9][a-z0-9./-]{0,200}$")
    log_key: str = Field(max_length=400)
    adapter_key: Base64
    administrators: tuple[Administrator, ...] = Field(min_length=1, max_length=8)
    single_administrator: bool


class ServiceStarted(Event):
    type = "service.started"
    version: str
    code: Digest
    layers: dict[str, bool]


class ServiceStopped(Event):
    type = "service.stopped"
    reason: str


class Heartbeat(Event):
    type = "heartbeat"


class SessionOpened(Event):
    type = "session.opened"
    documents = ("session",)

    @property
    def actor(self) -> str | None:
        return None


class AuthRefused(Event):
    """Unauthenticated attempts, counted, so that a flood is one entry a minute."""

    type = "auth.refused"
    outcomes = ("denied",)
    count: int = Field(ge=1)
    since: Time


class OrderRefused(Event):
    type = "order.refused"
    documents = ("order",)
    outcomes = ("denied",)
    order: Digest
    verb: str
    reasons: tuple[str, ...] = Field(min_length=1)

    @property
    def actor(self) -> str | None:
        return None

    def about(self) -> tuple[str, ...]:
        return (f"order:{self.order}",)


class OrderPending(Ordered):
    type = "order.pending"
    optional = ("possession", "policy")
    outcomes = ("pending",)


class PrincipalEnrolled(Endorsed):
    type = "principal.enrolled"
    documents = ("order", "possession")


class RoleGranted(Endorsed):
    type = "principal.granted"


class PrincipalRevoked(Ordered):
    type = "principal.revoked"


class KeyEnrolled(Endorsed):
    """`order` is the person's own `rotate-key`, or endorses the `replace-key` in `endorsed`."""

    type = "key.enrolled"
    documents = ("order", "possession")


class KeyRevoked(Ordered):
    type = "key.revoked"


class LogKeyRotated(Endorsed):
    """From here on the log's checkpoints are signed by the key that the order names."""

    type = "log-key.rotated"


class TextErased(Endorsed):
    """With this entry the text behind the order's commitment was removed."""

    type = "text.erased"


class HoldPlaced(Ordered):
    type = "hold.placed"


class HoldLifted(Endorsed):
    type = "hold.lifted"


class CheckpointCosigned(Event):
    """A witness saw the log grow to `size`; `note` is the checkpoint with its line, `proof` (RFC 6962, base64) that the
    log up to this entry begins with what it saw."""

    type = "checkpoint.cosigned"
    documents = ("note",)
    witness: str = Field(max_length=200)
    size: int = Field(ge=1)
    time: Time
    proof: tuple[Base64, ...] = Field(max_length=63)

    def about(self) -> tuple[str, ...]:
        return (f"witness:{self.witness}",)


class PolicyAdopted(Endorsed):
    type = "policy.adopted"
    documents = ("order", "policy")


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


class RunFinished(Event):
    type = "run.finished"
    run: RunId
    weights: Digest
    steps: int = Field(ge=1)
    trained_tokens: int = Field(ge=1)
    seconds: Decimal
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


class AdapterSealed(Event):
    """The manifest's digest is the adapter's identity; `signature` is OpenSSF Model Signing, `provenance` SLSA."""

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


class ReviewRecorded(Ordered):
    type = "review.recorded"


class ReleaseActivated(Ordered):
    type = "release.activated"


class ReleaseRolledBack(Ordered):
    type = "release.rolled-back"


class AdapterRevoked(Ordered):
    type = "adapter.revoked"


class AdapterAdmitted(Event):
    """Admission recomputed the approval as a proof; `head` is the log's size it saw."""

    type = "adapter.admitted"
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    manifest: Digest
    head: int = Field(ge=1)
    approvals: tuple[int, ...]
    policy: Digest

    def about(self) -> tuple[str, ...]:
        return (
            f"unit:{self.unit}",
            f"task:{self.task}",
            f"adapter:{self.adapter}",
        )


class AdmissionRefused(Event):
    type = "admission.refused"
    outcomes = ("denied",)
    unit: Identifier
    task: Identifier
    adapter: VersionedName | None
    reasons: tuple[str, ...] = Field(min_length=1)

    def about(self) -> tuple[str, ...]:
        return (
            f"unit:{self.unit}",
            f"task:{self.task}",
            *((f"adapter:{self.adapter}",) if self.adapter else ()),
        )


class AdapterLoaded(Event):
    """Only now the slot answers."""

    type = "adapter.loaded"
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    admitted: int = Field(ge=1)
    probe: Literal["identical"]

    def about(self) -> tuple[str, ...]:
        return (
            f"unit:{self.unit}",
            f"task:{self.task}",
            f"adapter:{self.adapter}",
        )


class AdapterUnloaded(Event):
    type = "adapter.unloaded"
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    reason: str

    def about(self) -> tuple[str, ...]:
        return (
            f"unit:{self.unit}",
            f"task:{self.task}",
            f"adapter:{self.adapter}",
        )


class RequestAdmitted(Event):
    type = "request.admitted"
    request: str = Field(pattern=r"^[0-9a-f]{32}$")
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    prompt: Commitment = Field(description="keyed digest of the messages, under a key the service holds")

    def about(self) -> tuple[str, ...]:
        return (
            f"request:{self.request}",
            f"unit:{self.unit}",
            f"task:{self.task}",
            f"adapter:{self.adapter}",
        )

    @property
    def actor(self) -> str | None:
        return self.unit


class RequestFinished(Event):
    type = "request.finished"
    outcomes = ("success", "failure", "interrupted")
    request: str = Field(pattern=r"^[0-9a-f]{32}$")
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    finish_reason: str
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    answer: Commitment | None

    def about(self) -> tuple[str, ...]:
        return (
            f"request:{self.request}",
            f"unit:{self.unit}",
            f"task:{self.task}",
            f"adapter:{self.adapter}",
        )

    @property
    def actor(self) -> str | None:
        return self.unit


class RequestRefused(Event):
    type = "request.refused"
    outcomes = ("denied",)
    unit: Identifier
    code: str
    message: str

    def about(self) -> tuple[str, ...]:
        return (f"unit:{self.unit}",)

    @property
    def actor(self) -> str | None:
        return self.unit


EVENTS: dict[str, type[Event]] = {
    model.type: model
    for model in (
        Initialized, ServiceStarted, ServiceStopped, Heartbeat, SessionOpened, AuthRefused, OrderRefused, OrderPending,
        PrincipalEnrolled, RoleGranted, PrincipalRevoked, PolicyAdopted, ImportRequested, ImportFailed, BaseImported,
        DatasetImported, RunRequested, RunStarted, RunFinished, RunFailed, RunCancelled, AdapterSealed,
        AdapterQuarantined, BaseQuarantined, ReviewRecorded, ReleaseActivated, ReleaseRolledBack, AdapterRevoked,
        AdapterAdmitted, AdmissionRefused, AdapterLoaded, AdapterUnloaded, RequestAdmitted, RequestFinished,
        RequestRefused, KeyEnrolled, KeyRevoked, LogKeyRotated, TextErased, HoldPlaced, HoldLifted, CheckpointCosigned,
    )
}  # fmt: skip
