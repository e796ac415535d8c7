"""Linear layers with packed weights: GPTQ layers, dequantised for each product, and kernels for few rows.

A weight is scale * (q - zero). Both factors are exact in float32, and so is their product if the scale is float16: in
float32 the weights are exact, in bfloat16 each is rounded once. Each product dequantises the layer's weights, and so
does its backward pass. The tensors are those of the file, so on a CPU they can stay memory-mapped; scales and zeros are
also kept in float32.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import bitsandbytes
import torch

from appliance.ml.quantised.gptq import Gptq, GptqLayer
from appliance.ml.quantised.kernels import Product, load_kernels
from appliance.ml.quantised.nf4 import join_biases, join_blocks

# Number of weights that are dequantised at once, so that intermediate values fit in a processor's cache.
CHUNK = 1 << 20
_CHUNK_ON_CARD = 1 << 26
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class GptqLinear(torch.nn.Linear):
    """A linear layer packed by GPTQ.

    `weight` is None; use `dequantise` instead. Buffers have GPTQ's tensor names. `few_rows` is the function for
    products of few rows, created at its first use.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor | None
    bias: torch.nn.Parameter | None  # type: ignore[assignment]

    def __init__(self, gptq: Gptq, layer: GptqLayer, dtype: torch.dtype, device: torch.device) -> None:
        # Skips Linear's own constructor, which would allocate the weight.
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.inputs, layer.outputs
        self.bits, self.group, self._version = gptq.bits, layer.group, gptq.version
        # dtype of the layer's products and of its bias.
        self.dtype = dtype
        self.register_parameter("weight", None)
        bias = torch.empty(layer.outputs, dtype=dtype, device=device) if layer.bias else None
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias, requires_grad=False))
        per, groups = gptq.per_word, layer.groups

        def integers(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        self.register_buffer("qweight", integers(layer.inputs // per, layer.outputs))
        self.register_buffer("qzeros", integers(groups, layer.outputs // per))
        self.register_buffer("scales", torch.empty(groups, layer.outputs, dtype=_DTYPES[layer.scales], device=device))
        self.register_buffer("g_idx", integers(layer.inputs) if layer.indexed else None)
        self._factors: tuple[torch.Tensor, torch.Tensor] | None = None
        self.few_rows: Callable[[torch.Tensor], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            result: torch.Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
            return result
        return torch.nn.functional.linear(x, self.dequantise(x.dtype), self.bias)

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [out, in] as a transposed view; in memory it is [in, out]."""
        made = torch.empty(self.in_features, self.out_features, dtype=dtype, device=self.qweight.device)
        self.dequantise_into(made)
        return made.t()

    @torch.no_grad()
    def dequantise_into(self, made: torch.Tensor) -> None:
        """Write the dequantised weight to `made` [in, out]."""
        per = 32 // self.bits
        scales, zeros = self.read_factors()
        words = _split_rows(made, per)
        chunk = CHUNK if made.device.type == "cpu" else _CHUNK_ON_CARD
        index = self.find_order()
        if index is None and self.group % per == 0:
            self._fill_groups(words, scales, zeros, chunk)
            return
        if index is None:
            index = torch.arange(self.in_features, device=made.device) // self.group
        rows = max(1, chunk // (per * self.out_features))
        for start in range(0, len(words), rows):
            own = index[start * per : (start + rows) * per]
            values = self.unpack(self.qweight[start : start + rows])
            shape = values.shape
            values = values.sub_(zeros[own].view(shape))
            torch.mul(values, scales[own].view(shape), out=words[start : start + rows])

    def _fill_groups(self, words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, chunk: int) -> None:
        """Dequantise groups of whole 32-bit words, whose scales and zeros need no indexing."""
        each = self.group * self.bits // 32
        size = self.group * self.out_features
        groups, rows = max(1, chunk // size), min(each, max(1, each * chunk // size))
        packed, made = self.qweight.view(-1, each, self.out_features), _split_rows(words, each)
        for group in range(0, len(packed), groups):
            part = slice(group, group + groups)
            zero, scale = zeros[part, None, None], scales[part, None, None]
            for row in range(0, each, rows):
                values = self.unpack(packed[part, row : row + rows]).sub_(zero)
                torch.mul(values, scale, out=made[part, row : row + rows])

    def unpack(self, words: torch.Tensor) -> torch.Tensor:
        """Return the integers in packed words [..., words, out] as float32 [..., words, weights per word, out]."""
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32, device=words.device)
        return (words.unsqueeze(-2) >> shifts[:, None]).bitwise_and_((1 << self.bits) - 1).to(torch.float32)

    def read_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scales and zeros, each float32 [groups, out]."""
        if self._factors is None:
            zeros = self.unpack(self.qzeros.t().contiguous()).flatten(-3, -2).t().contiguous()
            self._factors = self.scales.float(), zeros.add_(1) if self._version == 1 else zeros
        return self._factors

    def find_order(self) -> torch.Tensor | None:
        """Return the group of each input, int64 [in]; None if the inputs are in the order of the groups."""
        if self.g_idx is None:
            return None
        plain = torch.arange(self.in_features, dtype=torch.int32, device=self.g_idx.device) // self.group
        return None if torch.equal(self.g_idx, plain) else self.g_idx.long()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group={self.group}"


def _split_rows(made: torch.Tensor, each: int) -> torch.Tensor:
    """Return a view [rows / each, each, ...]."""
    return made.unflatten(0, (-1, each))  # type: ignore[no-untyped-call, no-any-return]


class _Product(torch.autograd.Function):
    """The product x W^T + b with a gradient of x only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: GptqLinear) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.dequantise(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad @ ctx.layer.dequantise(grad.dtype), None


# Must equal the values in _rows.c.
_BLOCK, _LANES = 64, 32

_thread_buffers = threading.local()


def _get_buffer(count: int) -> torch.Tensor:
    """Return a 64-byte aligned bf16 buffer of at least `count` numbers, shared by all products of this thread."""
    room: torch.Tensor | None = getattr(_thread_buffers, "numbers", None)
    if room is None or room.numel() < count:
        room = _thread_buffers.numbers = torch.empty(count, dtype=torch.bfloat16)
    return room


class _Kernel(NamedTuple):
    """The compiled functions for a product and for the size of its buffer per thread."""

    multiply: Any
    find_room: Any


@cache
def _find_kernel() -> _Kernel | None:
    """Return the compiled functions; None if the processor lacks an instruction that they need."""
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
    """Return True if the kernel multiplies by tiles; NF4 then takes any number of rows faster than torch."""
    return bool(load_kernels().use_tiles(True))


def fits_nf4_rows(layers: Sequence[Any], dtype: torch.dtype) -> bool:
    """Return True if the kernel supports these NF4 layers."""
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
    """Return the product with NF4 layers that share an input; their outputs are concatenated."""
    weights, scales = join_blocks(layers)
    table = layers[0].weight.quant_state.code.to(torch.bfloat16).repeat(2)
    bias = join_biases(layers)
    shape = sum(layer.out_features for layer in layers), layers[0].in_features
    return FewRows(shape, weights, table, scales, None if bias is None else bias.float())


def make_bf16_rows(weight: torch.Tensor) -> FewRows | None:
    """Return the product with a bf16 weight [out, in]; None if no kernel supports it."""
    fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.shape[1] % _LANES == 0
    return FewRows(tuple(weight.shape), weight) if fits and weight.is_contiguous() and _find_kernel() else None


class FewRows:
    """A product of x, float32 [rows, in], with fixed weights; the result is float32 [rows, out]."""

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
        room = _get_buffer(threads * kernel.find_room(self.product, len(x)))
        kernel.multiply(self.product, len(x), x.data_ptr(), made.data_ptr(), room.data_ptr(), threads)
        return made


# Group sizes that the kernel supports, and its block of outputs.
_GROUPS = (256, 128, 64, 32)
_OUTPUTS = 16
_MIDDLE = 8
# Outputs that are packed at once: a multiple of the kernel's block of at most 64 outputs.
_ROWS, _FEW_ROWS_BLOCK = 512, 64

_pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
_multiply = torch.ops.aten._weight_int4pack_mm_for_cpu


def fits_few_rows(layers: Sequence[Any], dtype: torch.dtype) -> bool:
    """Return True if the kernel supports these GPTQ layers."""
    return dtype == torch.bfloat16 and all(
        isinstance(layer, GptqLinear)
        and layer.qweight.device.type == "cpu"
        and layer.group % _GROUPS[-1] == 0
        and layer.out_features % _OUTPUTS == 0
        for layer in layers
    )


def join_few_rows(layers: Sequence[GptqLinear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product of x, bfloat16 [rows, in], with layers that share an input; outputs are concatenated."""
    plain = all(layer.find_order() is None and layer.out_features % _FEW_ROWS_BLOCK == 0 for layer in layers)
    same = len({(layer.group, layer.bits) for layer in layers}) == 1
    products = [_FewRows(layers)] if plain and same else [_FewRows([layer]) for layer in layers]
    if len(products) == 1:
        return products[0]
    return lambda x: torch.cat([product(x) for product in products], dim=1)


def find_few_rows(layer: Any, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return the product of one layer for inputs like x; None if the kernel does not support it.

    Packs at the first use.
    """
    if not fits_few_rows([layer], x.dtype):
        return None
    if layer.few_rows is None:
        layer.few_rows = join_few_rows([layer])
    found: Callable[[torch.Tensor], torch.Tensor] = layer.few_rows
    return found


class _FewRows:
    """Layers with the same order of inputs, packed contiguously."""

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
        """Pack a few outputs at a time, since intermediate values take eight bytes and more per weight."""
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
    """Return the scale and offset for each 4 bits of a weight, the upper first.

    The weight is the sum over them of scale * (number - 8) + offset.
    """
    if bits == 4:
        return [(scales, scales * (_MIDDLE - zeros))]
    # scale * (16 * upper + lower - zero), with 8 subtracted from both numbers.
    return [(16 * scales, torch.zeros_like(scales)), (scales, scales * (17 * _MIDDLE - zeros))]


def _join_factors(scales: torch.Tensor, offsets: torch.Tensor, times: int) -> torch.Tensor:
    """Return the factors, bf16 [groups * times, out, 2]; each group is repeated if the kernel lacks its size."""
    both = torch.stack([scales, offsets], dim=-1).to(torch.bfloat16)
    return both.repeat_interleave(times, dim=0).contiguous()
