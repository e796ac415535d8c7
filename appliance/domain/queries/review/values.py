"""The fields of the review page, in the order in which it is read (docs/formats/review-page.md)."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field

from appliance.domain.core.decisions import PARTS, OpenedPagePart
from appliance.domain.core.decisions import Part as OpenedPart
from appliance.domain.core.names import Digest, Identifier, Time, Value
from appliance.domain.core.order import Order
from appliance.domain.evaluation.comparison import SliceResult
from appliance.domain.evaluation.confusion import Confusion
from appliance.domain.evaluation.gates import GatesFile
from appliance.domain.evaluation.verdict import CalibrationFile, Verdict
from appliance.domain.releases.activations import BreakGlass
from appliance.domain.releases.approval import ReviewState
from appliance.domain.releases.findings import AddFinding
from appliance.domain.releases.requests import RequestRelease
from appliance.domain.releases.reviews import ReviewAdapter
from appliance.errors import Refusal
from appliance.formats.artifacts.manifest import ManifestFile
from appliance.formats.core.canonical import encode_canonical
from appliance.formats.core.digest import digest_bytes


class ReportedValue(Value):
    """Values that the service computes from its state. A client cannot check them."""


class AdapterStatus(ReportedValue):
    """The state of an adapter. `active_for`: UNIT/SERVED_MODEL of each release for which this version is active."""

    revoked: int | None
    quarantined: int | None
    active_for: tuple[str, ...]


class EligibleReviewer(Value):
    """A reviewer who may still approve. `delegates`: the people who may decide in the reviewer's place."""

    name: Identifier
    review_function: Identifier
    delegates: tuple[Identifier, ...]


class RequestStatus(ReportedValue):
    """The requirements of a release request by the valid policy.

    `blockers`: reasons why the adapter cannot be released, with the missing approvals. `until`: the time until which
    the request may be approved. `tiers`: the tiers of the policy, the lowest first.
    """

    tier: str | None
    tiers: tuple[str, ...]
    reviewers: int
    distinct_functions: int
    required_functions: tuple[str, ...]
    approvals: tuple[int, ...]
    blockers: tuple[Refusal, ...]
    eligible_reviewers: tuple[EligibleReviewer, ...]
    until: Time | None


class DecisionStatus(ReportedValue):
    """The present state of a review. `again_by`: the time by which an approval must be renewed."""

    again_by: Time | None
    state: ReviewState
    superseded_by: int | None


class FindingStatus(ReportedValue):
    """The present state of a finding. `closed`: the entry that closed it last."""

    open: bool
    closed: int | None
    closed_by: str | None


AnOrder = TypeVar("AnOrder", bound=Order)
Status = TypeVar("Status", bound=ReportedValue)


class PageOrder(Value, Generic[AnOrder, Status]):
    """An order that took effect with an entry of the log, its texts and its present status.

    `texts`: by their commitments in the order. A text that was erased or is withheld is missing.
    """

    entry: int
    digest: Digest
    order: AnOrder
    texts: dict[str, str]
    status: Status

    def open_text(self, commitment: str | None) -> str | None:
        """Return the text behind a commitment of the order; None if it was erased or is withheld."""
        return None if commitment is None else self.texts.get(commitment)


class PageRequest(PageOrder[RequestRelease | BreakGlass, RequestStatus]):
    """A valid release request, or the emergency release that opened one."""

    @property
    def request(self) -> RequestRelease | None:
        """The request of a person; None if an emergency opened it."""
        return self.order if isinstance(self.order, RequestRelease) else None


class PageDecision(PageOrder[ReviewAdapter, DecisionStatus]):
    """A recorded review."""


class PageFinding(PageOrder[AddFinding, FindingStatus]):
    """A finding."""


class Change(Value):
    """One difference between two versions. A value is null if that version has none."""

    what: str
    before: str | None
    now: str | None


FEW_ROWS = 100
"""Number of held-out rows below which the page warns that a score rests on few rows."""
LARGE_LOSS = Fraction(1, 10)
"""Loss of a subgroup from which the page marks it, whether or not a test shows it."""
TOPICS = ("measures", "data", "recipe", "base", "instruction", "evaluation", "run", "code")
"""Topics of differences, in the order of the page."""


class VersionChanges(Value):
    """Differences from the version that is active for `units` now, by topic.

    `measures`: of both versions, each on the held-out rows of its own dataset. `evaluation`: gates and the sets of
    rows that they name. `run`: the other fields of the order to train.
    """

    units: tuple[Identifier, ...]
    since: str
    entry: int
    measures: tuple[Change, ...]
    data: tuple[Change, ...]
    recipe: tuple[Change, ...]
    base: tuple[Change, ...]
    instruction: tuple[Change, ...]
    evaluation: tuple[Change, ...]
    run: tuple[Change, ...]
    code: tuple[Change, ...]

    @property
    def topics(self) -> tuple[tuple[str, tuple[Change, ...]], ...]:
        """The differences of each topic, with the topic's name."""
        return tuple((name, getattr(self, name)) for name in TOPICS)


class Subgroup(Value):
    """A subgroup of a set of rows in the result of a gate with slices."""

    gate: Identifier
    result: SliceResult

    @property
    def lost_much(self) -> bool:
        """True if the subgroup lost `LARGE_LOSS` or more, by a test or not."""
        return Fraction(self.result.gain) <= -LARGE_LOSS

    @property
    def found(self) -> str:
        """`worse`; else `lost much`, `too few rows` to be evaluated by the gate, both, or an empty text."""
        words = (("lost much", self.lost_much), ("too few rows", self.result.adjusted is None))
        return "worse" if self.result.worse else ", ".join(word for word, is_so in words if is_so)


class VerdictSummary(Value):
    """The verdict on an adapter with its gates file.

    `runs_before`: runs that were evaluated before on the set that was used most often. `correction_factor`: factor on a
    p-value that corrects for them. `subgroups`: subgroups of all gates, the worse ones first, then by increasing gain.
    """

    gates: GatesFile
    verdict: Verdict
    verdict_digest: Digest
    runs_before: int
    correction_factor: int
    subgroups: tuple[Subgroup, ...]


class Measure(Value):
    """A metric on the held-out rows, beside that of the base and others, as a text."""

    name: str
    summary: str


class TrainingData(Value):
    """The dataset that a version was trained on.

    `instruction` and `owner` are null if the text was erased or is withheld. `label_rows`: number of training rows of
    each label, in the order of `labels`. `example`: a request to the adapter in the form of the training rows.
    """

    dataset: str
    dataset_digest: Digest
    dataset_entry: int
    rows: dict[str, int]
    dataset_kind: str
    instruction: str | None
    labels: tuple[str, ...]
    label_rows: tuple[int, ...]
    owner: str | None
    licence: str
    classification: str
    imported_by: str
    example: dict[str, Any]

    @property
    def counted_labels(self) -> tuple[str, ...]:
        """Each label with the number of its training rows."""
        counts = self.label_rows or (None,) * len(self.labels)
        return tuple(
            label if count is None else f"{label} {count}" for label, count in zip(self.labels, counts, strict=True)
        )


class PageBase(Value):
    """The base of the adapter. `facts`: the contents of base.json in the sealed folder."""

    name: str
    digest: Digest
    licence: str
    facts: dict[str, Any]


class EvaluatedRun(ReportedValue):
    """A run that was evaluated on the same rows before. `passed` is null if its order named no gates file."""

    run: str
    adapter: str
    entry: int
    passed: bool | None


class PrivateRun(ReportedValue):
    """A private run and the guarantee for a training row that holds for this run alone."""

    run: str
    epsilon: str
    delta: str


class TrainedBefore(ReportedValue):
    """Other runs on the adapter's dataset before it was sealed.

    `private`: private runs that began. `plain`: number of runs without privacy that were sealed.
    """

    private: tuple[PrivateRun, ...]
    plain: int = Field(ge=0)


class PreviousRuns(ReportedValue):
    """Counts of other runs on the adapter's dataset that were trained and have ended.

    They were ordered before the adapter was sealed. `people`: number of people who ordered them. `swept`: number of
    runs that belong to one of `sweeps` sweeps. `sealed`, `cancelled` and `failed`: numbers by how the runs have ended
    until now.
    """

    runs: int = Field(ge=0)
    people: int = Field(ge=0)
    swept: int = Field(ge=0)
    sweeps: int = Field(ge=0)
    sealed: int = Field(ge=0)
    cancelled: int = Field(ge=0)
    failed: int = Field(ge=0)


class PrivacySummary(Value):
    """The privacy guarantee of the manifest and the parameters that give it.

    `epsilon_all`, `delta_all`: sums over this run and the earlier private ones.
    """

    epsilon: str
    delta: str
    noise: str
    clip: str
    epsilon_all: str
    delta_all: str
    before: TrainedBefore


class SignedContent(Value):
    """The signed content: the manifest, and through it every file.

    `materials`: digests of the inputs by name, from the signed provenance.
    """

    manifest: Digest
    files: tuple[ManifestFile, ...]
    materials: dict[str, Digest]
    sealed: int
    sealed_at: Time
    run: str
    ordered_by: str
    order: Digest
    recipe: dict[str, Any]


class Named(Value):
    """An entry of the log that names a digest of this page."""

    digest: Digest
    entry: int
    binds: str


class ReviewPage(Value):
    """The review page of one adapter, for a decision.

    `metrics`: all of metrics.json in the sealed folder. `evaluated_before`: runs that were evaluated on the same rows.
    """

    version: Literal[1]
    adapter: str
    status: AdapterStatus
    release_requests: tuple[PageRequest, ...]
    findings: tuple[PageFinding, ...]
    decisions: tuple[PageDecision, ...]
    changes: tuple[VersionChanges, ...]
    warnings: tuple[str, ...]
    measures: tuple[Measure, ...]
    metrics: dict[str, Any]
    evaluation: VerdictSummary | None
    confusion: tuple[Confusion, ...]
    calibration: CalibrationFile | None
    training_data: TrainingData
    base: PageBase
    privacy: PrivacySummary | None
    evaluated_before: tuple[EvaluatedRun, ...]
    previous_runs: PreviousRuns
    signed_content: SignedContent
    entries: tuple[Named, ...]

    @property
    def held_out_rows(self) -> int | None:
        """Number of held-out rows."""
        return self.training_data.rows.get("held_out_rows")

    @property
    def few_rows(self) -> int | None:
        """Number of held-out rows, if they are so few that one row changes a score much, else None."""
        rows = self.held_out_rows
        return rows if rows is not None and rows < FEW_ROWS else None


FIELDS: dict[OpenedPart, tuple[str, ...]] = {
    "changes": ("changes",),
    "findings": ("findings",),
    "quality": ("calibration", "confusion", "evaluation", "measures"),
}
"""Fields of the page that each part shows."""


def open_parts(page: ReviewPage, parts: Iterable[OpenedPart] = PARTS) -> tuple[OpenedPagePart, ...]:
    """Return each part with the SHA-256 of the canonical JSON of its fields, ordered by name."""
    return tuple(
        OpenedPagePart(
            part=part, digest=digest_bytes(encode_canonical(page.model_dump(mode="json", include=set(FIELDS[part]))))
        )
        for part in sorted(parts)
    )
