"""Differentially private steps: independent sampling of rows, gradients clipped per row, Gaussian noise on the sum.

The sampling and the noise are specified in docs/formats/private-training.md. Every row goes through the model alone, so
its gradient depends only on the weights and this row; another row cannot change its rounding. Norms, sums and noise are
float64. Sampling and noise follow from the run's secret and the step's number, so resuming or replaying a run needs
only its secret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch

from appliance.domain.recipe.recipe import count_rows_a_step, count_steps
from appliance.errors import BadInput
from appliance.formats.core.sealed import Keystream
from appliance.ml.data.rows import Sample

Gradients = Sequence[torch.Tensor | None]
"""Gradients of one row's loss, in the order of the trained weights; None for weights that do not affect it."""
GRID = 20
"""Number of bits to which the noised sum is rounded.

The grid is 2^-20 of the largest power of two up to the noise's standard deviation. The low bits of a floating-point sum
could reveal the noise (Mironov, 2012).
"""


class PrivatePlan:
    """The rows of each step: every row is sampled independently with the same probability.

    They are in the order of the dataset; a step may have none.
    """

    def __init__(self, samples: Sequence[Sample], recipe: Mapping[str, Any], secret: bytes) -> None:
        self._samples, self._secret = samples, secret
        self._steps = count_steps(recipe, len(samples))
        self.expected: int = min(count_rows_a_step(recipe), len(samples))

    def __len__(self) -> int:
        return self._steps

    def draw(self, number: int) -> list[Sample]:
        """Return the rows of step `number`, counted from 0."""
        if self.expected == len(self._samples):
            return list(self._samples)
        stream = Keystream(self._secret, f"appliance/private-training/v1/rows/{number + 1}")
        drawn = numpy.frombuffer(stream.take(8 * len(self._samples)), dtype="<u8")
        below = (self.expected << 64) // len(self._samples)
        places: list[int] = numpy.flatnonzero(drawn < numpy.uint64(below)).tolist()
        return [self._samples[place] for place in places]

    def count_expected(self, steps: int, of: Callable[[Sample], int]) -> int:
        """Return the expected number of tokens in this number of steps, since the real number would reveal the rows."""
        tokens = sum(of(sample) for sample in self._samples)
        return max(1, steps * self.expected * tokens // len(self._samples))


def add_clipped(sums: Sequence[torch.Tensor], gradients: Gradients, clip: float) -> None:
    """Add a row's gradient to the sums, scaled down to norm `clip` if it is longer; skip it if it is not finite."""
    found = [(total, one) for total, one in zip(sums, gradients, strict=True) if one is not None]
    norm = math.sqrt(math.fsum(one.double().square().sum().item() for _, one in found))
    if not math.isfinite(norm):
        return
    for total, one in found:
        total.add_(one.to(total.device), alpha=min(1.0, clip / norm) if norm else 1.0)


def add_noise(sums: Sequence[torch.Tensor], scale: float, secret: bytes, number: int) -> None:
    """Add normal noise with standard deviation `scale` to each number and round the sum to the grid."""
    stream = Keystream(secret, f"appliance/private-training/v1/noise/{number + 1}")
    grid = 2.0 ** (math.frexp(scale)[1] - 1 - GRID)
    for total in sums:
        total.add_(draw_normal(stream, total.numel()).view(total.shape), alpha=scale)
        total.div_(grid).round_().mul_(grid)


def draw_normal(stream: Keystream, count: int) -> torch.Tensor:
    """Return standard normal numbers, float64 [count], by the Box–Muller transform, with 16 bytes for two numbers."""
    pairs = -(-count // 2)
    drawn = numpy.frombuffer(stream.take(16 * pairs), dtype="<u8").reshape(pairs, 2).astype(numpy.float64)
    # The first number of a pair is in (0, 1], the second in [0, 1].
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
    """Set each weight's `grad` for step `number`, counted from 0: the noised sum over the expected number of rows.

    `row_loss` returns the mean loss of one row.

    Raises:
        BadInput: `row_loss` uses random numbers.
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
    """Return the states of torch's random generators."""
    on_card = any(weight.is_cuda for weight in trained)
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if on_card else [])]


def take_secret(recipe: Mapping[str, Any], task: Mapping[str, Any]) -> bytes:
    """Return a task's secret, empty if the recipe is not private.

    Raises:
        BadInput: the task has a secret and the recipe is not private, or the reverse.
    """
    secret = task.get("secret")
    if (secret is not None) != (recipe["privacy"] is not None):
        raise BadInput(f"task, secret: expected {'one' if recipe['privacy'] else 'none'}, got another recipe's")
    return b"" if secret is None else bytes.fromhex(secret)
