"""The entries about answering: releases, admissions, slots and requests."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from appliance.domain.event import Event, Ordered
from appliance.domain.names import Commitment, Digest, Identifier, Time, VersionedName


def name_request(milliseconds: int, random: bytes) -> str:
    """A UUID of version 7 (RFC 9562) without hyphens, from a Unix time and ten random bytes.

    Requests of one time stand side by side where entries are searched: a commit of many changes few pages there.
    """
    value = milliseconds << 80 | int.from_bytes(random)
    return f"{value & ~(0xF << 76 | 3 << 62) | 7 << 76 | 2 << 62:032x}"


def _slot(unit: str, task: str, adapter: str) -> tuple[str, ...]:
    return f"unit:{unit}", f"task:{task}", f"adapter:{adapter}"


class ReleaseActivated(Ordered):
    type = "release.activated"


class ReleaseRolledBack(Ordered):
    type = "release.rolled-back"


class AdapterExported(Ordered):
    """`standing`: the rows of the state that an admission of this release rests on (`domain/exports.py`)."""

    type = "adapter.exported"
    documents = ("order", "standing")


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
        return _slot(self.unit, self.task, self.adapter)


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
        return _slot(self.unit, self.task, self.adapter)


class AdapterUnloaded(Event):
    """The slot is empty, and what it was answering is cut off. `last_token`: when the service gave the last token of
    this slot to a client; null where it gave none."""

    type = "adapter.unloaded"
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    admitted: int = Field(ge=1)
    reason: str
    last_token: Time | None

    def about(self) -> tuple[str, ...]:
        return _slot(self.unit, self.task, self.adapter)


class _OfRequest(Event):
    """By what a unit is answered: `admitted` is the entry by which that was admitted, `release` and `approvals` are
    those that it rested on."""

    request: str = Field(pattern=r"^[0-9a-f]{32}$")
    unit: Identifier
    task: Identifier
    adapter: VersionedName
    manifest: Digest
    admitted: int = Field(ge=1)
    release: int = Field(ge=1)
    approvals: tuple[int, ...]

    def about(self) -> tuple[str, ...]:
        return (f"request:{self.request}", *_slot(self.unit, self.task, self.adapter))

    @property
    def actor(self) -> str | None:
        return self.unit

    @property
    def answered_by(self) -> tuple[object, ...]:
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals


class RequestAdmitted(_OfRequest):
    """`token`: the digest of the PAE of the unit's token, by which it asked."""

    type = "request.admitted"
    token: Digest
    token_issued_at: Time
    prompt: Commitment = Field(description="of the prompt or the messages, under a key of this request's own")


class RequestFinished(_OfRequest):
    """Who was answered by what, by whose word: with its proof it is the answer's response record."""

    type = "request.finished"
    outcomes = ("success", "failure", "interrupted")
    finish_reason: str
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    answer: Commitment | None


class RequestRefused(Event):
    """`count`: how many it stands for; those that a limit refuses are appended once a minute."""

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
