"""Runs one training by the functions that the training worker calls, and prints its memory peaks as a JSON object.

The rows are random, since a run's memory depends on their lengths only.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from appliance.ml.data.rows import Sample
from appliance.ml.model import machine
from appliance.ml.model.base import load_for
from appliance.ml.training import methods
from appliance.ml.training.checkpoint import encode_checkpoint
from appliance.ml.training.loop import StepMeasurement, train


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    recipe = task["recipe"]
    machine.hold_memory()
    machine.use_determinism(recipe["seed"])
    device, peaks = recipe["device"], {}
    peaks["libraries"] = machine.measure_peak_bytes(device)
    began = time.perf_counter()
    base = load_for(Path(task["base"]), recipe, for_training=True)
    samples = draw_samples(task["lengths"], task["shared"], task["answer"], base.head().weight.shape[0])
    attached = methods.attach_adapter(base, recipe)
    peaks["load"] = machine.measure_peak_bytes(device)
    loaded = time.perf_counter() - began
    steps: list[StepMeasurement] = []
    training = train(base, attached, samples, recipe, steps.append)
    peaks["train"] = machine.measure_peak_bytes(device)
    checkpoint = encode_checkpoint(training)
    adapter = methods.encode_adapter(attached, "base")[0]
    peaks["peak"] = machine.measure_peak_bytes(device)
    sizes = {"checkpoint_bytes": len(checkpoint), "adapter_bytes": len(adapter)}
    print(json.dumps({**peaks, **sizes, "load_s": loaded, "train_s": steps[-1].seconds, "steps": len(steps)}))


def draw_samples(lengths: list[int], shared: int, answer: int, words: int) -> list[Sample]:
    """Return rows of random tokens below `words`. The first `shared` are equal; the last `answer` are trained."""
    draw = random.Random(1)
    common = [draw.randrange(words) for _ in range(shared)]
    rows = [[*common, *(draw.randrange(words) for _ in range(length - shared))] for length in lengths]
    return [Sample(index, tuple(row), ((len(row) - answer, len(row)),)) for index, row in enumerate(rows)]


if __name__ == "__main__":
    main()
