"""Products of few rows on the CPU, with NF4 layers and with a head in bf16: a kernel that reads each weight once, as it
is stored. On a CPU with AMX it is the quickest for many rows, too.

Weights are looked up in bf16, inputs are rounded to bf16, sums and outputs are float32. A row's bits are its own,
however many rows there are. bitsandbytes and torch have such kernels, too, but each reads a layout of its own: the
weights would be in memory twice, since prompts are read from the weights as they are stored.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import bitsandbytes
import torch

from appliance.ml.quantised.blocks import join_biases, join_blocks
from appliance.ml.quantised.kernels import Product, load_kernels

# As in _rows.c.
_BLOCK, _LANES = 64, 32

_held_room = threading.local()


def _room(count: int) -> torch.Tensor:
    """bf16 numbers on 64 bytes, for one call: all products of a thread take the same, as large as the largest needs."""
    room: torch.Tensor | None = getattr(_held_room, "numbers", None)
    if room is None or room.numel() < count:
        room = _held_room.numbers = torch.empty(count, dtype=torch.bfloat16)
    return room


class _Kernel(NamedTuple):
    """The compiled functions: of a product, and of the room that it needs of each thread's own."""

    multiply: Any
    find_room: Any


@cache
def _find_kernel() -> _Kernel | None:
    """None where the processor lacks what it needs."""
    kernels = load_kernels()
    if not kernels.fits_rows():
        return None
    has_tiles()
    found = _Kernel(kernels.multiply_rows, kernels.find_room)
    found.multiply.argtypes = (ctypes.POINTER(Product), ctypes.c_int64, *[ctypes.c_void_p] * 3, ctypes.c_int64)
    found.multiply.restype = None
    found.find_room.argtypes = (ctypes.POINTER(Product), ctypes.c_int64)
    found.find_room.restype = ctypes.c_int64
    return found


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
    bias = join_biases(layers)
    shape = sum(layer.out_features for layer in layers), layers[0].in_features
    return FewRows(shape, weights, table, scales, None if bias is None else bias.float())


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

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32 and x.is_contiguous()
        made = torch.empty(len(x), self._outer)
        kernel, threads = _find_kernel(), torch.get_num_threads()
        assert kernel is not None
        room = _room(threads * kernel.find_room(self.product, len(x)))
        kernel.multiply(self.product, len(x), x.data_ptr(), made.data_ptr(), room.data_ptr(), threads)
        return made
