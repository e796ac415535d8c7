"""RMSNorm (https://arxiv.org/abs/1910.07467), forward and backward, as the library computes it: in float32, scaled in
the dtype of what came in, or in float32 where the architecture says so."""

from __future__ import annotations

from typing import Any

import torch

from appliance.ml.layers.architecture import Row


class Norm:
    """A norm of the library's, whose weight is frozen."""

    def __init__(self, module: Any, row: Row) -> None:
        epsilon = getattr(module, "variance_epsilon", None)
        self._epsilon = float(module.eps if epsilon is None else epsilon)
        self._dtype: torch.dtype = module.weight.dtype
        self._weight: torch.Tensor = module.weight.detach()
        if row.wide_norm:
            self._weight = self._weight.float() + (1.0 if row.norm_offset else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.divide(x)[0])

    def divide(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x̂ = x r and r = 1/√(mean x² + ε) of the last dimension, float32: what forward and backward share."""
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(self._epsilon).rsqrt_()
        return wide * scale, scale

    def scale(self, unit: torch.Tensor) -> torch.Tensor:
        """x̂ scaled, in the dtype of the norm's weight."""
        # Not in place: x̂ is needed again in the backward pass, and in float32 it is the same tensor.
        if self._weight.dtype == self._dtype:
            return unit.to(self._dtype) * self._weight
        return (unit * self._weight).to(self._dtype)

    def backward(self, grad: torch.Tensor, unit: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The gradient of x is r (g - x̂ mean(g x̂)), with g that of x̂."""
        inner = (grad * self._weight).float()
        along = (inner * unit).mean(-1, keepdim=True)
        result: torch.Tensor = inner.addcmul_(unit, along, value=-1).mul_(scale)
        return result.to(grad.dtype)


def make_norm(layer: Any, name: str | None, row: Row) -> Norm | None:
    """The layer's norm of that name; None where the architecture has none there."""
    return None if name is None else Norm(layer.get_submodule(name), row)
