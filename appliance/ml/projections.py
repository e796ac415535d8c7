"""Frozen linear layers that read one input, and their adapters: forward and backward without a graph.

Query, key and value read one input, as do gate and up. Their A matrices stand in one product, their weights are
dequantised only for the moment of their use, and B's product is added in place. The arithmetic is LoRA's own
(https://arxiv.org/abs/2106.09685): y = W x + s B A x. Products are in the base's compute dtype; A, B and their
gradients are kept in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_blockwise
from peft.tuners.lora import LoraLayer

Tensors = list[torch.Tensor]


class Projections:
    """Some of a decoder layer's linear layers. Every x is [tokens, in], every y [tokens, out]."""

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        adapted = [module if isinstance(module, LoraLayer) else None for module in modules]
        self._linears: list[Any] = [
            module if one is None else one.get_base_layer() for module, one in zip(modules, adapted, strict=True)
        ]
        self._frozen = _Frozen(self._linears)
        self._cast: tuple[torch.Tensor, Tensors] | None = None
        # Which layers are adapted, and where their rows stand in the common A.
        self._places: list[tuple[int, slice]] = []
        self.parameters: list[torch.nn.Parameter] = []
        self._scaling, self._dropout, rank = 1.0, 0.0, 0
        for number, layer in enumerate(adapted):
            if layer is None:
                continue
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            self._places.append((number, slice(rank, rank + down.shape[0])))
            self.parameters += [down, up]
            self._scaling, self._dropout = float(layer.scaling["default"]), _dropout(layer)
            rank += down.shape[0]

    @property
    def drops(self) -> bool:
        return self._dropout > 0

    def forward(self, x: torch.Tensor, seed: int) -> tuple[Tensors, torch.Tensor | None]:
        """The layers' outputs, and A x for the backward pass."""
        outputs = [
            torch.nn.functional.linear(x, weight, linear.bias)
            for weight, linear in zip(self._frozen.weights(x.dtype), self._linears, strict=True)
        ]
        if not self._places:
            return outputs, None
        down, ups = self._cast = self._in(x.dtype)
        low = self._dropped(x, seed) @ down.T
        for (number, rows), up in zip(self._places, ups, strict=True):
            outputs[number].addmm_(low[:, rows], up.T, alpha=self._scaling)
        return outputs, low

    def backward(
        self, grads: Sequence[torch.Tensor], x: torch.Tensor, low: torch.Tensor | None, seed: int, *, needs_x: bool
    ) -> tuple[torch.Tensor | None, Tensors]:
        """The gradient of x, where it is asked for, and those of the parameters, in their order."""
        grad_x = None
        if needs_x:
            for weight, grad in zip(self._frozen.weights(x.dtype), grads, strict=True):
                grad_x = grad @ weight if grad_x is None else grad_x.addmm_(grad, weight)
        if low is None:
            return grad_x, []
        assert self._cast is not None
        down, ups = self._cast
        grad_low, grads_up = torch.empty_like(low), []
        for (number, rows), up in zip(self._places, ups, strict=True):
            scaled = grads[number] * self._scaling
            torch.mm(scaled, up, out=grad_low[:, rows])
            grads_up.append(scaled.T @ low[:, rows])
        grad_down = grad_low.T @ self._dropped(x, seed)
        if grad_x is not None:
            grad_x += self._dropped(grad_low @ down, seed)
        gradients: Tensors = []
        for (_, rows), grad_up in zip(self._places, grads_up, strict=True):
            gradients += [grad_down[rows].float(), grad_up.float()]
        return grad_x, gradients

    def _in(self, dtype: torch.dtype) -> tuple[torch.Tensor, Tensors]:
        """All A, [ranks, in], and each B, in the dtype that is multiplied in; made anew in every forward pass, since
        an optimiser may change a parameter without telling torch."""
        with torch.no_grad():
            down = torch.cat([parameter.to(dtype) for parameter in self.parameters[::2]])
            return down, [parameter.to(dtype) for parameter in self.parameters[1::2]]

    def _dropped(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        """Dropout of the adapters' input; the seed makes it the same again in the backward pass."""
        if not self._dropout:
            return x
        generator = torch.Generator(x.device).manual_seed(seed)
        kept = torch.empty_like(x).bernoulli_(1 - self._dropout, generator=generator)
        return x * kept.mul_(1 / (1 - self._dropout))


def _dropout(layer: LoraLayer) -> float:
    return float(getattr(layer.lora_dropout["default"], "p", 0.0))


class _Frozen:
    """The layers' own weights, [out, in] each; 4-bit ones are dequantised for as long as they are used.

    The double quantisation of the block scales is undone once: they are a hundredth of the weights.
    """

    def __init__(self, linears: Sequence[Any]) -> None:
        self._linears = linears
        self._scales = [_scales(linear) for linear in linears]

    def weights(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        for linear, scales in zip(self._linears, self._scales, strict=True):
            if scales is None:
                yield linear.weight.to(dtype)
            else:
                state = linear.weight.quant_state
                yield torch.ops.bitsandbytes.dequantize_4bit(
                    linear.weight.data, scales, state.blocksize, state.quant_type, state.shape, dtype
                )


def _scales(linear: Any) -> torch.Tensor | None:
    """The scale of each block of a 4-bit layer, float32; None for another layer."""
    if not isinstance(linear, bitsandbytes.nn.Linear4bit):
        return None
    state = linear.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError("a layer that was used in evaluation mode has its weights packed, and is trained no more")
    if not state.nested:
        return state.absmax.float()  # type: ignore[no-any-return]
    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()  # type: ignore[no-any-return]
