"""The calibration worker: a few short steps of a recipe at two lengths, which measure time and memory for a plan.

Only the measurements are kept.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from appliance.ml.data.rows import Sample
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase, load_for
from appliance.ml.training import methods
from appliance.ml.training.loop import StepMeasurement, train
from appliance.worker.link import Header, WorkerLink, take, take_path

LENGTHS = (32, 192)
ROWS = 8
STEPS = 4
"""Number of steps at each length; the first one is not counted, since it creates kernels and fills caches."""
ANSWER = 4


def calibrate(folder: Path, recipe: Mapping[str, Any], report: Callable[[int, int], None]) -> dict[str, Any]:
    """Return seconds per step at each length, seconds of loading, and the peak memory in bytes.

    Rows are random tokens.
    """
    device, began = recipe["device"], time.monotonic()
    base = load_for(folder, recipe, for_training=True)
    attached = methods.attach_adapter(base, recipe)
    load_s, times = time.monotonic() - began, []
    once = {
        **recipe,
        "epochs": 1,
        "batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "eval_steps": 0,
        "early_stopping": 0,
    }
    once |= {"save_steps": STEPS, "warmup_ratio": "0.0", "privacy": None, "max_grad_norm": "1.0"}
    for place, length in enumerate(LENGTHS):
        steps: list[StepMeasurement] = []

        def record_step(
            step: StepMeasurement, steps: list[StepMeasurement] = steps, before: int = place * STEPS
        ) -> None:
            steps.append(step)
            report(before + len(steps), STEPS * len(LENGTHS))

        train(base, attached, _draw_samples(base, length), once, record_step)
        # The minimum, since other processes on the machine only make steps slower.
        times.append(min(later.seconds - step.seconds for step, later in pairwise(steps)))
    return {
        "lengths": list(LENGTHS),
        "rows": ROWS,
        "answer": ANSWER,
        "seconds": times,
        "load_s": load_s,
        "peak_bytes": machine.measure_peak_bytes(device),
        "memory_bytes": _memory_bytes(device),
        "machine": machine.describe_kind(device),
    }


def _draw_samples(base: LoadedBase, length: int) -> list[Sample]:
    words, draw = base.head().weight.shape[0], random.Random(1)
    rows = [tuple(draw.randrange(words) for _ in range(length)) for _ in range(ROWS * STEPS)]
    return [Sample(index, row, ((length - ANSWER, length),)) for index, row in enumerate(rows)]


def _memory_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(str(machine.describe_machine()["memory_bytes"]))


def work(session: WorkerLink) -> Header:
    """Measure short steps of the recipe on the base and return their times."""
    task, _ = session.expect("go")
    recipe = take(task, "recipe", dict)
    machine.use_determinism(recipe["seed"])

    def report(done: int, total: int) -> None:
        session.send({"frame": "progress", "done": done, "total": total})

    return calibrate(Path(take_path(task, "base")), recipe, report)
