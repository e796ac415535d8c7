"""The tasks that are released to a unit, and how each wants to be asked."""

from __future__ import annotations

from typing import Any

from appliance.domain.core.records.serving import Release, release_key
from appliance.domain.data.teaching import Teaching, example_request
from appliance.domain.releases.approval import barred, released
from appliance.errors import NotFound
from appliance.workflows.core.context import Context
from appliance.workflows.data.teaching import read_teaching
from appliance.workflows.governance.callers import Caller


def list_tasks(context: Context, caller: Caller) -> list[dict[str, Any]]:
    """The tasks released to the unit that may answer now; to an application, those of them that are its own."""
    unit, state = caller.unit, context.ledger.state
    now = context.now(state)
    found = []
    for release in state.releases.values():
        adapter = released(state, unit, release.task)
        if release.unit != unit or not caller.may_ask(release.task):
            continue
        if adapter is not None and not barred(state, release, adapter, now):
            found.append({"id": release.task, "object": "model", "created": 0, "owned_by": unit})
    return found


def describe_task(context: Context, caller: Caller, task: str) -> dict[str, Any]:
    """One of them, and how it wants to be asked; to a unit, what is not released to it is not there."""
    state, unit = context.ledger.state, caller.unit
    release = state.releases.get(release_key(unit, task))
    adapter = released(state, unit, task)
    dataset = None if adapter is None else state.datasets.get(adapter.dataset)
    for model in list_tasks(context, caller):
        if model["id"] == task and release is not None and dataset is not None:
            return {**model, **_taught(release, read_teaching(context, dataset))}
    raise no_model(caller, task)


def no_model(caller: Caller, task: str) -> NotFound:
    who, may = caller.unit, ""
    if caller.application is not None:
        who, may = f"{caller.application} of {caller.unit}", f"; it was enrolled for {', '.join(caller.tasks)}"
    return NotFound(f"model: expected one released to {who}, got {task!r}{may}", code="model-not-found")


def _taught(release: Release, teaching: Teaching) -> dict[str, Any]:
    """What a unit is told of an adapter's training: nothing of a row, and no instruction that was erased."""
    adds = release.current.adds_instruction
    return {
        "trained_for": teaching.about.task,
        "instruction": teaching.instruction,
        "adds_instruction": adds,
        "labels": list(teaching.about.labels),
        "example": example_request(release.task, teaching, added=adds),
    }
