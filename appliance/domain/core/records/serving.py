"""Records of releases, their exports, the slots that serve them, and open requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from appliance.domain.core.names import Identifier, OtherEngine, Time, Value


@dataclass(frozen=True, slots=True)
class Activation:
    """One activation of an adapter version for a unit's served model."""

    index: int
    order: str
    adapter: str
    manifest: str
    signer: str
    keyid: str
    kind: Literal["activate", "rollback", "break-glass"]
    adds_instruction: bool
    """True if the service adds the dataset's instruction to requests without a system message."""
    until: Time | None = None
    """Time until which an emergency release serves, even if its approvals end before."""
    countersigned_keyid: str | None = None
    """The second person's key of an emergency release."""


class Release(Value):
    """The adapter versions that were active for a unit's served model. The last activation is the current one."""

    unit: str
    served_model: str
    history: tuple[Activation, ...]

    @property
    def current(self) -> Activation:
        return self.history[-1]

    @property
    def earlier(self) -> tuple[Activation, ...]:
        """The last activation of each other version, the latest first. A rollback names one of these versions."""
        found: dict[str, Activation] = {}
        for step in reversed(self.history):
            if step.adapter != self.current.adapter:
                found.setdefault(step.adapter, step)
        return tuple(found.values())


def release_key(unit: str, served_model: str) -> str:
    return f"{unit}/{served_model}"


class Export(Value):
    """A release that was exported to a unit's own host by the entry `index`.

    It can be loaded there until its date, even if something is revoked.
    """

    unit: str
    served_model: str
    adapter: str
    manifest: str
    index: int
    valid_until: Time


def export_key(unit: str, served_model: str, index: int) -> str:
    """Return the key of an export's row. It contains the entry, since a release can have several valid exports."""
    return f"{release_key(unit, served_model)}/{index}"


class ServiceProcess(Value):
    """One of several processes of the service, since the entry of its start.

    `ended` is the entry of its stop, or the entry by which another process took over.
    """

    name: Identifier
    epoch: int
    since: int
    ended: int | None = None


class Slot(Value):
    """An adapter that serves a unit's served model in the engine of a process.

    `process` is None where the service is one process.
    """

    unit: str
    served_model: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    """The entries that its admission depends on."""
    process: Identifier | None = None
    engine: OtherEngine | None = None
    """The engine that serves it, if it is not the service's own."""
    loaded: int | None = None
    loaded_at: Time | None = None

    @property
    def key(self) -> str:
        return slot_key(self.unit, self.served_model, self.process)

    @property
    def answered_by(self) -> tuple[object, ...]:
        """Return the values that identify the slot in the entries of a request."""
        return self.unit, self.served_model, self.adapter, self.manifest, self.admitted, self.release, self.approvals

    @property
    def answering(self) -> dict[str, Any]:
        """Return the fields that the entries of a request record about the slot."""
        return self.model_dump(exclude={"engine", "process", "loaded", "loaded_at"})


def slot_key(unit: str, served_model: str, process: str | None) -> str:
    """Return the key of a slot's row. It contains the process, since each process has an engine of its own."""
    return release_key(unit, served_model) if process is None else f"{release_key(unit, served_model)}@{process}"


class OpenRequest(NamedTuple):
    """A request that was admitted and has not ended."""

    id: str
    unit: str
    served_model: str
    adapter: str
    manifest: str
    admitted: int
    release: int
    approvals: tuple[int, ...]
    instruction: str | None
    """The commitment of the system message that the service added, or None."""
    entry: int
    token: str
    token_issued_at: Time
    application: str | None = None
    """The application that the token was issued to, if any."""
    process: str | None = None
    """The process that serves it, where there are several."""
    engine: OtherEngine | None = None
    is_cut_off: bool = False
    """True if its slot was emptied: the request can then end, but not successfully."""

    @property
    def answered_by(self) -> tuple[object, ...]:
        return self.unit, self.served_model, self.adapter, self.manifest, self.admitted, self.release, self.approvals
