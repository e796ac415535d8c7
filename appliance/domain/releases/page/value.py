"""What the review page says, in the order in which it is read. docs/formats/review-page.md is the page."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from appliance.domain.core.decisions import Conditions, Decision, FindingKind, Severity
from appliance.domain.core.names import Digest, Identifier, Time, Value
from appliance.domain.evaluation.confusion import Confusion
from appliance.domain.evaluation.evidence import Calibrations
from appliance.domain.evaluation.gates import GateSet
from appliance.domain.evaluation.verdict import GateResult
from appliance.domain.evaluation.verdict import Judged as Record


class Person(Value):
    """A reviewer who could still decide."""

    name: Identifier
    field: Identifier


class Asked(Value):
    """A release request in force. One that an emergency opened has neither exposure nor purpose.

    `intended_use` and `limits` are null where the text was erased or is withheld; of an emergency `intended_use` is its
    reason. `missing`: what keeps the adapter from answering; `until`: by when it may be approved.
    """

    unit: Identifier
    by: str
    entry: int
    order: Digest
    emergency: bool
    intended_use: str | None
    limits: str | None
    exposure: str | None
    purpose: str | None
    conditions: Conditions | None
    verdict: Digest | None
    tier: str | None
    reviewers: int
    distinct_fields: int
    required_fields: tuple[str, ...]
    approvals: tuple[int, ...]
    missing: tuple[str, ...]
    could_decide: tuple[Person, ...]
    until: Time | None


class Decided(Value):
    """A decision that was recorded, and what it counts for now."""

    entry: int
    decision: Decision
    unit: Identifier
    field: str
    reviewer: str
    on_behalf_of: str | None
    conditions: Conditions | None
    valid_until: Time | None
    again_by: Time | None
    state: str
    superseded_by: int | None


class Found(Value):
    """A finding. Its texts are null where they were erased, or are withheld."""

    entry: int
    open: bool
    kind: FindingKind
    severity: Severity
    blocks: bool
    accepts_verdict: bool
    field: str
    finder: str
    owner: str
    due: Time
    finding: str | None
    remedy: str | None
    retest: str | None
    closed: int | None
    closed_by: str | None


class Change(Value):
    """One thing that differs; null where one of the two has none."""

    what: str
    before: str | None
    now: str | None


class Changes(Value):
    """What differs from the version that answers a unit now. `units`: those that it answers."""

    units: tuple[Identifier, ...]
    since: str
    entry: int
    data: tuple[Change, ...]
    recipe: tuple[Change, ...]
    base: tuple[Change, ...]
    teaching: tuple[Change, ...]
    code: tuple[Change, ...]


class Part(Value):
    """A part of a set, by a gate with slices; where the gate found harm, it is `worse`."""

    gate: Identifier
    by: str
    value: str
    items: int
    ours: str
    theirs: str
    gain: str
    lower: str | None
    upper: str | None
    adjusted: str | None
    worse: bool

    @property
    def found(self) -> str:
        """`worse`, or `too few rows` where the gate did not judge it, or nothing."""
        return "worse" if self.worse else "too few rows" if self.adjusted is None else ""


class Judged(Value):
    """What the gates decided.

    `times`: how often a p-value counts on the set that was judged on most. `records`: the items that were compared, and
    how often each set was judged on. `parts`: of all gates, the worse ones first, then by gain, the least first.
    """

    gates: GateSet
    gates_digest: Digest
    verdict_digest: Digest
    passed: bool
    task: bool
    rest: bool
    why: str
    judged_before: int
    times: int
    records: tuple[Record, ...]
    results: tuple[GateResult, ...]
    parts: tuple[Part, ...]


class Measure(Value):
    """A measure of the held-out rows, beside that of the base and others."""

    name: str
    told: str


class Taught(Value):
    """What it teaches. `instruction` and `owner` are null where the text was erased, or is withheld."""

    dataset: str
    dataset_digest: Digest
    dataset_entry: int
    rows: dict[str, int]
    task: str
    instruction: str | None
    labels: tuple[str, ...]
    owner: str | None
    licence: str
    classification: str
    imported_by: str
    example: dict[str, Any]


class Based(Value):
    """The base that it was trained on. `facts`: base.json of the sealed folder."""

    name: str
    digest: Digest
    licence: str
    facts: dict[str, Any]


class Run(Value):
    """A run that was judged on the same rows before; `passed` is null where its order bound no gates."""

    run: str
    adapter: str
    entry: int
    passed: bool | None


class PrivateRun(Value):
    """A private run, and what it alone tells of a training row."""

    run: str
    epsilon: str
    delta: str


class TrainedBefore(Value):
    """Other runs on the adapter's dataset. `private`: those that began before it was sealed; `plain`: how many without
    privacy were sealed before it."""

    private: tuple[PrivateRun, ...]
    plain: int = Field(ge=0)


class Tried(Value):
    """Other runs on the adapter's dataset that were ordered before it was sealed, under any name and by anybody.
    `people`: who ordered them; `swept`: how many are of a sweep, `sweeps` of them; then how they ended, up to now."""

    runs: int = Field(ge=0)
    people: int = Field(ge=0)
    swept: int = Field(ge=0)
    sweeps: int = Field(ge=0)
    sealed: int = Field(ge=0)
    cancelled: int = Field(ge=0)
    failed: int = Field(ge=0)


class Privacy(Value):
    """The guarantee of the manifest, and what it was made by. `epsilon_all`, `delta_all`: of this run and the private
    ones before, added up."""

    epsilon: str
    delta: str
    noise: str
    clip: str
    epsilon_all: str
    delta_all: str
    before: TrainedBefore


class File(Value):
    path: str
    size: int
    digest: Digest


class Material(Value):
    """What the signed provenance says that the adapter was made of."""

    name: str
    digest: Digest


class Bound(Value):
    """What a signature binds: the manifest, and through it every file."""

    manifest: Digest
    files: tuple[File, ...]
    materials: tuple[Material, ...]
    sealed: int
    sealed_at: Time
    run: str
    ordered_by: str
    order: Digest
    recipe: dict[str, Any]


class Named(Value):
    """An entry of the log that binds a digest of this page."""

    digest: Digest
    entry: int
    binds: str


class ReviewPage(Value):
    """One adapter, ready for a decision."""

    version: Literal[1]
    adapter: str
    revoked: int | None
    quarantined: int | None
    answers: tuple[str, ...] = Field(description="UNIT/TASK of each release that has this version answer now")
    asked: tuple[Asked, ...]
    findings: tuple[Found, ...]
    decisions: tuple[Decided, ...]
    changes: tuple[Changes, ...]
    warnings: tuple[str, ...]
    measures: tuple[Measure, ...]
    metrics: dict[str, Any] = Field(description="metrics.json of the sealed folder, whole")
    judged: Judged | None
    confusion: tuple[Confusion, ...]
    calibration: Calibrations | None
    taught: Taught
    base: Based
    privacy: Privacy | None
    judged_before: tuple[Run, ...]
    tried: Tried
    bound: Bound
    entries: tuple[Named, ...]
