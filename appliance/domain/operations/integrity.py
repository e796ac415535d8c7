"""Sealed folders are hashed again on schedule."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import MAX_SUBJECTS
from appliance.domain.core.event import Event
from appliance.domain.core.records.adapters import Adapter
from appliance.domain.core.records.data import Base
from appliance.domain.core.table import Table
from appliance.domain.core.verb import EventRule
from appliance.errors import Denied


class ArtifactsChecked(Event):
    """Every sealed folder that the ledger names was hashed again, on schedule. `changed`: whatever does not hash to its
    manifest any more; adapters and bases among it are in quarantine by now. `unread`: what the disk did not give, so
    that nothing is known of its bytes. Subjects are the first, as many as fit."""

    type = "artifacts.checked"
    outcomes = ("success", "failure")
    folders: int = Field(ge=0)
    size: int = Field(ge=0)
    changed: tuple[str, ...] = Field(max_length=1000)
    unread: tuple[str, ...] = Field(max_length=1000)

    def about(self) -> tuple[str, ...]:
        return (*self.changed, *self.unread)[:MAX_SUBJECTS]


def artifacts_checked(case: Case) -> Changes:
    """What was found changed is out of use: an adapter or a base is in quarantine before this says so."""
    body = case.of(ArtifactsChecked)
    outcome = "failure" if body.changed or body.unread else "success"
    case.require(case.entry.outcome == outcome, "outcome", outcome, case.entry.outcome)
    for subject in body.changed:
        row = _find(case, "changed", subject)
        if isinstance(row, Adapter | Base):
            case.require(row.quarantined is not None, subject, "quarantine before", "none")
    for subject in body.unread:
        _find(case, "unread", subject)
    return []


def _find(case: Case, what: str, subject: str) -> object:
    kind, _, name = subject.partition(":")
    state = case.state
    rows: dict[str, Table[Any]] = {
        "adapter": state.adapters,
        "base": state.bases,
        "dataset": state.datasets,
        "validation-set": state.validation_sets,
    }
    row = rows[kind].get(name) if kind in rows else None
    if row is None:
        raise Denied(f"entry {case.entry.index}: {what}: expected what the ledger knows, got {subject}")
    return row


EVENTS = (EventRule(ArtifactsChecked, artifacts_checked),)
