"""Scheduled integrity checks: every sealed folder is hashed again."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from appliance.domain.core.action import EventRule
from appliance.domain.core.case import Case, Changes
from appliance.domain.core.entry import MAX_SUBJECTS, Event
from appliance.domain.core.records.data import Base
from appliance.domain.core.records.runs import Adapter
from appliance.domain.core.state import Table
from appliance.errors import Denied


class ArtifactsChecked(Event):
    """The event of a scheduled check of every sealed folder that the ledger names.

    `changed` are the folders whose hash differs from their manifest; adapters and bases among them were quarantined
    before. `unread` are the folders that could not be read. The first of them, as many as fit, are the entry's
    subjects.
    """

    type = "artifacts.checked"
    outcomes = ("success", "failure")
    folders: int = Field(ge=0)
    size: int = Field(ge=0)
    changed: tuple[str, ...] = Field(max_length=1000)
    unread: tuple[str, ...] = Field(max_length=1000)

    def about(self) -> tuple[str, ...]:
        return (*self.changed, *self.unread)[:MAX_SUBJECTS]


def apply_artifact_check(case: Case) -> Changes:
    """Check that all changed adapters and bases were quarantined before this entry; nothing changes."""
    body = case.of(ArtifactsChecked)
    outcome = "failure" if body.changed or body.unread else "success"
    case.require(case.entry.outcome == outcome, "outcome", outcome, case.entry.outcome)
    for subject in body.changed:
        row = _find_row(case, "changed", subject)
        if isinstance(row, Adapter | Base):
            case.require(row.quarantined is not None, subject, "quarantine before", "none")
    for subject in body.unread:
        _find_row(case, "unread", subject)
    return []


def _find_row(case: Case, what: str, subject: str) -> object:
    kind, _, name = subject.partition(":")
    state = case.state
    tables: tuple[Table[Any], ...] = (state.adapters, state.bases, state.datasets, state.validation_sets)
    row = next((table.get(name) for table in tables if table.kind == kind), None)
    if row is None:
        raise Denied(f"entry {case.entry.index}: {what}: expected a subject of the ledger, got {subject}")
    return row


EVENTS = (EventRule(ArtifactsChecked, apply_artifact_check),)
