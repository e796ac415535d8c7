"""Frozen linear layers that share an input, and their LoRA adapters, forward and backward without a graph.

Query, key and value share an input, as do gate and up. Their W, A and B are one matrix each, with zeros in B between
one layer's outputs and another's ranks. The formula is LoRA's (https://arxiv.org/abs/2106.09685): y = W x + s B A x.
Products have the base's compute dtype; A, B and their gradients are stored in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import bitsandbytes
import torch

from appliance.ml.layers.fixed import multiply_in_blocks
from appliance.ml.quantised.linear import FewRows, GptqLinear, fits_nf4_rows, has_tiles, make_nf4_rows
from appliance.ml.quantised.nf4 import join_biases, join_blocks

Tensors = list[torch.Tensor]
FEW_ROWS = 64
"""Number of rows up to which the kernel for few rows is faster than dequantising the weights."""
Rows = Literal["many", "few", "fixed"]
"""Methods to multiply rows without gradients.

`many`: the fastest for many rows. `few`: the fastest for few rows, whose bits may differ.
`fixed`: as in training, in blocks, so that a row's bits do not depend on the other rows on any CPU (`fixed.py`).
"""


@dataclass(frozen=True)
class LowRank:
    """An adapter's update of layers that share an input.

    `down` is every A, [ranks, in]; `up` is every B, [out, ranks]. Each layer has its own rows and columns.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float

    def forget(self) -> None:
        """Overwrite the update with zeros."""
        self.down.zero_()
        self.up.zero_()


class Projections:
    """Linear layers of a decoder layer with a common input [tokens, in]; outputs are concatenated, [tokens, out]."""

    def __init__(self, modules: Sequence[torch.nn.Module], *, keeps: bool) -> None:
        adapted: list[Any] = [module if is_adapted(module) else None for module in modules]
        linears: list[Any] = [
            module if one is None else one.get_base_layer() for module, one in zip(modules, adapted, strict=True)
        ]
        self._frozen = _Frozen(linears, keeps)
        self._cast: tuple[torch.Tensor, torch.Tensor] | None = None
        # Output rows of each adapted layer, and its rows in the common A.
        self._places: list[tuple[slice, slice]] = []
        self.parameters: list[torch.nn.Parameter] = []
        self._scaling, self._dropout, rank, out = 1.0, 0.0, 0, 0
        for linear, layer in zip(linears, adapted, strict=True):
            out += linear.out_features
            if layer is None:
                continue
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            self._places.append((slice(out - linear.out_features, out), slice(rank, rank + down.shape[0])))
            self.parameters += [down, up]
            self._scaling, self._dropout = float(layer.scaling["default"]), _dropout(layer)
            rank += down.shape[0]
        self._shape = (out, rank)
        self.is_bare = False
        self._sizes = [linear.out_features for linear in linears]

    def multiply_each(self, pieces: Sequence[torch.Tensor], low: LowRank | None, rows: Rows) -> list[torch.Tensor]:
        """Return the outputs of several inputs with an adapter that is not trained, or without one.

        The weights are dequantised once for all inputs. The bits of each output equal those of the input alone.
        """
        few = None if rows == "fixed" else self._frozen.find_few_rows()
        most = FEW_ROWS if rows == "few" else 0
        if few is not None and has_tiles():
            most = sys.maxsize
        weight = None
        outputs = []
        for x in pieces:
            if few is not None and len(x) <= most:
                output = few(x.float()).to(x.dtype)
            else:
                weight = self._frozen.weight(x.dtype) if weight is None else weight
                linear = partial(torch.nn.functional.linear, weight=weight, bias=self._frozen.bias)
                output = multiply_in_blocks(linear, x) if rows == "fixed" else linear(x)
            if low is not None and rows == "fixed":
                output += multiply_in_blocks(partial(_multiply_low, low), x)
            elif low is not None:
                output.addmm_(x @ low.down.T, low.up.T, alpha=low.scaling)
            outputs.append(output)
        return outputs

    def join(
        self, names: Sequence[str], weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scaling: float
    ) -> LowRank | None:
        """Return an adapter's A and B of these layers, by name, for `multiply_each`; None if it has none of them."""
        pairs = [weights.get(name) for name in names]
        found = [pair for pair in pairs if pair is not None]
        if not found:
            return None
        down = torch.cat([pair[0] for pair in found])
        up = down.new_zeros(sum(self._sizes), len(down))
        out = rank = 0
        for pair, size in zip(pairs, self._sizes, strict=True):
            if pair is not None:
                up[out : out + size, rank : rank + len(pair[0])] = pair[1]
                rank += len(pair[0])
            out += size
        return LowRank(down.to(self._frozen.dtype), up.to(self._frozen.dtype), scaling)

    @property
    def drops(self) -> bool:
        return self._dropout > 0 and not self.is_bare

    def forward(self, x: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the outputs [tokens, out], and A x [tokens, ranks] for the backward pass (None without an adapter).

        With `is_bare`, the adapters are not applied.
        """
        output = torch.nn.functional.linear(x, self._frozen.weight(x.dtype), self._frozen.bias)
        if self.is_bare or not self._places:
            return output, None
        down, up = self._cast = self._join_adapters(x.dtype)
        low = self._apply_dropout(x, seed) @ down.T
        return output.addmm_(low, up.T, alpha=self._scaling), low

    def backward(
        self, grad: torch.Tensor, x: torch.Tensor, low: torch.Tensor | None, seed: int, *, needs_x: bool
    ) -> tuple[torch.Tensor | None, Tensors]:
        """Return the gradient of x (None unless `needs_x`) and the gradients of `parameters`, in their order."""
        grad_x = grad @ self._frozen.weight(x.dtype) if needs_x else None
        if low is None:
            return grad_x, []
        assert self._cast is not None
        down, up = self._cast
        grad_low = (grad @ up).mul_(self._scaling)
        # Only the rows and columns of one layer's B are used; the other products are small and discarded.
        grad_up = grad.T @ low
        grad_down = grad_low.T @ self._apply_dropout(x, seed)
        if grad_x is not None and not self._dropout:
            grad_x.addmm_(grad_low, down)
        elif grad_x is not None:
            grad_x += self._apply_dropout(grad_low @ down, seed)
        gradients: Tensors = []
        for out, rows in self._places:
            gradients += [grad_down[rows].float(), grad_up[out, rows].float().mul_(self._scaling)]
        return grad_x, gradients

    def _join_adapters(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all A, [ranks, in], and all B, [out, ranks], in the dtype of the products.

        They are joined again in every forward pass, since an optimiser may change a parameter without notice to torch.
        """
        with torch.no_grad():
            down = torch.cat([parameter.to(dtype) for parameter in self.parameters[::2]])
            up = down.new_zeros(self._shape)
            for (out, rows), parameter in zip(self._places, self.parameters[1::2], strict=True):
                up[out, rows] = parameter
            return down, up

    def _apply_dropout(self, x: torch.Tensor, seed: int) -> torch.Tensor:
        """Apply dropout to the adapters' input; the seed reproduces the same mask in the backward pass."""
        if not self._dropout:
            return x
        generator = torch.Generator(x.device).manual_seed(seed)
        kept = torch.empty_like(x).bernoulli_(1 - self._dropout, generator=generator)
        return x * kept.mul_(1 / (1 - self._dropout))


def is_adapted(module: torch.nn.Module) -> bool:
    """Return True if PEFT has added LoRA to the module; does not import PEFT, which serving does not load."""
    return hasattr(module, "lora_A")


def _dropout(layer: Any) -> float:
    return float(getattr(layer.lora_dropout["default"], "p", 0.0))


def _multiply_low(low: LowRank, x: torch.Tensor) -> torch.Tensor:
    return ((x @ low.down.T) @ low.up.T).mul_(low.scaling)


class _Frozen:
    """The layers' frozen weights as one matrix [out, in], either kept or built for each use.

    4-bit weights are dequantised. The blocks of several layers are contiguous and form one tensor; the layers' own
    weights become views of it. The double quantisation of the block scales is undone once, since there is only one
    scale for 64 weights. Layers packed by GPTQ are dequantised side by side.
    """

    def __init__(self, linears: Sequence[Any], keeps: bool) -> None:
        self._linears, self._keeps = linears, keeps
        self.dtype = _find_dtype(linears[0])
        self._kept: torch.Tensor | None = None
        self._few_rows: FewRows | None = None
        self._blocks = join_blocks(linears) if isinstance(linears[0], bitsandbytes.nn.Linear4bit) else None
        self.bias = join_biases(linears)

    def find_few_rows(self) -> FewRows | None:
        """Return the function for products of few rows; None if there is no kernel for these layers."""
        if self._few_rows is None and fits_nf4_rows(self._linears, self.dtype):
            self._few_rows = make_nf4_rows(self._linears)
        return self._few_rows

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        if self._kept is not None:
            return self._kept
        made = self._join(dtype) if self._blocks is None else self._dequantise(*self._blocks, dtype)
        if self._keeps:
            self._kept = made
        return made

    def _join(self, dtype: torch.dtype) -> torch.Tensor:
        if any(isinstance(linear, GptqLinear) for linear in self._linears):
            return self._join_packed(dtype)
        weights = [linear.weight.detach().to(dtype) for linear in self._linears]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _join_packed(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the joined weights [out, in] as a transposed view; in memory they are [in, out]."""
        sizes = [linear.out_features for linear in self._linears]
        first = self._linears[0]
        device = first.qweight.device if isinstance(first, GptqLinear) else first.weight.device
        made = torch.empty(first.in_features, sum(sizes), dtype=dtype, device=device)
        for linear, part in zip(self._linears, torch.split(made, sizes, dim=1), strict=True):
            if isinstance(linear, GptqLinear):
                linear.dequantise_into(part)
            else:
                part.copy_(linear.weight.detach().t())
        return made.t()

    def _dequantise(self, packed: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        state = self._linears[0].weight.quant_state
        shape = [sum(linear.out_features for linear in self._linears), self._linears[0].in_features]
        made: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            packed, scales, state.blocksize, state.quant_type, shape, dtype
        )
        return made


def _find_dtype(linear: Any) -> torch.dtype:
    """Return the dtype of the layer's products."""
    if isinstance(linear, GptqLinear):
        return linear.dtype
    dtype: torch.dtype = getattr(linear, "compute_dtype", None) or linear.weight.dtype
    return dtype
