"""Products of few rows on the CPU, with NF4 layers and with a head in bf16: a kernel that reads each weight once, as it
is stored. On a CPU with AMX it is the quickest for many rows, too.

Weights are looked up in bf16, inputs are rounded to bf16, sums and outputs are float32. A row's bits are its own,
however many rows there are. bitsandbytes and torch have such kernels, too, but each reads a layout of its own: the
weights would be in memory twice, since prompts are read from the weights as they are stored.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import bitsandbytes
import torch

from appliance.ml.quantised.blocks import join_blocks
from appliance.ml.quantised.kernels import Product, load_kernels

# As in _rows.c.
_ROWS, _BLOCK, _LANES = 16, 64, 32


@cache
def _find_kernel() -> Any | None:
    """The compiled function; None where the processor lacks what it needs."""
    kernels = load_kernels()
    if not kernels.fits_rows():
        return None
    has_tiles()
    function = kernels.multiply_rows
    function.argtypes = (ctypes.POINTER(Product), ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    function.restype = None
    return function


@cache
def has_tiles() -> bool:
    """Whether the kernel multiplies by tiles: NF4 then takes any number of rows, quicker than torch does."""
    return bool(load_kernels().use_tiles(True))


def fits_nf4_rows(layers: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether the kernel has what these layers need."""
    return (
        dtype == torch.bfloat16
        and all(_fits(layer) for layer in layers)
        and layers[0].in_features % _BLOCK == 0
        and _find_kernel() is not None
    )


def _fits(layer: Any) -> bool:
    if not isinstance(layer, bitsandbytes.nn.Linear4bit) or layer.weight.device.type != "cpu":
        return False
    state = layer.weight.quant_state
    stored = not getattr(state, "packing_format_for_cpu", False)
    return stored and state.quant_type == "nf4" and state.blocksize == _BLOCK


def make_nf4_rows(layers: Sequence[Any]) -> FewRows:
    """The product with layers that read one input: all of their outputs, side by side."""
    weights, scales = join_blocks(layers)
    table = layers[0].weight.quant_state.code.to(torch.bfloat16).repeat(2)
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat([one.detach().float() for one in biases])
    shape = sum(layer.out_features for layer in layers), layers[0].in_features
    return FewRows(shape, weights, table, scales, bias)


def make_bf16_rows(weight: torch.Tensor) -> FewRows | None:
    """The product with a weight [out, in] in bf16; None where there is no kernel for it."""
    fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.shape[1] % _LANES == 0
    return FewRows(tuple(weight.shape), weight) if fits and weight.is_contiguous() and _find_kernel() else None


class FewRows:
    """The product of x [rows, in], float32, with weights: [rows, out], float32."""

    def __init__(
        self,
        shape: tuple[int, ...],
        weights: torch.Tensor,
        table: torch.Tensor | None = None,
        scales: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> None:
        self._outer, self._inner = shape
        self._held = weights, table, scales, bias  # What the kernel is given the addresses of.
        addresses = (None if one is None else one.data_ptr() for one in (table, weights, scales, bias))
        self.product = Product(self._inner, self._outer, *addresses)
        self._scratch = torch.empty(0, dtype=torch.bfloat16)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32 and x.is_contiguous()
        made = torch.empty(len(x), self._outer)
        # As _rows.c divides it.
        rows = _ROWS if len(x) <= _ROWS else (len(x) + 2 * _ROWS - 1) // _ROWS * _ROWS
        needed = torch.get_num_threads() * rows * self._inner
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.bfloat16)
        multiply, scratch = _find_kernel(), self._scratch.data_ptr()
        assert multiply is not None
        multiply(self.product, len(x), x.data_ptr(), made.data_ptr(), scratch)
        return made
