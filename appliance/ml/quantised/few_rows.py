"""Products of few rows with layers packed by GPTQ: torch's kernel for 4-bit weights on the CPU.

It reads the weights once, packed, where dequantising writes and reads them four times as large. It multiplies in
bfloat16, with a scale and an offset for each group that are rounded to bfloat16. Weights of 8 bits are two of 4: their
product is 16 times that of the upper halves, and that of the lower. Inputs that are grouped by activation are brought
into the groups' order first. A row's bits are its own, however many rows there are: a test holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from appliance.ml.quantised.linear import GptqLinear

# What the kernel takes: inputs that share a scale, and whole blocks of outputs.
_GROUPS = (256, 128, 64, 32)
_OUTPUTS = 16
_MIDDLE = 8
# Outputs that are packed at once: a multiple of the blocks in which the kernel lays them out, of 64 at most.
_ROWS, _BLOCK = 512, 64

_pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
_multiply = torch.ops.aten._weight_int4pack_mm_for_cpu


def fits_few_rows(layers: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether the kernel has what these layers need."""
    return dtype == torch.bfloat16 and all(
        isinstance(layer, GptqLinear)
        and layer.qweight.device.type == "cpu"
        and layer.group % _GROUPS[-1] == 0
        and layer.out_features % _OUTPUTS == 0
        for layer in layers
    )


def join_few_rows(layers: Sequence[GptqLinear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product of x [rows, in] with layers that read one input, [rows, all of their outputs], bfloat16."""
    plain = all(layer.find_order() is None and layer.out_features % _BLOCK == 0 for layer in layers)
    same = len({(layer.group, layer.bits) for layer in layers}) == 1
    products = [_FewRows(layers)] if plain and same else [_FewRows([layer]) for layer in layers]
    if len(products) == 1:
        return products[0]
    return lambda x: torch.cat([product(x) for product in products], dim=1)


def find_few_rows(layer: Any, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The product of one layer with x, if the kernel has what it needs; packed at the first use."""
    if not fits_few_rows([layer], x.dtype):
        return None
    if layer.few_rows is None:
        layer.few_rows = join_few_rows([layer])
    found: Callable[[torch.Tensor], torch.Tensor] = layer.few_rows
    return found


class _FewRows:
    """Layers of one order of inputs, packed behind one another."""

    def __init__(self, layers: Sequence[GptqLinear]) -> None:
        first = layers[0]
        index = first.find_order()
        self._order = None if index is None else torch.argsort(index, stable=True)
        self._size = next(size for size in _GROUPS if first.group % size == 0)
        scales, zeros = (
            torch.cat(parts, dim=1) for parts in zip(*(layer.read_factors() for layer in layers), strict=True)
        )
        times = first.group // self._size
        self._halves = [
            (torch.cat([self._pack(layer, half) for layer in layers]), _join_factors(scale, offset, times))
            for half, (scale, offset) in enumerate(_split_factors(first.bits, scales, zeros))
        ]
        biases = [_read_bias(layer) for layer in layers]
        self._bias = torch.cat(biases) if any(layer.bias is not None for layer in layers) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = (x if self._order is None else x[:, self._order]).contiguous()
        result, *others = (_multiply(x, weight, self._size, factors) for weight, factors in self._halves)
        for other in others:
            result = (result.float() + other.float()).to(x.dtype)
        made: torch.Tensor = result if self._bias is None else result + self._bias
        return made

    def _pack(self, layer: GptqLinear, half: int) -> torch.Tensor:
        """Some outputs at a time: in between, a weight takes eight bytes and more."""
        parts = []
        for words in torch.split(layer.qweight, _ROWS, dim=1):
            values = layer.unpack(words).flatten(0, 1).t().to(torch.int32)
            if self._order is not None:
                values = values[:, self._order]
            if layer.bits == 8:
                values = values >> 4 if half == 0 else values & 15
            parts.append(_pack(values.contiguous(), 2))
        return torch.cat(parts)


def _read_bias(layer: GptqLinear) -> torch.Tensor:
    if layer.bias is None:
        return torch.zeros(layer.out_features, dtype=torch.bfloat16)
    return layer.bias.detach().to(torch.bfloat16)


def _split_factors(bits: int, scales: torch.Tensor, zeros: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each 4 bits, the upper first: their scale and what is added, so that scale * (number - 8) + what is added,
    summed over them, is the weight."""
    if bits == 4:
        return [(scales, scales * (_MIDDLE - zeros))]
    # scale * (16 * upper + lower - zero), with 8 taken off both.
    return [(16 * scales, torch.zeros_like(scales)), (scales, scales * (17 * _MIDDLE - zeros))]


def _join_factors(scales: torch.Tensor, offsets: torch.Tensor, times: int) -> torch.Tensor:
    """[groups * times, out, 2]: a group that the kernel has no size for is several of the same factors."""
    both = torch.stack([scales, offsets], dim=-1).to(torch.bfloat16)
    return both.repeat_interleave(times, dim=0).contiguous()
