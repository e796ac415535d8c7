"""The start of a service: open work is closed as interrupted or continues, and folders that no entry names are
removed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from appliance.domain.core.entry import EntryDraft
from appliance.domain.core.records.runs import Run
from appliance.domain.core.records.serving import OpenRequest
from appliance.domain.core.state import State
from appliance.domain.data.imports import ImportFailed
from appliance.domain.governance.service import ServiceStarted
from appliance.domain.runs.conditions import find_withdrawn_input
from appliance.domain.runs.training import RunFailed
from appliance.domain.serving.requests import RequestFinished
from appliance.sandbox.description import detect_layers
from appliance.workflows.core.context import LedgerContext, RunContext
from appliance.workflows.core.record import append, append_all, conceal, draft_of, lease_of
from appliance.workflows.data.folders import destroy_unnamed_secrets
from appliance.workflows.data.imports import enqueue, make_interruption, queue_of
from appliance.workflows.integrity import list_sealed_folders
from appliance.workflows.runs import checkpoints, places, replay, steps, train
from appliance.workflows.serving.previews import make_event_without_answers

RUNS = "runs"
"""Lease of the queue of runs and replays, and of the care of stored data."""


def recover(context: RunContext) -> None:
    """Append the first entries of this start, and close or continue what the last one left open.

    Raises:
        Unavailable: These entries cannot be written.
    """
    epoch = context.processes.epoch if context.process is not None else None
    append(
        context,
        ServiceStarted(
            version=context.code.version,
            code=context.code.digest,
            layers=detect_layers(),
            process=context.process,
            epoch=epoch,
        ),
    )
    append_all(context, [*_requests_left(context), *_orders_left(context)])
    destroy_unnamed_secrets(context, list_named_artifacts(context.ledger.state))
    context.artifacts.sweep(partial(_refresh_named, context), partial(is_alone, context))
    context.runs_here = False
    take_up_runs(context)


def _refresh_named(context: LedgerContext) -> frozenset[str]:
    context.refresh()
    return list_named_artifacts(context.ledger.state)


def is_alone(context: LedgerContext) -> bool:
    """Return True if no other process is on this log at this moment."""
    context.processes.beat()
    return not context.processes.others


def take_up_runs(context: RunContext) -> None:
    """Take the queue of runs if this process has the role and no other process has the queue.

    Runs that the previous process left continue from their last training checkpoint, or are recorded as failed.
    """
    if context.runs_here or "runs" not in context.roles or not context.processes.acquire_lease(RUNS):
        return
    context.refresh()
    append_all(context, list(_runs_left(context.ledger.state)))
    steps.sweep(context)
    places.sweep(context, train.requeue_run)
    context.runs_here = True
    context.runs.put(partial(checkpoints.sweep, context))
    resume_work(context)


def close_orders(context: LedgerContext) -> None:
    """Record the end of imports and previews whose process has ended."""
    append_all(context, list(_orders_left(context)))


def _requests_left(context: LedgerContext) -> Iterator[EntryDraft]:
    """Yield the ends of requests from this process's previous start, or from a process without a name."""
    for request in context.ledger.state.requests.values():
        if request.process in (None, context.process) or context.process is None:
            yield end_request(request)


def end_request(request: OpenRequest) -> EntryDraft:
    """Return the draft of an interrupted request's end."""
    finished = RequestFinished(
        request=request.id,
        unit=request.unit,
        served_model=request.served_model,
        adapter=request.adapter,
        manifest=request.manifest,
        admitted=request.admitted,
        release=request.release,
        approvals=request.approvals,
        instruction=request.instruction,
        finish_reason="interrupted",
        prompt_tokens=0,
        completion_tokens=0,
        engine=request.engine,
        answer=None,
    )
    return draft_of(finished, outcome="interrupted")


def _orders_left(context: LedgerContext) -> Iterator[EntryDraft]:
    """Yield the ends of imports and previews that no running process works on. Files sent for them are gone with their
    process.
    """
    state, owned = context.ledger.state, context.processes.list_leases()
    for preview in state.previews.values():
        if lease_of(preview.order) in owned:
            continue
        yield draft_of(make_event_without_answers(preview, "interrupted"), outcome="interrupted")
    for record in state.imports.values():
        if record.status == "requested" and lease_of(record.order) not in owned:
            error = make_interruption()
            text = conceal(error.message)
            failed = ImportFailed(order=record.order, code=error.code, message=text.commitment)
            yield draft_of(failed, disclosures=(text,))


def _runs_left(state: State) -> Iterator[EntryDraft]:
    for run in state.runs.values():
        if run.status in ("running", "trained") and not train.can_continue_run(run):
            yield _make_failure(state, run)


def _make_failure(state: State, run: Run) -> EntryDraft:
    """Return the failure of a run that cannot continue, because its inputs were withdrawn or the service ended too
    early.
    """
    error = find_withdrawn_input(state, run)
    advice = f"resume it with: appliance run resume {run.id}" if run.step else "order it again"
    message = f"the service ended while the run was {run.status}; {advice}" if error is None else error.message
    code, text = "interrupted" if error is None else error.code, conceal(message)
    return draft_of(RunFailed(run=run.id, code=code, message=text.commitment), disclosures=(text,))


def resume_work(context: RunContext) -> None:
    """Continue interrupted runs, then queue waiting runs and replays, in the ledger's order."""
    busy = context.cluster_runs.busy
    runs = [run for run in context.ledger.state.runs.values() if run.on == "local" or not busy]
    for run in runs:
        if train.can_continue_run(run):
            train.resume_run(context, run.id)
    for run in runs:
        if run.status == "queued":
            train.enqueue(context, run.on)
    for wanted in context.ledger.state.replays.values():
        if wanted.status == "requested":
            replay.enqueue(context, wanted.order)


def start_missed_work(context: RunContext) -> None:
    """Start ordered work that never started, because the reply to its commit was lost and the client got an error."""
    if context.runs_here and not context.runs.busy:
        resume_work(context)
    mine = context.processes.list_own_leases()
    waiting = []
    for record in context.ledger.state.imports.values():
        is_own = context.processes.alone or lease_of(record.order) in mine
        if record.status == "requested" and is_own and not queue_of(context, record.action).busy:
            waiting.append(record)
    for record in waiting:
        enqueue(context, record.order, record.action, record.signer)


def list_named_artifacts(state: State) -> frozenset[str]:
    """Return every folder that some entry names."""
    return frozenset(folder.digest for folder in list_sealed_folders(state, quarantined=True))
