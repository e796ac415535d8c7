"""Layers that read one input, as one: their biases behind one another, and of 4-bit layers their packed weights and the
scales of their blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from bitsandbytes.functional import dequantize_blockwise

_SCALES: WeakKeyDictionary[torch.nn.Module, dict[int, torch.Tensor]] = WeakKeyDictionary()
"""By the first of the layers and their number: they are an eighth of the packed weights."""


def join_blocks(linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed weights of 4-bit layers behind one another, [bytes, 1], and the scale of each block, float32.

    All who read these layers share them: the layers' own weights become views, and the scales are kept.
    """
    first = linears[0]
    scales = _SCALES.get(first, {}).get(len(linears))
    if scales is None:
        scales = _SCALES.setdefault(first, {})[len(linears)] = _join_scales(linears)
    return _join_weights(linears), scales


def join_biases(linears: Sequence[Any]) -> torch.Tensor | None:
    """[all outputs]: zeros where a layer has none; None where none has one."""
    if all(linear.bias is None for linear in linears):
        return None
    like = next(linear.bias for linear in linears if linear.bias is not None)
    return torch.cat(
        [like.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach() for linear in linears]
    )


def _join_scales(linears: Sequence[Any]) -> torch.Tensor:
    states = [linear.weight.quant_state for linear in linears]
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise ValueError("a layer that was used in evaluation mode has its weights packed, and is trained no more")
    if any(math.prod(state.shape) % state.blocksize for state in states[:-1]):
        raise ValueError("a layer whose weights are no whole number of blocks is not joined with others")
    return torch.cat([_scales(state) for state in states])


def _join_weights(linears: Sequence[Any]) -> torch.Tensor:
    if len(linears) == 1:
        weight: torch.Tensor = linears[0].weight.data
        return weight
    if _stand_together([linear.weight.data for linear in linears]):
        whole = sum(linear.weight.numel() for linear in linears)
        return linears[0].weight.data.as_strided((whole, 1), (1, 1))  # type: ignore[no-any-return]
    packed = torch.cat([linear.weight.data.flatten() for linear in linears])[:, None]
    start = 0
    for linear in linears:
        stop = start + linear.weight.numel()
        linear.weight.data = packed[start:stop]
        start = stop
    return packed


def _stand_together(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether they were joined before, for another reader of the same layers."""
    place = tensors[0].storage_offset()
    for tensor in tensors:
        if tensor.untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr():
            return False
        if tensor.storage_offset() != place or not tensor.is_contiguous():
            return False
        place += tensor.numel()
    return True


def _scales(state: Any) -> torch.Tensor:
    if not state.nested:
        return state.absmax.float()  # type: ignore[no-any-return]
    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()  # type: ignore[no-any-return]
