"""Releases, their exports, the slots that answer, and requests that are open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from appliance.domain.core.names import Identifier, OtherEngine, Time, Value


@dataclass(frozen=True, slots=True)
class Activation:
    index: int
    order: str
    adapter: str
    manifest: str
    signer: str
    keyid: str
    kind: Literal["activate", "roll-back", "break-glass"]
    adds_instruction: bool
    """The service puts the dataset's instruction in where a request has no system message."""
    until: Time | None = None
    """Of an emergency: it answers until then, whatever has become of its approvals."""
    endorsed_keyid: str | None = None
    """Of an emergency: the second person's key."""


class Release(Value):
    """What a unit's clients get for a task name today, and what they got before; the last activation counts."""

    unit: str
    task: str
    history: tuple[Activation, ...]

    @property
    def current(self) -> Activation:
        return self.history[-1]


def release_key(unit: str, task: str) -> str:
    return f"{unit}/{task}"


class Export(Value):
    """A release that left for a host of the unit's own, by the entry `index`. It can be loaded there until its date,
    whatever is revoked."""

    unit: str
    task: str
    adapter: str
    manifest: str
    index: int
    valid_until: Time


def export_key(unit: str, task: str, index: int) -> str:
    """By the entry too: a release can be exported again before its last export has ended."""
    return f"{release_key(unit, task)}/{index}"


class ServiceProcess(Value):
    """One of several processes of the appliance, since the entry of its start; `ended`: by its own word, or by that of
    another which took over from it."""

    name: Identifier
    epoch: int
    since: int
    ended: int | None = None


class Slot(Value):
    """An adapter that answers for a unit's task in the engine of a process; None where the appliance is one process."""

    unit: str
    task: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    """The entries that its admission rested on."""
    process: Identifier | None = None
    engine: OtherEngine | None = None
    """What answers, if it is not the appliance's own engine."""
    loaded: int | None = None
    loaded_at: Time | None = None

    @property
    def key(self) -> str:
        return slot_key(self.unit, self.task, self.process)

    @property
    def answered_by(self) -> tuple[object, ...]:
        """What the entries of a request that it answers name."""
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals

    @property
    def answering(self) -> dict[str, Any]:
        """What the entries of a request say of the slot that answers it."""
        return self.model_dump(exclude={"engine", "process", "loaded", "loaded_at"})


def slot_key(unit: str, task: str, process: str | None) -> str:
    """Each process has an engine of its own."""
    return release_key(unit, task) if process is None else f"{release_key(unit, task)}@{process}"


class OpenRequest(NamedTuple):
    id: str
    unit: str
    task: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    instruction: str | None
    """The commitment of the system message that the service put in, if it did."""
    entry: int
    process: str | None = None
    """The process that answers it, where there are several."""
    engine: OtherEngine | None = None
    cut: bool = False
    """Its slot was emptied: it can end, and not well."""

    @property
    def answered_by(self) -> tuple[object, ...]:
        return self.unit, self.task, self.adapter, self.manifest, self.admitted, self.release, self.approvals
