"""The training worker: one recipe, one base, one dataset, one adapter. It scores nothing."""

from __future__ import annotations

import queue
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.worker.link import Header, Link, run_worker, take, take_path
from appliance.worker.ranks import Ends, start_ranks

if TYPE_CHECKING:
    from appliance.ml.data.samples import Sample
    from appliance.ml.model.base import Base
    from appliance.ml.training.methods import Attached


def work(session: Link, task: Header, blob: bytes) -> Header:
    """`blob` is the training checkpoint to go on from, `seconds` the time that it took to come there."""
    with start_ranks(session, take_recipe(task), partial(follow, task, blob, None)) as ends:
        return lead(session, task, blob, ends)


class Asked:
    """Whether the service has asked for a training checkpoint since the last look: the node of a run on a cluster may
    be about to be taken away."""

    def __init__(self, session: Link) -> None:
        self._frames = session.listen()

    def take(self) -> bool:
        asked = False
        with suppress(queue.Empty):
            while True:
                frame = self._frames.get_nowait()
                asked |= frame is not None and frame[0].get("frame") == "checkpoint"
        return asked


def follow(task: Header, blob: bytes, stop: int | None, rank: int, ends: Ends) -> None:
    """What another rank does: the same steps, and nothing is written."""
    from appliance.ml.training.loop import train
    from appliance.ml.training.ranks import Ranks

    recipe = take_recipe(task)
    base, attached, samples, validation = prepare(task)
    ranks, start = Ranks(rank, recipe["processes"], ends), blob or None
    # A private run has one process.
    train(
        base, attached, samples, recipe, lambda step: None, start=start, stop=stop, validation=validation, ranks=ranks
    )


def lead(session: Link, task: Header, blob: bytes, ends: Ends) -> Header:
    """What the first rank does."""
    from appliance.ml.model import machine
    from appliance.ml.training import methods
    from appliance.ml.training.checkpoint import Training, write_checkpoint
    from appliance.ml.training.loop import Step, train
    from appliance.ml.training.privacy import take_secret
    from appliance.ml.training.ranks import Ranks
    from appliance.ml.training.stopping import list_readings, use_best

    recipe, output, earlier = take_recipe(task), Path(take_path(task, "output")), take(task, "seconds", float)
    folder, started = Path(take_path(task, "checkpoints")), prepare(task)
    last: list[Step] = []

    def report(step: Step) -> None:
        last[:] = [replace(step, seconds=earlier + step.seconds)]
        session.send({"frame": "step", **asdict(last[0])})

    def keep(training: Training) -> None:
        seconds = last[0].seconds if last else earlier
        facts = {"step": training.step, "file": write_checkpoint(folder, training), "seconds": f"{seconds:.3f}"}
        session.send({"frame": "checkpoint", **facts, "machine": machine.describe_kind(recipe["device"])})

    base, attached, samples, validation = started
    asked = Asked(session)
    ranks, start = Ranks(0, recipe["processes"], ends), blob or None
    training = train(
        *(base, attached, samples, recipe, report),
        keep=keep,
        start=start,
        validation=validation,
        ranks=ranks,
        secret=take_secret(recipe, task),
        asked=asked.take,
    )
    weights_step = use_best(training)
    made = methods.encode_adapter(attached, recipe["base"])
    for name, data in zip(methods.name_files(recipe["method"]), made, strict=True):
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
        "final_loss": None if recipe["privacy"] else f"{training.losses[-1]:.6f}",
        "losses": [] if recipe["privacy"] else [f"{loss:.6f}" for loss in training.losses],
        "device": recipe["device"],
        "threads": machine.describe_machine()["threads"],
        "packages": machine.list_packages(),
    }


def take_recipe(task: Header) -> dict[str, Any]:
    recipe: dict[str, Any] = take(task, "recipe", dict)
    return recipe


def prepare(task: Header) -> tuple[Base, Attached, list[Sample], list[Sample]]:
    """What a recipe's training begins with: the base, the adapter on it, the rows as tokens, and those to validate."""
    from appliance.domain.recipe.methods import METHODS
    from appliance.ml.data import rows as data
    from appliance.ml.data.samples import tokenize_rows
    from appliance.ml.model import machine
    from appliance.ml.model.base import load_base
    from appliance.ml.training import methods
    from appliance.ml.training.stopping import split_rows

    recipe = take_recipe(task)
    machine.hold_memory()
    machine.use_determinism(recipe["seed"], recipe["processes"] if recipe["device"] == "cpu" else 1)
    base = load_base(
        Path(take_path(task, "base")),
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=recipe["device"],
        trainable=recipe["method"] == "full",
        packs=METHODS[recipe["method"]].plain,
    )
    rows = data.load_rows(Path(take_path(task, "dataset")), data.TRAIN)
    sides = [
        tokenize_rows(side, base.chat, max_length=recipe["max_length"]) if side else []
        for side in split_rows(rows, recipe)
    ]
    return base, methods.attach_adapter(base, recipe), sides[0], sides[1]


if __name__ == "__main__":
    sys.exit(run_worker(work))
