"""What a GPTQ folder's small tensors hold, checked at import: zeros, scales and groups. The weights are not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch

from appliance.errors import BadInput
from appliance.ml.quantised.gptq import Gptq, GptqLayer, find_layers
from appliance.ml.quantised.headers import Header, read_headers


def check_values(folder: Path, files: list[str], gptq: Gptq) -> None:
    """BadInput names the first tensor of which something is out of range."""
    headers = read_headers(folder, files)
    layers = find_layers(gptq, headers)
    for file in sorted(files):
        with safetensors.safe_open(folder / file, framework="pt") as weights:
            for name, layer in layers.items():
                _check_layer(weights, name, layer, gptq, headers, file)


def _check_layer(weights: Any, name: str, layer: GptqLayer, gptq: Gptq, headers: dict[str, Header], file: str) -> None:
    """Of a layer what stands in this file: its tensors may lie in several."""
    checks = {"qzeros": _check_zeros, "scales": _check_scales, "g_idx": _check_groups}
    for part, check in checks.items():
        tensor = f"{name}.{part}"
        if tensor in headers and headers[tensor].file == file:
            check(weights.get_tensor(tensor), f"base, {tensor}", layer, gptq)


def _check_zeros(zeros: torch.Tensor, what: str, layer: GptqLayer, gptq: Gptq) -> None:
    """In version 1 the largest number would be a zero of 2^bits, and is what is left where 1 was taken off a zero of 0:
    the borrow has changed its neighbour, too."""
    most = (1 << gptq.bits) - 1
    if gptq.version != 1:
        return
    shifts = torch.arange(0, 32, gptq.bits, dtype=torch.int32)
    if bool(((zeros[..., None] >> shifts) & most).eq(most).any()):
        raise BadInput(
            f"{what}: expected stored zeros of 0 to {most - 1} in checkpoint_format gptq, got {most}, which programs "
            "read as two different zeros: bring the model in checkpoint_format gptq_v2"
        )


def _check_scales(scales: torch.Tensor, what: str, layer: GptqLayer, gptq: Gptq) -> None:
    if not bool(scales.isfinite().all()):
        raise BadInput(f"{what}: expected finite numbers, got others")


def _check_groups(index: torch.Tensor, what: str, layer: GptqLayer, gptq: Gptq) -> None:
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= layer.groups:
        raise BadInput(f"{what}: expected groups from 0 to {layer.groups - 1}, got {low if low < 0 else high}")
    counts = torch.bincount(index, minlength=layer.groups)
    if not bool(counts.eq(layer.group).all()):
        wrong = int(counts.ne(layer.group).nonzero()[0])
        raise BadInput(f"{what}: expected {layer.group} inputs in group {wrong}, got {int(counts[wrong])}")
