"""The optimisers of a recipe, and their state: what of it a training checkpoint holds, and how it comes back.

All step in float32. AdamW keeps its two moments in it; bitsandbytes keeps those of large weights in 8 bits, by blocks
of 256 with a scale each, and its paged one lets the GPU's driver move them to the host's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bitsandbytes
import torch

from appliance.domain.recipe.methods import CUDA_OPTIMISERS
from appliance.errors import BadInput

_EIGHT_BIT: dict[str, Any] = {
    "adamw-8bit": bitsandbytes.optim.AdamW8bit,
    "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit,
}
_CONSTANT = ("step", "qmap1", "qmap2")
"""Of a state, what follows from the count of steps or from the library alone."""


def build_optimiser(
    weights: Mapping[str, torch.nn.Parameter], recipe: Mapping[str, Any], device: str
) -> torch.optim.Optimizer:
    """Each group has its `ratio`: how much faster than the recipe's learning rate it learns (LoRA+'s B), else 1."""
    name, rate, ratio = recipe["optimiser"], float(recipe["learning_rate"]), float(recipe["rate_ratio"])
    if name in CUDA_OPTIMISERS and device != "cuda":
        raise BadInput(f"recipe, optimiser: expected one that {device} has, since it pages on CUDA alone, got {name}")
    faster = [weight for key, weight in weights.items() if ratio != 1 and "lora_B" in key]
    others = [weight for weight in weights.values() if not any(weight is other for other in faster)]
    groups = [{"params": others, "ratio": 1.0, "lr": rate}]
    if faster:
        groups.append({"params": faster, "ratio": ratio, "lr": rate * ratio})
    decay = float(recipe["weight_decay"])
    if name == "adamw":
        # Fused on the CPU: hundreds of small weights are a kernel each, not a dozen.
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=device == "cpu" or None)
    if name not in _EIGHT_BIT:
        raise BadInput(f"recipe, optimiser: expected adamw, {', '.join(_EIGHT_BIT)}, got {name!r}")
    optimiser: torch.optim.Optimizer = _EIGHT_BIT[name](groups, lr=rate, weight_decay=decay)
    return optimiser


def read_state(optimiser: torch.optim.Optimizer, weight: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """What the optimiser remembers of a weight, by the library's own names; empty before the first step."""
    return {part: value for part, value in optimiser.state.get(weight, {}).items() if part not in _CONSTANT}


def like_state(optimiser: torch.optim.Optimizer, weight: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Tensors of the shape and dtype of what it remembers after a step. Changes nothing."""
    if isinstance(optimiser, torch.optim.AdamW):
        return {"exp_avg": weight, "exp_avg_sq": weight}
    made: Any = type(optimiser)
    scratch = made([weight])
    _begin_state(scratch, weight, 1)
    return read_state(scratch, weight)


def _begin_state(optimiser: Any, weight: torch.nn.Parameter, step: int) -> None:
    if isinstance(optimiser, torch.optim.AdamW):
        moments = {part: torch.zeros_like(weight, requires_grad=False) for part in ("exp_avg", "exp_avg_sq")}
        optimiser.state[weight] = {"step": torch.tensor(float(step)), **moments}
    else:
        optimiser.init_state(optimiser.param_groups[0], weight, 0, 0)
        optimiser.state[weight]["step"] = step


def restore_state(
    optimiser: torch.optim.Optimizer, weight: torch.nn.Parameter, step: int, parts: Mapping[str, torch.Tensor]
) -> None:
    """Puts back what `read_state` gave after so many steps."""
    _begin_state(optimiser, weight, step)
    for part, value in parts.items():
        optimiser.state[weight][part].copy_(value)
