"""A model's head, from the last norm's output to logits, and its norms and activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, gelu, silu

from appliance.domain.planning.packs import HEAD_ROWS
from appliance.ml.layers.architecture import ArchitectureRow, find_architecture
from appliance.ml.layers.fixed import multiply_in_blocks

_CLOSE = 0.02
"""Allowed difference between logits from bfloat16 rounding, as a share of the largest logit."""


@dataclass(frozen=True)
class Head:
    """The output projection of a model.

    `weight` is [vocabulary, hidden]. Logits are divided by `divisor`, then each logit l becomes c tanh(l / c) with c =
    `softcap`. If `fixed` is True, evaluated rows go through products of one shape (`fixed.py`).
    """

    weight: torch.Tensor
    divisor: float = 1.0
    softcap: float | None = None
    fixed: bool = False

    def logits(self, hidden: torch.Tensor, words: Sequence[int] | None = None) -> torch.Tensor:
        """Return the logits [rows, words] of `hidden` [rows, size], in its dtype.

        `words` selects tokens of the vocabulary; None for all.
        """
        return self.finish(hidden @ (self.weight if words is None else self.weight[list(words)]).to(hidden.dtype).T)

    def evaluate_logits(self, hidden: torch.Tensor, words: Sequence[int] | None = None) -> torch.Tensor:
        """Return the logits of `hidden`; on a CPU the bits of a row do not depend on the other rows."""
        return (
            multiply_in_blocks(lambda block: self.logits(block, words), hidden)
            if self.fixed
            else self.logits(hidden, words)
        )

    def token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of each target, float64 [rows], without gradients; 512 rows at a time."""
        parts = zip(torch.split(hidden, HEAD_ROWS), torch.split(targets, HEAD_ROWS), strict=True)
        losses = [cross_entropy(self.evaluate_logits(one).float(), target, reduction="none") for one, target in parts]
        return torch.cat(losses).double()

    def find_likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the most likely next token after each row, int64 [rows]; 512 rows at a time."""
        return torch.cat([self.evaluate_logits(one).argmax(dim=-1) for one in torch.split(hidden, HEAD_ROWS)])

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the divisor and the soft cap to the product with the weight."""
        if self.divisor != 1:
            logits = logits / self.divisor
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def finish_backward(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the product with the weight, given the finished logits and their gradient."""
        if self.softcap is not None:
            grad = grad * (1 - (logits / self.softcap).square())
        return grad if self.divisor == 1 else grad / self.divisor


def sum_losses(
    hidden: torch.Tensor,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return the sum of `loss(hidden, targets)` for each row, [rows].

    A row is its positions in `hidden`, [tokens, size], and the token that follows each.
    """
    places = torch.tensor([place for some, _ in rows for place in some], device=hidden.device)
    targets = torch.tensor([token for _, some in rows for token in some], device=hidden.device)
    owners = torch.tensor([row for row, (some, _) in enumerate(rows) for _ in some], device=hidden.device)
    losses = loss(hidden[places], targets)
    return losses.new_zeros(len(rows)).index_add(0, owners, losses)


@torch.no_grad()
def check_head(model: Any) -> bool:
    """Return True if `make_head` reproduces the library's own logits from the last norm's output."""
    ids = torch.tensor([[1, 2, 3]], device=model.device)
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected, got = model(input_ids=ids, use_cache=False).logits[0].float(), make_head(model).logits(hidden).float()
    bias = getattr(model.get_output_embeddings(), "bias", None)
    return bias is None and bool((got - expected).abs().max() <= _CLOSE * expected.abs().max())


def make_head(model: Any) -> Head:
    """Return the head of a loaded model, with or without PEFT adapters."""
    architecture, weight = find_architecture(model), model.get_output_embeddings().weight
    if architecture is None:
        # Operations of the library's decoders on the product, by their configuration; `check_head` compares the
        # results.
        config = model.config.to_dict()
        divisor = float(config.get("logits_scaling") or 1) / float(config.get("logit_scale") or 1)
        return Head(weight, divisor, config.get("final_logit_softcapping"))
    return Head(weight, architecture.logits_scaling, architecture.logits_softcap)


@dataclass(frozen=True)
class ActivationFunction:
    """An activation function; `backward(grad, x, out)` writes the gradient of x into `out`."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    backward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def _silu_backward(grad: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return gelu(x, approximate="tanh")


def _gelu_backward(grad: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    torch.ops.aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=out)


ACTIVATIONS = {
    "silu": ActivationFunction(silu, _silu_backward),
    "gelu_pytorch_tanh": ActivationFunction(_gelu, _gelu_backward),
}
"""Activations by their name in the configuration: those that the table of architectures supports."""


class Norm:
    """An RMS norm of the library with a frozen weight."""

    def __init__(self, module: Any, row: ArchitectureRow) -> None:
        epsilon = getattr(module, "variance_epsilon", None)
        self._epsilon = float(module.eps if epsilon is None else epsilon)
        self._dtype: torch.dtype = module.weight.dtype
        self._weight: torch.Tensor = module.weight.detach()
        if row.wide_norm:
            self._weight = self._weight.float() + (1.0 if row.norm_offset else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.divide(x)[0])

    def divide(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x̂ = x r and r = 1/√(mean x² + ε) over the last dimension, both float32."""
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(self._epsilon).rsqrt_()
        return wide * scale, scale

    def scale(self, unit: torch.Tensor) -> torch.Tensor:
        """Return x̂ times the weight, in the dtype of the norm's weight."""
        # Not in place: the backward pass needs x̂, and in float32 it is the same tensor.
        if self._weight.dtype == self._dtype:
            return unit.to(self._dtype) * self._weight
        return (unit * self._weight).to(self._dtype)

    def backward(self, grad: torch.Tensor, unit: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the gradient of x: r (g - x̂ mean(g x̂)), with g the gradient of x̂."""
        inner = (grad * self._weight).float()
        along = (inner * unit).mean(-1, keepdim=True)
        result: torch.Tensor = inner.addcmul_(unit, along, value=-1).mul_(scale)
        return result.to(grad.dtype)


def make_norm(layer: Any, name: str | None, row: ArchitectureRow) -> Norm | None:
    """Return the layer's norm of that name; None if the architecture has none at that point."""
    return None if name is None else Norm(layer.get_submodule(name), row)
