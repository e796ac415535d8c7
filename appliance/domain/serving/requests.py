"""A unit's requests: admitted, finished, refused."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.event import Event
from appliance.domain.core.names import (
    Commitment,
    Digest,
    Identifier,
    Nonce,
    OtherEngine,
    Time,
    VersionedName,
    add_seconds,
)
from appliance.domain.core.records.serving import OpenRequest, release_key
from appliance.domain.core.roles import is_person
from appliance.domain.core.signatures import token_revoked
from appliance.domain.core.texts import check_unerased
from appliance.domain.core.verb import EventRule
from appliance.domain.releases.conditions import count_answer
from appliance.domain.serving.applications import check_asker
from appliance.domain.serving.slots import answering_slot, slot_subjects
from appliance.errors import Denied, NotAuthenticated

MOST_MESSAGE = 1_000
TOKEN_SLACK_S = 600
"""A request waits at most so long for its entry."""


def name_request(milliseconds: int, random: bytes) -> str:
    """A UUID of version 7 (RFC 9562) without hyphens, from a Unix time and ten random bytes.

    Requests of one time stand side by side where entries are searched: a commit of many changes few pages there.
    """
    value = milliseconds << 80 | int.from_bytes(random)
    return f"{value & ~(0xF << 76 | 3 << 62) | 7 << 76 | 2 << 62:032x}"


class _OfRequest(Event):
    """By what a unit is answered: `admitted` is the entry by which that was admitted, `release` and `approvals` are
    those that it rested on."""

    request: Nonce
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    manifest: Digest
    admitted: int = Field(ge=1)
    release: int = Field(ge=1)
    approvals: tuple[int, ...]
    instruction: Commitment | None = Field(
        description="of the dataset's instruction, where the service put it in as the system message"
    )

    def about(self) -> tuple[str, ...]:
        return (f"request:{self.request}", *slot_subjects(self.unit, self.task, self.adapter))

    @property
    def actor(self) -> str | None:
        return self.unit

    @property
    def answered_by(self) -> tuple[object, ...]:
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals


class RequestAdmitted(_OfRequest):
    """`token`: the digest of the PAE of the unit's token, by which it asked; of an application's, of its text."""

    type = "request.admitted"
    application: Identifier | None = Field(description="the unit's application that the token was issued to, if any")
    token: Digest
    token_issued_at: Time
    prompt: Commitment = Field(
        description="of the prompt or the messages as the model is given them, under a key of this request's own"
    )


class RequestFinished(_OfRequest):
    """Who was answered by what, by whose word: with its proof it is the answer's response record. `engine`: what
    answered, if it is not the appliance's own engine; what that answers can depend on the requests beside it."""

    type = "request.finished"
    outcomes = ("success", "failure", "interrupted")
    finish_reason: str
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    answer: Commitment | None
    engine: OtherEngine | None


class RequestRefused(Event):
    """`unit`: no person's name. `count`: how many refusals it counts; those that a limit refuses are appended once
    a minute."""

    type = "request.refused"
    outcomes = ("denied",)
    unit: Identifier
    code: str
    message: str
    count: int = Field(ge=1)

    def about(self) -> tuple[str, ...]:
        return (f"unit:{self.unit}",)

    @property
    def actor(self) -> str | None:
        return self.unit


def request_admitted(case: Case) -> Changes:
    """Answered only by what is loaded for this unit and task, admissible at this moment, and within the day's count."""
    body = case.of(RequestAdmitted)
    slot, clearance, changes = answering_slot(case, body.unit, body.task, body.admitted)
    case.require(slot.loaded is not None, "slot", "a loaded adapter", "one that is admitted only")
    expected, got = slot.answered_by, body.answered_by
    case.require(got == expected, "what answers", expected, got)
    if revoked := token_revoked(case.state, body.unit, body.token, body.token_issued_at):
        raise NotAuthenticated(f"entry {case.entry.index}: {revoked}", code="revoked")
    if body.token not in case.state.issued_tokens:  # of those the log has the time itself
        _check_age(case, body.token_issued_at)
    check_asker(case, body.unit, body.application, body.token, body.token_issued_at, body.task)
    case.require(body.request not in case.state.requests, "request", "a new one", body.request)
    _check_instruction(case, body)
    request = OpenRequest(
        id=body.request,
        unit=body.unit,
        task=body.task,
        adapter=body.adapter,
        manifest=body.manifest,
        admitted=body.admitted,
        release=body.release,
        approvals=body.approvals,
        instruction=body.instruction,
        entry=case.entry.index,
        process=slot.process,
        engine=slot.engine,
    )
    return [*changes, *count_answer(case, clearance), (case.state.requests, body.request, request)]


def _check_age(case: Case, issued_at: Time) -> None:
    """A token's time is what revocations by time go by. A browser's session counts as a token, too."""
    rules, now = case.state.parameters, case.entry.time
    longest = max(rules.token_lifetime_s, rules.session_lifetime_s) + TOKEN_SLACK_S
    least, most = add_seconds(now, -longest), add_seconds(now, rules.clock_skew_s)
    case.require(least <= issued_at <= most, "token_issued_at", f"a time from {least} to {most}", issued_at)


def _check_instruction(case: Case, body: RequestAdmitted) -> None:
    """The service puts in nothing but the instruction of the adapter's own dataset, and only where the release says so
    and the text stands."""
    if body.instruction is None:
        return
    state = case.state
    release = state.releases.get(release_key(body.unit, body.task))
    adapter = state.adapters.get(body.adapter)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    adds = release is not None and release.current.adds_instruction
    expected = dataset.instruction if adds and dataset is not None else None
    case.require(body.instruction == expected, "instruction", expected, body.instruction)
    check_unerased(state, case.entry, [body.instruction])


def request_finished(case: Case) -> Changes:
    body = case.of(RequestFinished)
    record = case.state.requests.get(body.request)
    if record is None:
        raise Denied(f"entry {case.entry.index}: request: expected an open one, got {body.request}")
    expected, got = record.answered_by, body.answered_by
    case.require(got == expected, "what answers", expected, got)
    case.require(body.instruction == record.instruction, "instruction", record.instruction, body.instruction)
    case.require(body.engine == record.engine, "engine", record.engine, body.engine)
    if record.cut:
        ended = case.entry.outcome
        case.require(ended != "success", "outcome", "none but failure or interrupted: its slot was emptied", ended)
    return [(case.state.requests, body.request, None)]


def request_refused(case: Case) -> Changes:
    unit = case.of(RequestRefused).unit
    case.require(not is_person(case.state, unit), "unit", "no person", unit)
    return []


EVENTS = (
    EventRule(RequestAdmitted, request_admitted),
    EventRule(RequestFinished, request_finished),
    EventRule(RequestRefused, request_refused),
)
