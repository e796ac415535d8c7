"""RMSNorm (https://arxiv.org/abs/1910.07467), forward and backward, as the library computes it: in float32, scaled in
the dtype of what came in."""

from __future__ import annotations

from typing import Any

import torch


def divide_by_rms(x: torch.Tensor, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """x̂ = x r and r = 1/√(mean x² + ε) of the last dimension, float32: what forward and backward share."""
    wide = x.float()
    square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    scale = square.div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    return wide * scale, scale


def normalise(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return apply_weight(divide_by_rms(x, norm)[0], norm)


def apply_weight(unit: torch.Tensor, norm: Any) -> torch.Tensor:
    """x̂ scaled, in the dtype of the scale."""
    weight: torch.Tensor = norm.weight
    return unit.to(weight.dtype).mul_(weight)


def normalise_backward(grad: torch.Tensor, unit: torch.Tensor, scale: torch.Tensor, norm: Any) -> torch.Tensor:
    """The gradient of x is r (g - x̂ mean(g x̂)), with g that of x̂."""
    inner = (grad * norm.weight).float()
    along = (inner * unit).mean(-1, keepdim=True)
    result: torch.Tensor = inner.addcmul_(unit, along, value=-1).mul_(scale)
    return result.to(grad.dtype)
