"""The activations of gated feed-forward layers, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import gelu, silu


@dataclass(frozen=True)
class Activation:
    """`backward(grad, x, out)` writes the gradient of x into `out`."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    backward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def _silu_backward(grad: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=out)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return gelu(x, approximate="tanh")


def _gelu_backward(grad: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> None:
    torch.ops.aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=out)


ACTIVATIONS = {
    "silu": Activation(silu, _silu_backward),
    "gelu_pytorch_tanh": Activation(_gelu, _gelu_backward),
}
"""By the configuration's word; those that the table of architectures admits."""
