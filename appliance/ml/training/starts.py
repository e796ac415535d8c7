"""OLoRA and PiSSA: LoRA that begins at the base's own strongest directions instead of at zero.

peft takes the beginning out of the base's weights, so that nothing is changed at first; over NF4 it quantises what is
left once more, and such a base exists nowhere else. Here the base is never written. The beginning B0 A0 is held still
and subtracted in the adapter itself: B A - B0 A0 is plain LoRA of twice the rank, of rows [A; A0] and columns [B, -B0].
So it is converted back from its first step on, and what is judged and served is, bit for bit, what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import bitsandbytes
import torch
from torch.nn.functional import pad

from appliance.ml.quantised.linear import GptqLinear

ADAPTER = "default"
ITERATIONS = 8
"""Of the subspace: what it leaves over is within a hundredth of what the exact decomposition leaves, even of noise."""


def begin(model: Any, method: str, *, seed: int) -> None:
    """Gives every adapted layer, of twice the recipe's rank, its beginning. Draws from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for layer in list_layers(model):
        (a, b), rank = _take_pair(layer), layer.r[ADAPTER] // 2
        found = STARTS[method](read_weight(layer.get_base_layer()), rank, layer.scaling[ADAPTER], generator)
        start_a, start_b = _fill_up(*found, rank)
        with torch.no_grad():
            a.copy_(torch.cat([start_a, start_a]))
            b.copy_(torch.cat([start_b, -start_b], dim=1))
        a.register_hook(  # type: ignore[no-untyped-call]
            partial(_hold_still, rank=rank, dim=0)
        )
        b.register_hook(  # type: ignore[no-untyped-call]
            partial(_hold_still, rank=rank, dim=1)
        )


def _fill_up(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A start of this rank. A layer has no more directions than its smaller side. What is left of the rank is zeros,
    which no gradient moves: the other directions already reach every change of such a layer."""
    missing = rank - len(a)
    return pad(a, (0, 0, 0, missing)), pad(b, (0, missing))


def _take_pair(layer: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _hold_still(gradient: torch.Tensor, *, rank: int, dim: int) -> torch.Tensor:
    """No gradient for the second half: without weight decay, an Adam of any kind leaves it where it is."""
    trained = gradient.narrow(dim, 0, rank)
    return torch.cat([trained, torch.zeros_like(trained)], dim=dim)


def list_layers(model: Any) -> Iterator[Any]:
    """The adapted layers, in the model's order."""
    return (module for module in model.modules() if ADAPTER in getattr(module, "lora_A", ()))


def read_weight(layer: Any) -> torch.Tensor:
    """[out, in], float32: what the layer multiplies with."""
    if isinstance(layer, GptqLinear):
        return layer.dequantise(torch.float32)
    weight = layer.weight
    if isinstance(weight, bitsandbytes.nn.Params4bit):
        weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.detach().float()  # type: ignore[no-any-return]


def _orthonormal(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """OLoRA (Büyükakyüz, 2024): the first columns of Q and rows of R."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def _principal(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """PiSSA (Meng et al., 2024): the largest singular values, shared between A and B; found by subspace iteration."""
    draw = torch.randn(weight.shape[1], min(rank + 8, *weight.shape), generator=generator).to(weight.device)
    basis = torch.linalg.qr(weight @ draw).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis).Q).Q
    u, values, v = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    roots = (values[:rank] / scale).sqrt()
    return roots[:, None] * v[:rank], (basis @ u)[:, :rank] * roots


STARTS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {"olora": _orthonormal, "pissa": _principal}


def is_moved(model: Any) -> bool:
    """Whether any layer differs from its beginning, which is kept beside it."""
    for layer in list_layers(model):
        (a, start_a), (b, start_b) = (weight.chunk(2, dim=dim) for dim, weight in enumerate(_take_pair(layer)))
        if not torch.equal(a, start_a) or not torch.equal(b, -start_b):
            return True
    return False
