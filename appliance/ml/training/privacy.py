"""Differentially private steps: rows drawn by themselves, each row's gradient clipped, Gaussian noise on their sum.

What is drawn and how is docs/formats/private-training.md. Every row goes through the model alone: its gradient is a
function of the weights and of this row, with no rounding that a neighbour in a pack could change. Norms, sums and noise
are in float64. Drawing and noise follow from the run's secret and the step's number, so a run needs nothing but its
secret to go on or to be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch

from appliance.domain.recipe.recipe import count_steps
from appliance.errors import BadInput
from appliance.formats.core.keystream import Keystream
from appliance.ml.data.samples import Sample

Gradients = Sequence[torch.Tensor | None]
"""Of one row's loss, in the order of the trained weights; None for a weight that had no part in it."""
GRID = 20
"""The noised sum is rounded to 2^-20 of the power of two at or below the noise's standard deviation: the low bits of a
floating-point sum could say what noise was added (Mironov, 2012)."""


class PrivatePlan:
    """The rows of each step: every row is drawn by itself, with one probability. They are in the order of the dataset,
    and may be none."""

    def __init__(self, samples: Sequence[Sample], recipe: Mapping[str, Any], secret: bytes) -> None:
        self._samples, self._secret = samples, secret
        rows_a_step = recipe["batch_size"] * recipe["accumulation"]
        self._steps = count_steps(len(samples), recipe["epochs"], rows_a_step)
        self.expected: int = min(rows_a_step, len(samples))

    def __len__(self) -> int:
        return self._steps

    def draw(self, number: int) -> list[Sample]:
        """Those of step `number`, counted from 0."""
        if self.expected == len(self._samples):
            return list(self._samples)
        stream = Keystream(self._secret, f"appliance/private-training/v1/rows/{number + 1}")
        drawn = numpy.frombuffer(stream.take(8 * len(self._samples)), dtype="<u8")
        below = (self.expected << 64) // len(self._samples)
        places: list[int] = numpy.flatnonzero(drawn < numpy.uint64(below)).tolist()
        return [self._samples[place] for place in places]

    def count_expected(self, steps: int, of: Callable[[Sample], int]) -> int:
        """Tokens that so many steps are expected to have: which rows a step had is told to nobody."""
        tokens = sum(of(sample) for sample in self._samples)
        return max(1, steps * self.expected * tokens // len(self._samples))


def add_clipped(sums: Sequence[torch.Tensor], gradients: Gradients, clip: float) -> None:
    """Adds a row's gradient, shortened to the norm `clip` where it is longer. One that is not finite adds nothing."""
    found = [(total, one) for total, one in zip(sums, gradients, strict=True) if one is not None]
    norm = math.sqrt(math.fsum(one.double().square().sum().item() for _, one in found))
    if not math.isfinite(norm):
        return
    for total, one in found:
        total.add_(one.to(total.device), alpha=min(1.0, clip / norm) if norm else 1.0)


def add_noise(sums: Sequence[torch.Tensor], scale: float, secret: bytes, number: int) -> None:
    """Adds to every number a normal one of this standard deviation, and rounds the sum to the grid."""
    stream = Keystream(secret, f"appliance/private-training/v1/noise/{number + 1}")
    grid = 2.0 ** (math.frexp(scale)[1] - 1 - GRID)
    for total in sums:
        total.add_(draw_normal(stream, total.numel()).view(total.shape), alpha=scale)
        total.div_(grid).round_().mul_(grid)


def draw_normal(stream: Keystream, count: int) -> torch.Tensor:
    """[count], float64: by Box and Muller, of 16 bytes for each two."""
    pairs = -(-count // 2)
    drawn = numpy.frombuffer(stream.take(16 * pairs), dtype="<u8").reshape(pairs, 2).astype(numpy.float64)
    # The first of a pair is above 0 and at most 1, the second from 0 to 1.
    radius = numpy.sqrt(-2 * numpy.log((drawn[:, 0] + 1) * 2.0**-64))
    angle = 2 * math.pi * 2.0**-64 * drawn[:, 1]
    normal = numpy.stack([radius * numpy.cos(angle), radius * numpy.sin(angle)], axis=1)
    return torch.from_numpy(normal.reshape(-1)[:count])


def set_private_gradients(
    weights: Mapping[str, torch.nn.Parameter],
    batch: Sequence[Sample],
    row_loss: Callable[[Sample], torch.Tensor],
    plan: PrivatePlan,
    recipe: Mapping[str, Any],
    secret: bytes,
    number: int,
) -> None:
    """The gradient of step `number`, counted from 0, in each weight's `grad`: noised sum over expected rows.

    `row_loss` gives the mean loss of one row. BadInput where it draws at random.
    """
    privacy, trained = recipe["privacy"], [weights[name] for name in sorted(weights)]
    clip = float(privacy["clip"])
    sums = [torch.zeros(weight.shape, dtype=torch.float64) for weight in trained]
    before = [state.clone() for state in _read_random(trained)]
    for sample in batch:
        gradients = torch.autograd.grad(row_loss(sample), trained, allow_unused=True)
        add_clipped(sums, gradients, clip)
    if not all(map(torch.equal, before, _read_random(trained))):
        raise BadInput(
            "privacy: expected a base that draws nothing at random for a row, got one that does: a row's gradient "
            "would depend on the rows before it"
        )
    add_noise(sums, clip * float(privacy["noise"]), secret, number)
    for weight, total in zip(trained, sums, strict=True):
        weight.grad = total.div_(plan.expected).to(weight.device, weight.dtype)


def _read_random(trained: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The states of torch's own generators."""
    on_card = any(weight.is_cuda for weight in trained)
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_card else [])]


def take_secret(recipe: Mapping[str, Any], task: Mapping[str, Any]) -> bytes:
    """A task's secret, which is there exactly where the recipe is private; else none."""
    secret = task.get("secret")
    if (secret is not None) != (recipe["privacy"] is not None):
        raise BadInput(f"task, secret: expected {'one' if recipe['privacy'] else 'none'}, got another recipe's")
    return b"" if secret is None else bytes.fromhex(secret)
