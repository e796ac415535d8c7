"""The training loop, to be read from top to bottom.

Deterministic: the same recipe, rows, base and machine give the same adapter, byte for byte, so a run can be replayed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from appliance.errors import BadInput, Unavailable
from appliance.ml.base import Base
from appliance.ml.checkpoint import Training, begin_training, restore_checkpoint
from appliance.ml.machine import measure_peak_bytes
from appliance.ml.methods import is_changed
from appliance.ml.packing import pack_sequences
from appliance.ml.samples import Sample

# A batch is computed in packs of at most so many tokens. The loss is summed over tokens, so this changes no gradient.
PACK_TOKENS = 2048


@dataclass(frozen=True)
class Step:
    """One optimiser step: `loss` is the mean over its trained tokens, `tokens` counts prompts too.

    `seconds` are those of this process.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    peak_bytes: int


def train(
    base: Base,
    model: Any,
    samples: Sequence[Sample],
    recipe: Mapping[str, Any],
    report: Callable[[Step], None],
    *,
    keep: Callable[[Training], None] = lambda training: None,
    start: bytes | None = None,
    stop: int | None = None,
) -> Training:
    """Trains the adapter in place; a loss that is not a number is an error, not a result.

    `keep` is called whenever a training checkpoint is due. `start` is one to go on from, `stop` the step to end at.
    """
    plan = list(plan_steps(samples, recipe))
    warmup = round(float(recipe["warmup_ratio"]) * len(plan))
    training = begin_training(model, recipe, len(plan), base.device)
    if start is not None:
        restore_checkpoint(training, start)
    began = time.monotonic()
    for number, batch in list(enumerate(plan))[training.step : stop]:
        learning_rate = float(recipe["learning_rate"]) * schedule(number, len(plan), warmup)
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        answers = sum(len(sample.answer) for sample in batch)
        loss = 0.0
        for part in split_batch(batch, recipe["batch_size"]):
            part_loss = answer_loss(base, part) / answers
            torch.autograd.backward(part_loss)
            loss += part_loss.item()
        weights = training.weights.values()
        norm = torch.nn.utils.clip_grad_norm_(weights, float(recipe["max_grad_norm"])).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise BadInput(
                f"training, step {number + 1}: expected a finite loss, got {loss} (norm {norm})", code="diverged"
            )
        training.optimizer.step()
        training.optimizer.zero_grad()
        training.step = number + 1
        training.losses.append(loss)
        training.tokens += sum(len(sample.ids) for sample in batch)
        training.trained_tokens += answers
        report(describe_step(training, learning_rate, norm, time.monotonic() - began))
        if is_due(training, recipe["checkpoint_every"]):
            keep(training)
    if training.step == training.steps and not (training.trained_tokens and is_changed(model)):
        raise Unavailable("training: expected a changed adapter, got the one it began with", code="nothing-trained")
    return training


def is_due(training: Training, every: int) -> bool:
    """A training checkpoint after every so many steps, and after the last."""
    return training.step % every == 0 or training.step == training.steps


def describe_step(training: Training, learning_rate: float, norm: float, seconds: float) -> Step:
    """The step just done, for those who follow."""
    counts = (training.tokens, training.trained_tokens, seconds, measure_peak_bytes(training.device))
    return Step(training.step, training.steps, training.losses[-1], learning_rate, norm, *counts)


def answer_loss(base: Base, samples: Sequence[Sample]) -> torch.Tensor:
    """The summed cross-entropy of the answers' tokens; the head is computed at their positions alone."""
    pack, segments = pack_sequences([sample.ids for sample in samples], keep=max(len(s.answer) for s in samples) + 1)
    places = [
        place
        for sample, segment in zip(samples, segments, strict=True)
        for place in range(segment.stop - len(sample.answer) - 1, segment.stop - 1)
    ]
    targets = torch.tensor([token for sample in samples for token in sample.answer], device=base.device)
    hidden = base.hidden(**pack.arguments(base.device))[0]
    logits = hidden[torch.tensor(places, device=base.device)] @ base.head_weight().T
    return cross_entropy(logits.float(), targets, reduction="sum")


def plan_steps(samples: Sequence[Sample], recipe: Mapping[str, Any]) -> Iterator[list[Sample]]:
    """The samples of each optimiser step: every epoch in a new order that the seed fixes."""
    size = recipe["batch_size"] * recipe["accumulation"]
    generator = torch.Generator().manual_seed(recipe["seed"])
    for _ in range(recipe["epochs"]):
        order = torch.randperm(len(samples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [samples[place] for place in order[start : start + size]]


def split_batch(batch: Sequence[Sample], batch_size: int) -> Iterator[list[Sample]]:
    """The step's samples in parts of at most `batch_size` that fit into memory, long samples with long ones."""
    part: list[Sample] = []
    for sample in sorted(batch, key=lambda sample: (len(sample.ids), sample.index)):
        full = sum(len(other.ids) for other in part) + len(sample.ids) > PACK_TOKENS
        if part and (full or len(part) == batch_size):
            yield part
            part = []
        part.append(sample)
    yield part


def schedule(number: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at a step counted from 0: linear up, then a cosine down to a tenth."""
    if number < warmup:
        return (number + 1) / (warmup + 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (number - warmup) / max(1, steps - warmup)))
