"""Records of decisions on a release: requests, conditions, reviews, findings and delegations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from appliance.domain.core.names import Digest, Identifier, Time, Value
from appliance.errors import Refusal, RefusalCode

Decision = Literal["approve", "approve-with-conditions", "request-changes", "reject", "withdraw"]
"""A reviewer's decision."""
APPROVALS: tuple[Decision, ...] = ("approve", "approve-with-conditions")
"""The decisions that approve, and expire."""
Part = Literal["changes", "findings", "quality"]
"""A part of the review page that a reviewer opens before an approval in the console."""
PARTS: tuple[Part, ...] = ("changes", "findings", "quality")
MOST_DECISIONS = 100
"""Largest number of findings, and of reviews, requests and activations for a unit, that a person signs about an
adapter version. Each adds to the row of the adapter or the release, and the database keeps every version of a row."""
MOST_FOR_ALL_UNITS = 400
"""Largest number of reviews, and of requests, for all units together that a person signs about an adapter version."""
FindingKind = Literal["issue", "exception", "limitation"]
Severity = Literal["low", "medium", "high", "critical"]


class OpenedPagePart(Value):
    """A part of the review page that the signer's browser or command line fetched before the decision.

    `digest` is that of the part's value (docs/formats/review-page.md). It does not prove that a person read the part.
    """

    part: Part
    digest: Digest


class Conditions(Value):
    """The conditions that the service enforces for a release. All apply at once; an unused one is null or empty."""

    not_before: Time | None = Field(description="a day; it does not serve before it")
    not_after: Time | None = Field(description="a day; it does not serve from then on")
    served_models: tuple[Identifier, ...] = Field(
        max_length=16, description="the names under which it may serve; none: any name"
    )
    answers_a_day: int | None = Field(
        ge=1, le=1_000_000_000, title="responses a day", description="requests admitted in one day of UTC"
    )

    def say_nothing(self) -> bool:
        """Return True if no condition is set."""
        return not self.served_models and (self.not_before, self.not_after, self.answers_a_day) == (None, None, None)


@dataclass(frozen=True, slots=True)
class Delegator:
    """The principal in whose place a reviewer decided, and the delegation's entry and key."""

    principal: str
    keyid: str
    index: int


@dataclass(frozen=True, slots=True)
class ReviewRecord:
    """One decision of a reviewer on an adapter for a unit."""

    index: int
    order: str
    reviewer: str
    keyid: str
    review_function: str
    unit: str
    decision: Decision
    valid_until: Time | None
    """Time at which an approval expires; None for other decisions."""
    time: Time
    request: str | None
    """The order of the release request that was decided on, or None."""
    conditions: Conditions | None
    on_behalf_of: Delegator | None

    @property
    def approves(self) -> bool:
        """Return True if the decision is an approval."""
        return self.decision in APPROVALS


class ReleaseRequest(Value):
    """A request to release an adapter to a unit.

    The person who ordered the run makes it. A request of kind `break-glass` is opened by the entry of an emergency
    release: it has no exposure and no purpose, and the highest tier.
    """

    order: str
    unit: str
    kind: Literal["request", "break-glass"]
    requested_by: str
    keyid: str
    exposure: str | None
    purpose: str | None
    verdict: str | None
    conditions: Conditions | None
    index: int
    time: Time
    withdrawn: int | None = None


class Finding(Value):
    """A reviewer's finding, recorded by the entry `index`.

    `closed` is the entry that closed it last, `closed_by` the signer of that order and `closed_keyid` the signer's key.
    `accepts_verdict` marks an exception by which the adapter may be released although its verdict was not passed.
    """

    index: int
    order: str
    kind: FindingKind
    severity: Severity
    blocks: bool
    accepts_verdict: bool
    review_function: str
    finder: str
    keyid: str
    owner: str
    due: Time
    closed: int | None = None
    closed_by: str | None = None
    closed_keyid: str | None = None


class Suspension(Value):
    """A suspension of an adapter version for a unit, recorded by the entry `index`.

    `served_model` is the only served model that it stops; null stops all served models of the unit. `role` is the role
    under which `by` signed it. `lifted` is the entry that lifted it last, `lifted_by` who ordered that, and
    `lifted_keyids` the keys of all signatures of that entry.
    """

    index: int
    order: str
    unit: str
    served_model: str | None
    role: str
    by: str
    keyid: str
    lifted: int | None = None
    lifted_by: str | None = None
    lifted_keyids: tuple[str, ...] = ()


class Delegation(Value):
    """A review function that a reviewer gave to another person until a time."""

    delegator: str
    delegate: str
    review_function: str
    until: Time
    keyid: str
    index: int


class DailyAnswers(Value):
    """Number of requests admitted to an adapter for a unit on the last day on which a condition limited them."""

    unit: str
    adapter: str
    day: str
    count: int


class Preview(Value):
    """A sample view or trial of a sealed adapter that has not ended.

    `count` is the number of rows or prompts that the order allows, and `index` the entry of the order.
    """

    order: str
    kind: Literal["samples", "try"]
    adapter: str
    by: str
    count: int
    index: int


class DailyTries(Value):
    """Number of prompts that a reviewer sent to unreleased adapters, on the last UTC day on which there was one."""

    by: str
    day: str
    count: int


def delegation_key(delegator: str, delegate: str, function: str) -> str:
    return f"{delegator}/{delegate}/{function}"


def answers_key(unit: str, adapter: str) -> str:
    return f"{unit}/{adapter}"


TOO_MANY_DECISIONS = RefusalCode(
    "too-many-decisions",
    "rule",
    "{id} has signed {signed} {decisions} of {adapter}, the most that one person can sign.",
    "Ask another person who has the role.",
)


def has_too_many(
    person: str, decisions: str, adapter: str, signed: int, *, for_all_units: bool = False
) -> list[Refusal]:
    """Return the refusal reason of a person who has signed the most decisions of one kind about an adapter version."""
    if signed < (MOST_FOR_ALL_UNITS if for_all_units else MOST_DECISIONS):
        return []
    return [TOO_MANY_DECISIONS(f"principal:{person}", signed=signed, decisions=decisions, adapter=adapter)]
