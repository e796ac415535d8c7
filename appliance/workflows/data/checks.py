"""Rows are checked before they are imported: the same worker in the same walls, and nothing is recorded or kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from appliance.domain.core.names import Digest, Identifier, Value, versioned
from appliance.domain.core.words import unknown_word
from appliance.domain.data.imports import judges_only
from appliance.domain.data.standing import base_is
from appliance.domain.data.tasks import Format, Task, wrong_share
from appliance.domain.evaluation.basis import find_sets
from appliance.errors import ApplianceError, Denied, NotFound, refuse
from appliance.formats.core.fields import show
from appliance.workflows.core.context import Context
from appliance.workflows.core.defects import contain_defects
from appliance.workflows.core.workers import carry_out, check_walls, worker
from appliance.workflows.data.imports import DATASET_STEP, HELD_OUT, bounds_of, discard_unwanted

FOUND = (
    "rows",
    "train_rows",
    "held_out_rows",
    "labels",
    "label_count",
    "similar_labels",
    "duplicates",
    "duplicate_count",
    "overlaps",
    "max_tokens",
    "mean_tokens",
    "context_length",
    "errors",
    "error_count",
)
"""What is reported of a worker's findings (ml/data/findings.py)."""
_KIND = "check"
MOST_CHECKS = 8
"""Of all people, that have not ended."""


class Rows(Value):
    """What is to be checked: uploaded files, and what an import would say of them."""

    task: Task
    format: Format
    file: Digest
    columns: dict[str, str] = Field(default_factory=dict)
    labels: list[str] = Field(default_factory=list, max_length=1000)
    instruction: str = Field(default="", max_length=200_000)
    base: Identifier | None = None
    seed: int = Field(default=1, ge=0, le=2**31 - 1)
    held_out: str = "0.2"
    held_out_file: Digest | None = None
    judges: bool = False
    """Whether they are for a validation set, of which no row is trained on."""
    keep: bool = False
    """Whether the uploads stay where nothing is wrong with them: an import follows."""

    @property
    def uploads(self) -> list[str]:
        return [self.file] if self.held_out_file is None else [self.file, self.held_out_file]


def order_check(context: Context, principal: str, rows: Rows) -> str:
    """In a queue of its own, so that it holds up no import. The key under which its end is asked for, by the same
    person, who has one check at a time."""
    person = context.ledger.state.principals.get(principal)
    if person is None or not (person.has("operator") or person.has("validator")):
        raise Denied(f"dataset check: expected an operator or a validator, got {principal}")
    if not person.has("validator"):
        with context.ledger.lock:
            against = [reason for digest in rows.uploads for reason in judges_only(context.ledger.state, digest)]
        if against:
            raise Denied("dataset check", reasons=tuple(against))
    if rows.held_out_file is None:
        refuse("dataset", wrong_share(rows.held_out))
    for digest in rows.uploads:
        context.artifacts.upload(digest)
    if rows.base is not None:
        _base(context, rows.base)
    key = context.progress.open_one(_KIND, principal, MOST_CHECKS)
    context.checks.put(partial(_carry_through, context, key, rows, context.clock().timestamp()))
    return key


def check_status(context: Context, principal: str, key: str) -> dict[str, Any]:
    """The result is shown only to the principal who asked for it, since it quotes rows."""
    stream = context.progress.read_own(key, principal) if key.startswith(f"{_KIND}:{principal}:") else None
    if stream is None:
        raise NotFound(f"dataset check: expected the key of a check that {principal} started, got {show(key)}")
    return {"result": stream.result, "error": stream.error, "ended": stream.ended}


def _base(context: Context, name: str) -> Path:
    """The base's folder. Its bytes are not hashed again: nothing that is kept is made of them."""
    state = context.ledger.state
    base = state.bases.get(name)
    if base is None:
        raise NotFound(unknown_word("base", name, [key for key, _ in state.bases.items()], "an imported one"))
    if reasons := base_is(state, name, base.digest):
        raise Denied(reasons[0])
    return context.artifacts.path(base.digest)


def _open_sets(context: Context, rows: Rows) -> list[tuple[str, Path]]:
    """The validation sets that a run on these rows could be judged on, but blind ones: what a check says of them would
    say what they hold."""
    state = context.ledger.state
    base = state.bases.get(rows.base or "")
    with context.ledger.lock:
        known = [one.name for one in state.validation_sets.values() if one.task == rows.task and not one.blind]
        found = [] if base is None else find_sets(state, known, base.digest).values()
    return [(versioned(one.name, one.version), context.artifacts.path(one.digest)) for one in found if not one.blind]


def _carry_through(context: Context, key: str, rows: Rows, requested_at: float) -> None:
    try:
        with contain_defects("dataset check"):
            found = _check(context, key, rows)
    except ApplianceError as error:
        discard_unwanted(context, rows.uploads, requested_at)
        context.progress.end(key, error={"code": error.code, "message": error.message})
    else:
        if not rows.keep or found["error_count"]:
            discard_unwanted(context, rows.uploads, requested_at)
        context.progress.end(key, result=found)


def _check(context: Context, key: str, rows: Rows) -> dict[str, Any]:
    with context.artifacts.staging() as source:
        given = source / f"rows.{rows.format}"
        context.artifacts.place_upload(rows.file, given)
        task: dict[str, Any] = {
            "task": "check",
            "teaches": rows.task,
            "source": str(given),
            "format": rows.format,
            "columns": rows.columns,
            "labels": rows.labels,
            "seed": rows.seed,
            "held_out": rows.held_out,
            "judges": rows.judges,
        }
        if rows.held_out_file is not None:
            context.artifacts.place_upload(rows.held_out_file, source / HELD_OUT)
            task["held_out_source"] = str(source / HELD_OUT)
        read: tuple[Path, ...] = (source,)
        if rows.base is not None:
            base = _base(context, rows.base)
            task |= {"base": str(base), "instruction": rows.instruction}
            read = (source, base)
            sets = [] if rows.judges else _open_sets(context, rows)
            task["sets"] = [{"name": name, "folder": str(folder)} for name, folder in sets]
            read = (*read, *(folder for _, folder in sets))
        bounds = bounds_of(context, source.iterdir(), DATASET_STEP)
        with worker(context, key, "appliance.worker.prepare", read=read, cpu_s=bounds.cpu_s) as started:
            check_walls(started)
            result = carry_out(started, task, bounds=bounds)
    return {name: result[name] for name in FOUND}
