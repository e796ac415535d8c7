"""A few short steps of a recipe at two lengths: what this machine needs for them, as a plan counts it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from appliance.ml.data.samples import Sample
from appliance.ml.model import machine
from appliance.ml.model.base import Base, load_base
from appliance.ml.training import methods
from appliance.ml.training.loop import Step, train

LENGTHS = (32, 192)
ROWS = 8
STEPS = 4
"""The first of them is not counted: kernels are made and caches filled."""
ANSWER = 4


def calibrate(folder: Path, recipe: Mapping[str, Any], report: Callable[[int, int], None]) -> dict[str, Any]:
    """Seconds of a step at each length, of loading, and the peak of all of it. Rows are drawn, and mean nothing."""
    device, began = recipe["device"], time.monotonic()
    base = load_base(
        folder,
        quantisation=recipe["quantisation"],
        compute_dtype=recipe["compute_dtype"],
        device=device,
        trainable=recipe["method"] == "full",
    )
    attached = methods.attach_adapter(base, recipe)
    load_s, times = time.monotonic() - began, []
    once = {**recipe, "epochs": 1, "batch_size": ROWS, "accumulation": 1, "validate_every": 0, "early_stopping": 0}
    once |= {"checkpoint_every": STEPS, "warmup_ratio": "0.0", "privacy": None, "max_grad_norm": "1.0"}
    for place, length in enumerate(LENGTHS):
        steps: list[Step] = []

        def told(step: Step, steps: list[Step] = steps, before: int = place * STEPS) -> None:
            steps.append(step)
            report(before + len(steps), STEPS * len(LENGTHS))

        train(base, attached, _draw(base, length), once, told)
        # The quickest: what else the machine does makes a step slower, never quicker.
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


def _draw(base: Base, length: int) -> list[Sample]:
    words, draw = base.head().weight.shape[0], random.Random(1)
    rows = [tuple(draw.randrange(words) for _ in range(length)) for _ in range(ROWS * STEPS)]
    return [Sample(index, row, ((length - ANSWER, length),)) for index, row in enumerate(rows)]


def _memory_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(str(machine.describe_machine()["memory_bytes"]))
