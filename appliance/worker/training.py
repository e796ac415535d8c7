"""The work of a training worker's ranks, with torch: a run's training, or a window of its steps once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from appliance.ml.data import rows as data
from appliance.ml.data.rows import Sample
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_for
from appliance.ml.training import methods
from appliance.ml.training.checkpoint import TrainingState, encode_checkpoint, write_checkpoint
from appliance.ml.training.loop import StepMeasurement, train
from appliance.ml.training.loss import list_readings, split_rows, use_best
from appliance.ml.training.methods import TrainableModel
from appliance.ml.training.privacy import take_secret
from appliance.ml.training.ranks import Channel, Pipe, Ranks
from appliance.worker.link import Header, WorkerLink, take, take_path
from appliance.worker.ranks import Ends, Incoming, take_shape


def open_pipes(ends: Ends) -> list[Channel]:
    """Return a channel for each rank on this machine."""
    return [Pipe(*pair) for pair in ends]


def train_along(task: Header, blob: bytes, rank: int, channels: Sequence[Channel]) -> None:
    """Train the same steps as rank 0 without writing files."""
    recipe, stop = take_recipe(task), take(task, "stop", int) if "stop" in task else None
    base, attached, samples, validation = prepare(task)
    # A private run has one process.
    train(
        *(base, attached, samples, recipe, lambda step: None),
        start=blob or None,
        stop=stop,
        validation=validation,
        ranks=Ranks(rank, recipe["processes"], channels),
    )


def lead(session: WorkerLink, task: Header, blob: bytes, ends: Ends) -> Header:
    """Run rank 0, which records the steps and writes the checkpoints and the adapter."""
    recipe, output, earlier = take_recipe(task), Path(take_path(task, "output")), take(task, "seconds", float)
    folder = Path(take_path(task, "checkpoints"))
    base, attached, samples, validation = prepare(task)
    last: list[StepMeasurement] = []

    def report(step: StepMeasurement) -> None:
        last[:] = [replace(step, seconds=earlier + step.seconds)]
        session.send({"frame": "step", **asdict(last[0])})

    def save_checkpoint(training: TrainingState) -> None:
        seconds = last[0].seconds if last else earlier
        fields = {"step": training.step, "file": write_checkpoint(folder, training), "seconds": f"{seconds:.3f}"}
        session.send({"frame": "checkpoint", **fields, "machine": machine.describe_kind(recipe["device"])})

    incoming = Incoming(session, take_shape(task).remote_ranks)
    ranks = Ranks(0, recipe["processes"], [*open_pipes(ends), *incoming.channels()])
    training = train(
        *(base, attached, samples, recipe, report),
        save_checkpoint=save_checkpoint,
        start=blob or None,
        validation=validation,
        ranks=ranks,
        secret=take_secret(recipe, task),
        is_checkpoint_requested=incoming.take_checkpoint_request,
    )
    weights_step = use_best(training)
    files = methods.encode_adapter(attached, recipe["base"])
    for name, content in zip(methods.name_files(recipe["method"]), files, strict=True):
        (output / name).write_bytes(content)
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


def replay(session: WorkerLink, task: Header, blob: bytes, ends: Ends) -> Header:
    """Run rank 0 of a replay, which sends the steps and writes the checkpoint at the end of the window."""
    recipe, stop = take_recipe(task), take(task, "stop", int)
    ranks = Ranks(0, recipe["processes"], open_pipes(ends))
    before, got = Path(take_path(task, "before")), Path(take_path(task, "got"))
    base, attached, samples, validation = prepare(task)

    def report(step: StepMeasurement) -> None:
        session.send({"frame": "step", **asdict(step)})

    secret = take_secret(recipe, task)
    if not blob:
        before.write_bytes(encode_checkpoint(train(base, attached, samples, recipe, report, stop=0, secret=secret)))
    training = train(
        *(base, attached, samples, recipe, report),
        start=blob or None,
        stop=stop,
        validation=validation,
        ranks=ranks,
        secret=secret,
    )
    got.write_bytes(encode_checkpoint(training))
    return {"step": training.step, "machine": machine.describe_kind(recipe["device"])}


def take_recipe(task: Header) -> dict[str, Any]:
    recipe: dict[str, Any] = take(task, "recipe", dict)
    return recipe


def prepare(task: Header) -> tuple[LoadedBase, TrainableModel, list[Sample], list[Sample]]:
    """Load the base with the new adapter on it, and tokenise the training and the validation rows."""
    recipe, shape = take_recipe(task), take_shape(task)
    machine.hold_memory()
    machine.use_determinism(recipe["seed"], shape.here if shape.device == "cpu" else 1, threads=shape.threads)
    base = load_for(Path(take_path(task, "base")), recipe, for_training=True)
    rows = data.load_rows(Path(take_path(task, "dataset")), data.TRAIN)
    if recipe["privacy"] is not None and len(rows) != (expected := take(task, "rows", int)):
        raise BadInput(f"dataset: expected the {expected} training rows that epsilon counts on, got {len(rows)}")
    sides = [
        data.tokenize_rows(side, base.chat, max_length=recipe["max_length"]) if side else []
        for side in split_rows(rows, recipe)
    ]
    return base, methods.attach_adapter(base, recipe), sides[0], sides[1]
