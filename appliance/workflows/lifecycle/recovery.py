"""A service starts: what was left open is closed as interrupted, or goes on where it can; what nothing names goes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from appliance.domain.core.entry import Draft
from appliance.domain.core.records.runs import Run
from appliance.domain.core.records.serving import OpenRequest
from appliance.domain.core.state import State
from appliance.domain.data.imports import ImportFailed
from appliance.domain.governance.service import ServiceStarted
from appliance.domain.releases.looks import SamplesShown, TryFinished
from appliance.domain.runs.conditions import inputs_withdrawn
from appliance.domain.runs.training import RunFailed
from appliance.domain.serving.requests import RequestFinished
from appliance.runners.sandbox import detect_layers
from appliance.workflows.core.context import Context
from appliance.workflows.core.effects import lease_of
from appliance.workflows.core.record import append, append_all, conceal, draft_of
from appliance.workflows.data import imports as ingest
from appliance.workflows.data.folders import destroy_unnamed_secrets
from appliance.workflows.runs import checkpoints, places, replay, steps, train

RUNS = "runs"
"""The lease of the queue of runs and replays, and of the care of what is stored."""


def recover(context: Context) -> None:
    """The first entries of a service's life; raises when even these cannot be written."""
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
    destroy_unnamed_secrets(context, named_artifacts(context.ledger.state))
    context.artifacts.sweep(partial(_named_by_now, context), partial(is_alone, context))
    context.runs_here = False
    take_up_runs(context)


def _named_by_now(context: Context) -> frozenset[str]:
    context.refresh()
    return named_artifacts(context.ledger.state)


def is_alone(context: Context) -> bool:
    """Whether no other process is on this log at this moment."""
    context.processes.beat()
    return not context.processes.others


def take_up_runs(context: Context) -> None:
    """Of several processes with this role one has the queue: the first, and after its end another. What the one before
    left in the middle goes on from its last training checkpoint, or has failed."""
    if context.runs_here or "runs" not in context.roles or not context.processes.own(RUNS):
        return
    context.refresh()
    append_all(context, list(_runs_left(context.ledger.state)))
    steps.sweep(context)
    places.sweep(context, train.put_back)
    context.runs_here = True
    context.runs.put(partial(checkpoints.sweep, context))
    resume_work(context)


def close_orders(context: Context) -> None:
    """Of the imports and looks whose process has ended."""
    append_all(context, list(_orders_left(context)))


def _requests_left(context: Context) -> Iterator[Draft]:
    """Those of this process's life before, or of one that had no name."""
    for request in context.ledger.state.requests.values():
        if request.process in (None, context.process) or context.process is None:
            yield end_request(request)


def end_request(request: OpenRequest) -> Draft:
    finished = RequestFinished(
        request=request.id,
        unit=request.unit,
        task=request.task,
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


def _orders_left(context: Context) -> Iterator[Draft]:
    """The ends of imports and looks that no process that lives does. What a person sent for them went with their
    process."""
    state, owned = context.ledger.state, context.processes.owned()
    for look in state.looks.values():
        if lease_of(look.order) in owned:
            continue
        over = {"order": look.order, "adapter": look.adapter, "by": look.by, "code": "interrupted"}
        samples = look.kind == "samples"
        shown = SamplesShown(**over, rows=0, released=None) if samples else TryFinished(**over, answers=())
        yield draft_of(shown, outcome="interrupted")
    for record in state.imports.values():
        if record.status == "requested" and lease_of(record.order) not in owned:
            text = conceal("the service ended while it imported; import it again")
            failed = ImportFailed(order=record.order, code="interrupted", message=text.commitment)
            yield draft_of(failed, disclosures=(text,))


def _runs_left(state: State) -> Iterator[Draft]:
    for run in state.runs.values():
        if run.status in ("running", "trained") and not train.can_go_on(run):
            yield _interrupted(state, run)


def _interrupted(state: State, run: Run) -> Draft:
    """The failure of a run that does not go on: what it is trained on was withdrawn, or the service ended too early."""
    error = inputs_withdrawn(state, run)
    said = f"the service ended while the run was {run.status}; start it again" if error is None else error.message
    code, text = "interrupted" if error is None else error.code, conceal(said)
    return draft_of(RunFailed(run=run.id, code=code, message=text.commitment), disclosures=(text,))


def resume_work(context: Context) -> None:
    """What was cut off goes on, then what waits, in the ledger's order."""
    busy = context.cluster_runs.busy
    runs = [run for run in context.ledger.state.runs.values() if run.on == "here" or not busy]
    for run in runs:
        if train.can_go_on(run):
            train.go_on(context, run.id)
    for run in runs:
        if run.status == "queued":
            train.enqueue(context, run.on)
    for wanted in context.ledger.state.replays.values():
        if wanted.status == "requested":
            replay.enqueue(context, wanted.order)


def resume_forgotten(context: Context) -> None:
    """Ordered work that was never started: the end of its commit was not seen, and the asker got an error."""
    if context.runs_here and not context.runs.busy:
        resume_work(context)
    mine = context.processes.mine()
    waiting = []
    for record in context.ledger.state.imports.values():
        is_own = context.processes.alone or lease_of(record.order) in mine
        if record.status == "requested" and is_own and not ingest.queue_of(context, record.verb).busy:
            waiting.append(record)
    for record in waiting:
        ingest.enqueue(context, record.order, record.verb)


def named_artifacts(state: State) -> frozenset[str]:
    """Every folder that some entry names."""
    return frozenset(
        [base.digest for base in state.bases.values()]
        + [dataset.digest for dataset in state.datasets.values()]
        + [found.digest for found in state.validation_sets.values()]
        + [adapter.manifest for adapter in state.adapters.values()]
    )
