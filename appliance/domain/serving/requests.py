"""Requests of a unit: entries and rules for their admission, end and refusal."""

from __future__ import annotations

from pydantic import Field

from appliance.domain.core.action import EventRule
from appliance.domain.core.case import Case, Changes, check_unerased
from appliance.domain.core.entry import Event
from appliance.domain.core.names import (
    Code,
    Commitment,
    Digest,
    FinishReason,
    Identifier,
    Nonce,
    OtherEngine,
    Time,
    VersionedName,
    add_seconds,
)
from appliance.domain.core.records.people import application_key
from appliance.domain.core.records.serving import OpenRequest, release_key
from appliance.domain.core.roles import is_person
from appliance.domain.core.signatures import token_revoked
from appliance.domain.releases.requests import count_answer
from appliance.domain.serving.slots import answering_slot, slot_subjects
from appliance.domain.serving.tokens import check_asker, find_application
from appliance.errors import Denied, NotAuthenticated

TOKEN_SLACK_S = 600
"""Longest time in seconds that a request waits for its entry."""


def name_request(milliseconds: int, random: bytes) -> str:
    """Return a UUID of version 7 (RFC 9562) without hyphens, from a Unix time in milliseconds and ten random bytes.

    Requests of similar times have neighbouring ids in the search index, so a commit changes few of its pages.
    """
    value = milliseconds << 80 | int.from_bytes(random)
    return f"{value & ~(0xF << 76 | 3 << 62) | 7 << 76 | 2 << 62:032x}"


class _RequestEvent(Event):
    """Base class of the entries about one request.

    `admitted`: the entry that admitted the slot. `release` and `approvals`: the entries on which that admission
    rested.
    """

    actor_kind = "the unit"
    request: Nonce
    unit: Identifier
    served_model: Identifier
    adapter: VersionedName
    manifest: Digest
    admitted: int = Field(ge=1)
    release: int = Field(ge=1)
    approvals: tuple[int, ...]
    instruction: Commitment | None = Field(
        description="commitment to the dataset's instruction, if the service added it as the system message"
    )

    def about(self) -> tuple[str, ...]:
        return (f"request:{self.request}", *slot_subjects(self.unit, self.served_model, self.adapter))

    @property
    def answered_by(self) -> tuple[object, ...]:
        """The slot, adapter, release and approvals that serve the request."""
        return self.unit, self.served_model, self.adapter, self.manifest, self.admitted, self.release, self.approvals


class RequestAdmitted(_RequestEvent):
    """The entry that a request was admitted.

    `token`: digest of the PAE of the unit's token, or of the text of an application's token.
    """

    type = "request.admitted"
    records = "requests"
    part = "opening"
    application: Identifier | None = Field(description="application of the unit that the token was issued to, if any")
    token: Digest
    token_issued_at: Time
    prompt: Commitment = Field(
        description="commitment to the prompt or messages as the model receives them, under a key of this request"
    )


class RequestFinished(_RequestEvent):
    """The entry that a request has ended. With its inclusion proof it is the response record.

    `engine`: the inference engine, if it is not the appliance's own. The responses of such an engine can depend on
    other requests in the batch.
    """

    type = "request.finished"
    records = "requests"
    part = "end"
    outcomes = ("success", "failure", "interrupted")
    finish_reason: FinishReason
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    answer: Commitment | None
    engine: OtherEngine | None


class RequestRefused(Event):
    """Refusals of a unit's requests with one code, counted for a minute.

    `application`: the one whose token was sent, if any. `served_model`: the requested one if it is released to the
    unit, else null, so that no text of a request is recorded.
    """

    type = "request.refused"
    records = "refusals"
    actor_kind = "the unit"
    outcomes = ("denied",)
    unit: Identifier
    application: Identifier | None
    served_model: Identifier | None
    code: Code
    count: int = Field(ge=1)

    def about(self) -> tuple[str, ...]:
        return (f"unit:{self.unit}", *((f"served-model:{self.served_model}",) if self.served_model else ()))


def apply_request_admission(case: Case) -> Changes:
    """Record an open request.

    The slot must be loaded for this unit and served model and admissible now, and the daily limit must not be reached.
    """
    body = case.of(RequestAdmitted)
    slot, clearance, changes = answering_slot(case, body.unit, body.served_model, body.admitted)
    case.require(slot.loaded is not None, "slot", "a loaded adapter", "one that is admitted only")
    expected, got = slot.answered_by, body.answered_by
    case.require(got == expected, "what answers", expected, got)
    if revoked := token_revoked(case.state, body.unit, body.token, body.token_issued_at):
        raise NotAuthenticated(f"entry {case.entry.index}: {revoked}", code="revoked")
    if body.token not in case.state.issued_tokens:  # for issued tokens the log has the time itself
        _check_age(case, body.token_issued_at)
    check_asker(case, body.unit, body.application, body.token, body.token_issued_at, body.served_model)
    case.require(body.request not in case.state.requests, "request", "a new one", body.request)
    _check_instruction(case, body)
    request = OpenRequest(
        id=body.request,
        unit=body.unit,
        served_model=body.served_model,
        adapter=body.adapter,
        manifest=body.manifest,
        admitted=body.admitted,
        release=body.release,
        approvals=body.approvals,
        instruction=body.instruction,
        entry=case.entry.index,
        token=body.token,
        token_issued_at=body.token_issued_at,
        application=body.application,
        process=slot.process,
        engine=slot.engine,
    )
    return [*changes, *count_answer(case, clearance), (case.state.requests, body.request, request)]


def _check_age(case: Case, issued_at: Time) -> None:
    """Check that the token's time is plausible, since revocations refer to it.

    A browser's session counts as a token, too.
    """
    rules, now = case.state.parameters, case.entry.time
    longest = max(rules.token_lifetime_s, rules.session_lifetime_s) + TOKEN_SLACK_S
    least, most = add_seconds(now, -longest), add_seconds(now, rules.clock_skew_s)
    case.require(least <= issued_at <= most, "token_issued_at", f"a time from {least} to {most}", issued_at)


def _check_instruction(case: Case, body: RequestAdmitted) -> None:
    """Check that an added instruction is the one of the adapter's dataset.

    It may be added only if the release says so and the text was not erased.
    """
    if body.instruction is None:
        return
    state = case.state
    release = state.releases.get(release_key(body.unit, body.served_model))
    adapter = state.adapters.get(body.adapter)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    adds = release is not None and release.current.adds_instruction
    expected = dataset.instruction if adds and dataset is not None else None
    case.require(body.instruction == expected, "instruction", expected, body.instruction)
    check_unerased(state, case.entry, [body.instruction])


def apply_request_end(case: Case) -> Changes:
    """Close an open request. It ends with success only if its release and its token are still valid at this entry."""
    body = case.of(RequestFinished)
    record = case.state.requests.get(body.request)
    if record is None:
        raise Denied(f"entry {case.entry.index}: request: expected an open one, got {body.request}")
    expected, got = record.answered_by, body.answered_by
    case.require(got == expected, "what answers", expected, got)
    case.require(body.instruction == record.instruction, "instruction", record.instruction, body.instruction)
    case.require(body.engine == record.engine, "engine", record.engine, body.engine)
    changes: Changes = []
    if case.entry.outcome == "success":
        case.require(not record.is_cut_off, "outcome", "failure or interrupted, since its slot was emptied", "success")
        changes = list(answering_slot(case, record.unit, record.served_model, record.admitted)[2])
        _check_token(case, record)
    return [*changes, (case.state.requests, body.request, None)]


def _check_token(case: Case, record: OpenRequest) -> None:
    """Refuse a token that was revoked, by itself or with its application. A token that expired is accepted."""
    if record.application is not None:
        find_application(case.state, record.unit, record.application)
    if ended := token_revoked(case.state, record.unit, record.token, record.token_issued_at):
        raise NotAuthenticated(f"entry {case.entry.index}: {ended}", code="revoked")


def apply_request_refusal(case: Case) -> Changes:
    """Check that the entry names a unit and, where it names them, a served model and an application of that unit."""
    body, state = case.of(RequestRefused), case.state
    case.require(not is_person(state, body.unit), "unit", "no person", body.unit)
    if body.served_model is not None:
        is_released = release_key(body.unit, body.served_model) in state.releases
        case.require(is_released, "served_model", f"one released to {body.unit}", body.served_model)
    if body.application is not None:
        is_enrolled = application_key(body.unit, body.application) in state.applications
        case.require(is_enrolled, "application", f"one of {body.unit}", body.application)
    return []


EVENTS = (
    EventRule(RequestAdmitted, apply_request_admission),
    EventRule(RequestFinished, apply_request_end),
    EventRule(RequestRefused, apply_request_refusal),
)
