"""A linear layer whose weight stays packed as GPTQ stored it, and is dequantised where it is multiplied.

A weight is scale * (q - zero). Both factors are exact in float32, and so is their product where the scale is float16:
in float32 the weights are exact, in bfloat16 each is rounded once. A product dequantises the layer's weights for as
long as it lasts, and its backward pass does so again. The tensors are the file's own, so on the CPU they can stay
mapped; beside them are kept scales and zeros in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from appliance.ml.quantised.gptq import Gptq, GptqLayer

# Weights that are dequantised at once: what stands between packed and made stays in a processor's cache.
CHUNK = 1 << 20
_CHUNK_ON_CARD = 1 << 26
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class GptqLinear(torch.nn.Linear):
    """`weight` is None: what needs it calls `dequantise`. Buffers are named as GPTQ names its tensors. `few_rows` is
    the product of few rows (`few_rows.py`), once it was needed."""

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor | None
    bias: torch.nn.Parameter | None  # type: ignore[assignment]

    def __init__(self, gptq: Gptq, layer: GptqLayer, dtype: torch.dtype, device: torch.device) -> None:
        # Not Linear's own: it would allocate the weight.
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.inputs, layer.outputs
        self.bits, self.group, self._version = gptq.bits, layer.group, gptq.version
        # What it multiplies in, and what its bias is.
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
        """[out, in], a view: in memory it stands as [in, out]."""
        made = torch.empty(self.in_features, self.out_features, dtype=dtype, device=self.qweight.device)
        self.dequantise_into(made)
        return made.t()

    @torch.no_grad()
    def dequantise_into(self, made: torch.Tensor) -> None:
        """Fills [in, out]."""
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
        """Groups of whole words: each one's scales and zeros are read where they stand."""
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
        """[..., words, out] as the weights' whole numbers [..., words, weights a word, out], float32."""
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32, device=words.device)
        return (words.unsqueeze(-2) >> shifts[:, None]).bitwise_and_((1 << self.bits) - 1).to(torch.float32)

    def read_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zeros, [groups, out], float32."""
        if self._factors is None:
            zeros = self.unpack(self.qzeros.t().contiguous()).flatten(-3, -2).t().contiguous()
            self._factors = self.scales.float(), zeros.add_(1) if self._version == 1 else zeros
        return self._factors

    def find_order(self) -> torch.Tensor | None:
        """Each input's group, where inputs do not stand in the groups' order."""
        if self.g_idx is None:
            return None
        plain = torch.arange(self.in_features, dtype=torch.int32, device=self.g_idx.device) // self.group
        return None if torch.equal(self.g_idx, plain) else self.g_idx.long()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, group={self.group}"


def _split_rows(made: torch.Tensor, each: int) -> torch.Tensor:
    """[rows / each, each, ...], a view."""
    return made.unflatten(0, (-1, each))  # type: ignore[no-untyped-call, no-any-return]


class _Product(torch.autograd.Function):
    """x W^T + b, of which only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: GptqLinear) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.dequantise(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad @ ctx.layer.dequantise(grad.dtype), None
