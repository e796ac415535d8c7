"""Adapters with their reviews, findings and release requests, and the material of a review."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from appliance.api.runs import WorkStatus
from appliance.api.wire import Bytes, Disclosure
from appliance.domain.core import decisions
from appliance.domain.core.names import Time, Value
from appliance.domain.core.records import runs as records
from appliance.domain.queries.review.values import RequestStatus
from appliance.domain.releases.approval import ReviewState
from appliance.domain.releases.previews import MOST_PROMPTS
from appliance.errors import Refusal


@dataclass(frozen=True, slots=True)
class Review(decisions.ReviewRecord):
    """A decision with its present state.

    `again_by` is the time by which an approval must be renewed. `superseded_by` is the entry of the reviewer's next
    decision. `refusal` is why the review is not valid, None if it is.
    """

    again_by: Time | None
    state: ReviewState
    superseded_by: int | None
    refusal: Refusal | None


class Finding(decisions.Finding):
    """A finding, which is `open` until a valid order closes it."""

    open: bool


class Suspension(decisions.Suspension):
    """A suspension, which is `valid` until a valid order lifts it."""

    valid: bool


class CurrentRequest(RequestStatus):
    """The valid release request of a unit, and its present status."""

    request: decisions.ReleaseRequest


class Adapter(records.Adapter):
    """A sealed version of an adapter, with the present states of its reviews, findings and suspensions."""

    reviews: tuple[Review, ...]
    findings: tuple[Finding, ...]
    suspensions: tuple[Suspension, ...]
    release_requests: tuple[CurrentRequest, ...]

    def read_terms(self, unit: str) -> tuple[decisions.ReleaseRequest | None, list[tuple[Review, Time | None]]]:
        """Return the unit's valid request, and its valid approvals with the time by which each must be renewed."""
        request = next((one.request for one in self.release_requests if one.request.unit == unit), None)
        valid = [one for one in self.reviews if one.unit == unit and one.approves and one.state == "valid"]
        return request, [(one, one.again_by) for one in valid]


class HistoryStep(Value):
    """An entry about an adapter with its order, if it has one, and the disclosed texts of both."""

    entry: Bytes
    order: Bytes | None
    disclosures: tuple[Disclosure, ...]


class AdapterHistory(Value):
    """The entries about an adapter in order, from the imports it is made of, and its requests counted by outcome."""

    entries: tuple[HistoryStep, ...]
    requests: dict[str, int]


class ExportPacket(Value):
    """An export for a unit's own host without the adapter's files (docs/formats/exported-adapter.md)."""

    adapter: str
    manifest: str
    valid_until: Time
    proofs: Bytes
    state_rows: Bytes
    signatures: tuple[Bytes, ...]


class PromptsRequest(Value):
    """Prompts that a reviewer is about to send to an adapter.

    They are kept in memory until the order that commits to them arrives.
    """

    prompts: tuple[Disclosure, ...] = Field(max_length=MOST_PROMPTS)


class PromptsHeld(Value):
    """The number of prompts that are held for this person now."""

    held: int


class PreviewAnswer(Value):
    """An answer of a model to a row or a prompt. `code` is that of its error; it then has no text.

    `salt` is that of the answer's commitment in the log; only answers of a trial have one.
    """

    model: str
    code: str | None
    text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    probability: str | None
    salt: str | None = None


class PreviewRow(Value):
    """A held-out row, with the answers of each model."""

    row: str
    text: str
    expected: str
    answers: tuple[PreviewAnswer, ...]


class PreviewResult(Value):
    """The `rows` of a sample view, or the `answers` of a trial.

    `released` is the version that serves now, `released_missing` why it was not asked. `root` is the log's root, which
    determined the rows.
    """

    adapter: str
    released: str | None = None
    released_missing: str | None = None
    root: str | None = None
    rows: tuple[PreviewRow, ...] = ()
    answers: tuple[PreviewAnswer, ...] = ()


class PreviewStatus(WorkStatus[PreviewResult]):
    """The state of a sample view or a trial."""
