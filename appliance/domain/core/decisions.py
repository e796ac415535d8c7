"""What the state remembers of a decision on a release: who asked for it, under which conditions, what was found, and
who may decide in another's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from appliance.domain.core.names import Digest, Identifier, Time, Value

Decision = Literal["approve", "approve-with-conditions", "request-changes", "reject", "withdraw"]
"""A reviewer's decision."""
APPROVALS: tuple[Decision, ...] = ("approve", "approve-with-conditions")
"""The decisions that approve, and have a date."""
Part = Literal["changes", "findings", "quality"]
"""A part of the review page that a reviewer opens before an approval in the console."""
PARTS: tuple[Part, ...] = ("changes", "findings", "quality")
FindingKind = Literal["issue", "exception", "limitation"]
Severity = Literal["low", "medium", "high", "critical"]


class Opened(Value):
    """A part of the review page that the signer's browser session fetched, or their command line printed, before the
    decision. `digest`: of the part's value (docs/formats/review-page.md). It does not say that anybody read it."""

    part: Part
    digest: Digest


class Conditions(Value):
    """What the service enforces while a release rests on them. All hold at once; a member that says nothing is null, or
    empty."""

    not_before: Time | None = Field(description="no answer before it")
    not_after: Time | None = Field(description="no answer at this time or after it")
    tasks: tuple[Identifier, ...] = Field(max_length=16, description="the tasks it may answer; empty: any")
    answers_a_day: int | None = Field(ge=1, le=1_000_000_000, description="requests admitted in one day of UTC")

    def say_nothing(self) -> bool:
        return not self.tasks and (self.not_before, self.not_after, self.answers_a_day) == (None, None, None)


@dataclass(frozen=True, slots=True)
class Delegated:
    """In whose place a reviewer decided, and the delegation's entry and key."""

    principal: str
    keyid: str
    index: int


@dataclass(frozen=True, slots=True)
class ReviewRecord:
    index: int
    order: str
    reviewer: str
    keyid: str
    field: str
    unit: str
    decision: Decision
    valid_until: Time | None
    """Of an approval; no other decision has one."""
    time: Time
    request: str | None
    """The release request that it was made on, by its order."""
    conditions: Conditions | None
    on_behalf_of: Delegated | None

    @property
    def approves(self) -> bool:
        return self.decision in APPROVALS


class ReleaseRequest(Value):
    """Asked for by the person who ordered the run; or opened by the entry that released a version in an emergency,
    which has neither exposure nor purpose and the highest tier."""

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
    """What a reviewer found, by the entry `index`. `closed`: the entry that closed it last, and `closed_by` its key.
    `accepts_verdict`: an exception by which the adapter may answer though its verdict was not passed."""

    index: int
    order: str
    kind: FindingKind
    severity: Severity
    blocks: bool
    accepts_verdict: bool
    field: str
    finder: str
    keyid: str
    owner: str
    due: Time
    closed: int | None = None
    closed_by: str | None = None
    closed_keyid: str | None = None


class Delegation(Value):
    """A reviewer's own field, given to another person until a time."""

    delegator: str
    delegate: str
    field: str
    until: Time
    keyid: str
    index: int


class DailyAnswers(Value):
    """Requests that were admitted to an adapter for a unit, in the last day on which a condition counted them."""

    unit: str
    adapter: str
    day: str
    count: int


class Look(Value):
    """A look at a sealed adapter that has not ended: `count` rows, or prompts, as the order says. `index`: the entry
    that it was ordered by."""

    order: str
    kind: Literal["samples", "try"]
    adapter: str
    by: str
    count: int
    index: int


class DailyTries(Value):
    """Prompts that a reviewer put to adapters that are not released, on the last day of UTC on which they put any."""

    by: str
    day: str
    count: int


def delegation_key(delegator: str, delegate: str, field: str) -> str:
    return f"{delegator}/{delegate}/{field}"


def answers_key(unit: str, adapter: str) -> str:
    return f"{unit}/{adapter}"
