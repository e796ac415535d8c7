"""The training worker, which trains one adapter from one recipe, base and dataset. It does not evaluate."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import BadInput
from appliance.worker.link import Header, WorkerLink, run_worker, take, take_path
from appliance.worker.ranks import Ends, Incoming, check_share, start_ranks, take_card, take_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.ml.data.rows import Sample
    from appliance.ml.model.base import LoadedBase
    from appliance.ml.training.methods import TrainableModel
    from appliance.ml.training.ranks import Channel


def work(session: WorkerLink, task: Header, blob: bytes) -> Header:
    """Train, or resume from the training checkpoint `blob`.

    The task's `seconds` is the time that the run had taken up to that checkpoint. `rank` is set in a worker on another
    node than the first.
    """
    if "rank" in task:
        return run_remote_rank(session, task, blob, take(task, "rank", int))
    with start_ranks(session, take_shape(task), partial(follow, task, blob, None)) as ends:
        return lead(session, task, blob, ends)


def run_remote_rank(session: WorkerLink, task: Header, blob: bytes, rank: int) -> Header:
    """Run a rank on another node, which exchanges data with rank 0 in frames."""
    shape = take_shape(task)
    check_share(shape.device, shape.here)
    take_card(shape.device, rank % shape.here, shape.here)
    train_along(task, blob, None, rank, Incoming(session, [rank]).channels())
    return {}


def follow(task: Header, blob: bytes, stop: int | None, rank: int, ends: Ends) -> None:
    """Run another rank on the machine of rank 0."""
    from appliance.ml.training.ranks import Pipe

    train_along(task, blob, stop, rank, [Pipe(*pair) for pair in ends])


def train_along(task: Header, blob: bytes, stop: int | None, rank: int, ends: Sequence[Channel]) -> None:
    """Train the same steps as rank 0 without writing files."""
    from appliance.ml.training.loop import train
    from appliance.ml.training.ranks import Ranks

    recipe = take_recipe(task)
    base, attached, samples, validation = prepare(task)
    ranks, start = Ranks(rank, recipe["processes"], ends), blob or None
    # A private run has one process.
    train(
        base, attached, samples, recipe, lambda step: None, start=start, stop=stop, validation=validation, ranks=ranks
    )


def lead(session: WorkerLink, task: Header, blob: bytes, ends: Ends) -> Header:
    """Run rank 0, which records the steps and writes the checkpoints and the adapter."""
    from appliance.ml.model import machine
    from appliance.ml.training import methods
    from appliance.ml.training.checkpoint import TrainingState, write_checkpoint
    from appliance.ml.training.loop import StepMeasurement, train
    from appliance.ml.training.loss import list_readings, use_best
    from appliance.ml.training.privacy import take_secret
    from appliance.ml.training.ranks import Pipe, Ranks

    recipe, output, earlier = take_recipe(task), Path(take_path(task, "output")), take(task, "seconds", float)
    folder, started = Path(take_path(task, "checkpoints")), prepare(task)
    last: list[StepMeasurement] = []

    def report(step: StepMeasurement) -> None:
        last[:] = [replace(step, seconds=earlier + step.seconds)]
        session.send({"frame": "step", **asdict(last[0])})

    def keep(training: TrainingState) -> None:
        seconds = last[0].seconds if last else earlier
        fields = {"step": training.step, "file": write_checkpoint(folder, training), "seconds": f"{seconds:.3f}"}
        session.send({"frame": "checkpoint", **fields, "machine": machine.describe_kind(recipe["device"])})

    base, attached, samples, validation = started
    incoming = Incoming(session, take_shape(task).remote_ranks)
    channels: list[Channel] = [*(Pipe(*pair) for pair in ends), *incoming.channels()]
    ranks, start = Ranks(0, recipe["processes"], channels), blob or None
    training = train(
        *(base, attached, samples, recipe, report),
        keep=keep,
        start=start,
        validation=validation,
        ranks=ranks,
        secret=take_secret(recipe, task),
        asked=incoming.take_checkpoint_request,
    )
    weights_step = use_best(training)
    files = methods.encode_adapter(attached, recipe["base"])
    for name, data in zip(methods.name_files(recipe["method"]), files, strict=True):
        (output / name).write_bytes(data)
    return {
        "steps": training.step,
        "planned_steps": training.steps,
        "weights_step": weights_step,
        "validation": [[step, loss] for step, loss in list_readings(training)],
        "tokens": training.tokens,
        "trained_tokens": training.trained_tokens,
        "seconds": f"{last[0].seconds if last else earlier:.3f}",
        "peak_bytes": ranks.total_peak(machine.measure_peak_bytes(recipe["device"]), recipe["device"]),
        "final_loss": None if recipe["privacy"] else f"{training.losses[-1]:z.6f}",
        "losses": [] if recipe["privacy"] else [f"{loss:z.6f}" for loss in training.losses],
        "device": recipe["device"],
        "threads": machine.describe_machine()["threads"],
        "packages": machine.list_packages(),
    }


def take_recipe(task: Header) -> dict[str, Any]:
    recipe: dict[str, Any] = take(task, "recipe", dict)
    return recipe


def prepare(task: Header) -> tuple[LoadedBase, TrainableModel, list[Sample], list[Sample]]:
    """Load the base with the new adapter on it, and tokenise the training and the validation rows."""
    from appliance.domain.recipe.methods import METHODS
    from appliance.ml.data import rows as data
    from appliance.ml.data.rows import tokenize_rows
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_base
    from appliance.ml.training import methods
    from appliance.ml.training.loss import split_rows

    recipe, shape = take_recipe(task), take_shape(task)
    machine.hold_memory()
    machine.use_determinism(recipe["seed"], shape.here if shape.device == "cpu" else 1, threads=shape.threads)
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=recipe["device"],
        trainable=recipe["method"] == "full",
        packs=METHODS[recipe["method"]].plain,
    )
    rows = data.load_rows(Path(take_path(task, "dataset")), data.TRAIN)
    if recipe["privacy"] is not None and len(rows) != (expected := take(task, "rows", int)):
        raise BadInput(f"dataset: expected the {expected} training rows that epsilon counts on, got {len(rows)}")
    sides = [
        tokenize_rows(side, base.chat, max_length=recipe["max_length"]) if side else []
        for side in split_rows(rows, recipe)
    ]
    return base, methods.attach_adapter(base, recipe), sides[0], sides[1]


if __name__ == "__main__":
    sys.exit(run_worker(work))
