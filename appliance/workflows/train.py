"""A run, from the queue to a sealed adapter: intent before each act, outcome after it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from appliance.domain.events import RunFailed, RunFinished, RunStarted
from appliance.domain.orders import Train
from appliance.domain.signatures import read_logged_order
from appliance.domain.state import Run
from appliance.errors import ApplianceError, Denied, NotFound, Tampered
from appliance.formats.digest import digest_file
from appliance.workflows import evaluate
from appliance.workflows.context import Context
from appliance.workflows.ingest import checked_base
from appliance.workflows.record import append, conceal
from appliance.workflows.seal import seal
from appliance.workflows.workers import carry_out, check_walls, worker

WEIGHTS = "adapter_model.safetensors"


def enqueue(context: Context, order_digest: str) -> None:
    """Puts the run of a recorded order behind those that wait."""
    for run in context.ledger.state.runs.values():
        if run.order == order_digest and run.status == "queued":
            context.runs.put(partial(carry_through, context, run.id))


def stop(context: Context, run: str) -> None:
    """Kills the run's worker, whichever stage it is in; the cancellation is recorded already."""
    for key in (run, f"{run}:evaluate"):
        started = context.workers.get(key)
        if started is not None:
            started.kill()


def train_order(context: Context, run: Run) -> Train:
    """The order of a run, read again from the ledger."""
    document = context.ledger.documents_of(run.index)["order"]
    order = read_logged_order(context.ledger.state, document, run.index).order
    if not isinstance(order, Train):
        raise NotFound(f"run {run.id}: expected an order to train, got {order.verb}")
    return order


def carry_through(context: Context, run_id: str) -> None:
    """Runs to an outcome in any case: sealed, failed or cancelled, and recorded as such."""
    run = context.ledger.state.runs.get(run_id)
    if run is None or run.status != "queued":
        return
    try:
        adapter = _carry_through(context, run)
    except (ApplianceError, OSError) as error:
        _fail(context, run_id, error)
    else:
        context.progress.end(run_id, result={"adapter": adapter})


def _carry_through(context: Context, run: Run) -> str:
    order = train_order(context, run)
    base = checked_base(context, run.base)
    context.artifacts.check(run.dataset_digest)
    dataset = context.artifacts.path(run.dataset_digest)
    with ExitStack() as stack:
        output = stack.enter_context(context.artifacts.staging())
        scratch = stack.enter_context(context.artifacts.staging())
        checkpoints = stack.enter_context(context.artifacts.staging())
        trained = _train(context, run, order, base, dataset, output, checkpoints)
        evaluation = evaluate.evaluate(context, run, order, base, dataset, output, scratch)
        return seal(context, run, order, output, trained, evaluation)


def _train(
    context: Context, run: Run, order: Train, base: Path, dataset: Path, output: Path, checkpoints: Path
) -> dict[str, Any]:
    recipe = order.recipe.model_dump(mode="json")
    gpu = order.recipe.device == "cuda"
    module, write = "appliance.worker.train", (output, checkpoints)
    with worker(context, run.id, module, read=(base, dataset), write=write, gpu=gpu) as started:
        walls = check_walls(started)
        missing = tuple(sorted(layer for layer, stands in started.layers.items() if not stands))
        append(context, RunStarted(run=run.id, layers=started.layers, accepted_missing=missing, walls=walls))
        context.progress.publish(run.id, {"frame": "started", "walls": walls, "layers": started.layers})
        places = {"base": base, "dataset": dataset, "output": output, "checkpoints": checkpoints}
        task = {"recipe": recipe, "seconds": 0.0, **{name: str(path) for name, path in places.items()}}
        result = carry_out(started, task, on_frame=partial(context.progress.publish, run.id))
    body = RunFinished(
        run=run.id,
        weights=digest_file(output / WEIGHTS),
        steps=result["steps"],
        trained_tokens=result["trained_tokens"],
        seconds=result["seconds"],
        final_loss=result["final_loss"],
    )
    append(context, body)
    return result


def _fail(context: Context, run_id: str, error: ApplianceError | OSError) -> None:
    """The run's failure as an entry; a cancelled run has its entry already."""
    code = error.code if isinstance(error, ApplianceError) else "disk"
    run = context.ledger.state.runs.get(run_id)
    if run is not None and run.status == "cancelled":
        context.progress.end(run_id, error={"code": "cancelled", "message": f"run {run_id} was cancelled"})
        return
    message = conceal(error.message if isinstance(error, ApplianceError) else f"disk: {error}")
    with suppress(Denied, Tampered):
        append(context, RunFailed(run=run_id, code=code, message=message.commitment), disclosures=(message,))
    context.progress.end(run_id, error={"code": code, "message": message.text})
