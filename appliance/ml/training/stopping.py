"""Validation: rows of the training split that are not trained on, and when their loss shows that training can stop.

Never the held-out rows: those judge the adapter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch

from appliance.domain.runs.stopping import best_step, is_read, read_steps, stops
from appliance.errors import BadInput
from appliance.ml.data.rows import Row, join_rows, same_key
from appliance.ml.training.checkpoint import Training

MeanLoss = Callable[[], float]
"""The mean loss over the validation rows' trained tokens, with the current weights."""


def split_rows(rows: Sequence[Row], recipe: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those to validate with. No two sides share a text, a prompt or a cluster."""
    share = Fraction(recipe["validation"])
    if not share:
        return list(rows), []
    prompts = [same_key(row.parts[0][0]) or None for row in rows]
    keys = join_rows([same_key(row.text) for row in rows], prompts, [row.cluster for row in rows])
    sides: tuple[list[Row], list[Row]] = [], []
    for row, key in zip(rows, keys, strict=True):
        sides[_is_validation(key, recipe["seed"], share)].append(row)
    if not all(sides):
        raise BadInput(
            f"recipe, validation: expected a share that leaves rows on both sides of {len(rows)}, got "
            f"{recipe['validation']}, which leaves {len(sides[0])} to train on and {len(sides[1])} to validate with; "
            "rows with one prompt or one cluster stay together"
        )
    return sides


def _is_validation(key: str, seed: int, share: Fraction) -> bool:
    value = hashlib.sha256(f"validation/v1\x00{seed}\x00{key}".encode()).digest()
    return Fraction(int.from_bytes(value, "big"), 1 << 256) < share


def take_reading(training: Training, model: torch.nn.Module, mean_loss: MeanLoss) -> float | None:
    """Reads the validation loss where it is due, as it is recorded: to six places; keeps the weights of the best."""
    if not is_read(training.step, training.steps, training.validate_every):
        return None
    with torch.no_grad(), _without_dropout(model):
        loss = round(mean_loss(), 6)
    if not math.isfinite(loss):
        rate = training.optimizer.param_groups[0]["lr"]
        raise BadInput(
            f"training, step {training.step}: expected a finite validation loss, got {loss} (learning_rate {rate:g})",
            code="diverged",
        )
    training.validation.append(loss)
    if training.patience and best_step(list_readings(training)) == training.step:
        training.best = {name: weight.detach().clone() for name, weight in training.weights.items()}
    return loss


@contextmanager
def _without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Not model.eval(): bitsandbytes packs the weights of a layer in evaluation mode for kernels without a gradient."""
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()


def list_readings(training: Training) -> list[tuple[int, str]]:
    """Every validation loss so far, by its step."""
    at = read_steps(training.step, training.steps, training.validate_every)
    return [(step, f"{loss:z.6f}") for step, loss in zip(at, training.validation, strict=True)]


def has_ended(training: Training) -> bool:
    """No step is to follow: it was the last, or the validation loss has not fallen for long enough."""
    return training.step == training.steps or stops(list_readings(training), training.patience)


def use_best(training: Training) -> int:
    """Puts those weights in place that are sealed; of which step: the best with early stopping, else the last."""
    if not training.best:
        return training.step
    with torch.no_grad():
        for name, weight in training.weights.items():
            weight.copy_(training.best[name])
    return best_step(list_readings(training))
