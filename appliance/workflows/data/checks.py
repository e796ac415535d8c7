"""Checks of rows before their import, by the worker and sandbox of imports. Nothing is recorded in the ledger.

A person can check only their own uploads, and only this person sees the result. The result of a blind set contains only
numbers.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from appliance.api.data import CheckStatus, RowFindings, RowsToCheck
from appliance.api.runs import WorkError
from appliance.domain.core.names import versioned
from appliance.domain.data.imports import is_blind_file, refuse_file_for_evaluation
from appliance.domain.data.kinds import find_share_problem
from appliance.domain.data.validity import refuse_invalid_base
from appliance.domain.evaluation.basis import find_sets
from appliance.errors import ApplianceError, Denied, refuse
from appliance.store.files.artifacts import UploadKey
from appliance.workflows.core.context import LedgerContext, RunContext, WorkerContext
from appliance.workflows.core.jobs import contain_defects
from appliance.workflows.core.workers import carry_out, check_sandbox, worker
from appliance.workflows.data.imports import DATASET_STEP, HELD_OUT, bounds_of, discard_unwanted

_QUOTING: dict[str, Any] = {"labels": {}, "similar_labels": (), "duplicates": (), "overlaps": {}}
"""Fields that are emptied in the result of a blind set. Its `errors` are reduced to line numbers."""
_LINE = re.compile(r"(?:dataset|held-out file), (?:line|row) [0-9]+")
_HIDDEN = "the rows of a blind set cannot be read; the reason is not shown, because it could quote a row"
_KIND = "check"
MOST_CHECKS = 8
"""Most unfinished checks of all people together."""


def order_check(context: RunContext, principal: str, rows: RowsToCheck) -> str:
    """Queue a check of a person's own uploads, and return its key. A person has one check at a time.

    Raises:
        NotFound: This person did not send one of the files, or the base is unknown.
        Denied: The person may not check rows, or may not check this file.
        RateLimited: The person has another unfinished check, or all people together have too many.
    """
    person = context.ledger.state.principals.get(principal)
    if person is None or not (person.has("operator") or person.has("validator")):
        raise Denied(f"dataset check: expected an operator or a validator, got {principal}")
    for digest in rows.uploads:
        context.artifacts.upload(principal, digest)
    with context.ledger.lock:
        reasons = [
            reason for digest in rows.uploads for reason in refuse_file_for_evaluation(context.ledger.state, digest)
        ]
        blind = rows.blind or any(is_blind_file(context.ledger.state, digest) for digest in rows.uploads)
    if reasons and not person.has("validator"):
        raise Denied("dataset check", refusals=reasons)
    if rows.held_out_file is None:
        refuse("dataset", find_share_problem(rows.held_out))
    if rows.base is not None:
        _find_base(context, rows.base)
    key = context.progress.open_one(_KIND, principal, MOST_CHECKS)
    rows = rows.model_copy(update={"blind": blind})
    context.checks.put(partial(_run_check, context, key, principal, rows, context.clock().timestamp()))
    return key


def check_status(context: WorkerContext, principal: str, key: str) -> CheckStatus:
    """Return the state of a check.

    Raises:
        NotFound: The principal did not start this check. Others may not see it, since it quotes rows.
    """
    stream = context.progress.read_personal(_KIND, key, principal)
    return CheckStatus(result=stream.result, error=stream.error, ended=stream.ended)


def _find_base(context: LedgerContext, name: str) -> Path:
    """Return the base's folder. Its bytes are not hashed again, since the check keeps no result of them."""
    state = context.ledger.state
    base = state.bases.require(name)
    if reasons := refuse_invalid_base(state, name, base.digest):
        raise Denied(f"base {name}", refusals=reasons)
    return context.artifacts.path(base.digest)


def _open_sets(context: LedgerContext, rows: RowsToCheck) -> list[tuple[str, Path]]:
    """Return the validation sets on which a run on these rows could be evaluated, except blind ones.

    The findings of a check about a blind set would reveal its rows.
    """
    state = context.ledger.state
    base = state.bases.get(rows.base or "")
    with context.ledger.lock:
        known = [s.name for s in state.validation_sets.values() if s.dataset_kind == rows.dataset_kind and not s.blind]
        found = [] if base is None else find_sets(state, known, base.digest).values()
    return [(versioned(s.name, s.version), context.artifacts.path(s.digest)) for s in found if not s.blind]


def _run_check(context: RunContext, key: str, sender: str, rows: RowsToCheck, requested_at: float) -> None:
    uploads = [UploadKey(sender, digest) for digest in rows.uploads]
    try:
        with contain_defects("dataset check"):
            found = _check(context, key, sender, rows)
    except ApplianceError as error:
        discard_unwanted(context, uploads, requested_at)
        context.progress.end(key, error=WorkError(code=error.code, message=_HIDDEN if rows.blind else error.message))
    else:
        if not rows.keep or found.error_count:
            discard_unwanted(context, uploads, requested_at)
        context.progress.end(key, result=_hide_rows(found) if rows.blind else found)


def _hide_rows(found: RowFindings) -> RowFindings:
    """Return the numbers of a check, and the lines that have an error."""
    lines = [_LINE.match(error) for error in found.errors]
    return found.model_copy(update={**_QUOTING, "errors": tuple(line[0] if line else "the file" for line in lines)})


def _check(context: RunContext, key: str, sender: str, rows: RowsToCheck) -> RowFindings:
    with context.artifacts.staging() as source:
        given = source / f"rows.{rows.format}"
        context.artifacts.place_upload(sender, rows.file, given)
        task: dict[str, Any] = {
            "task": "check",
            "dataset_kind": rows.dataset_kind,
            "source": str(given),
            "format": rows.format,
            "columns": rows.columns,
            "labels": list(rows.labels),
            "seed": rows.seed,
            "held_out": rows.held_out,
            "is_validation_set": rows.is_validation_set,
        }
        if rows.held_out_file is not None:
            context.artifacts.place_upload(sender, rows.held_out_file, source / HELD_OUT)
            task["held_out_source"] = str(source / HELD_OUT)
        read: tuple[Path, ...] = (source,)
        if rows.base is not None:
            base = _find_base(context, rows.base)
            task |= {"base": str(base), "instruction": rows.instruction}
            read = (source, base)
            sets = [] if rows.is_validation_set else _open_sets(context, rows)
            task["sets"] = [{"name": name, "folder": str(folder)} for name, folder in sets]
            read = (*read, *(folder for _, folder in sets))
        bounds = bounds_of(context, source.iterdir(), DATASET_STEP)
        with worker(context, key, "appliance.worker.prepare", read=read, cpu_s=bounds.cpu_s) as started:
            check_sandbox(started)
            result = carry_out(started, task, bounds=bounds)
    return RowFindings.model_validate_json(json.dumps({name: result[name] for name in RowFindings.model_fields}))
