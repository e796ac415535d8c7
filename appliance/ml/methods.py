"""Training methods: how trainable weights are put on a frozen, quantised base, and taken off as an adapter.

Through peft, so that the adapter is the format that everybody reads. Only what the engine can serve is trained.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from appliance.errors import BadInput
from appliance.ml.base import Base

METHODS = ("qlora",)


def attach_adapter(base: Base, recipe: Mapping[str, Any]) -> Any:
    """A peft model in training mode over the base; its adapter starts as no change at all (B is zero)."""
    if recipe["method"] not in METHODS:
        raise BadInput(f"recipe, method: expected {' or '.join(METHODS)}, got {recipe['method']!r}")
    config = LoraConfig(
        r=recipe["rank"],
        lora_alpha=recipe["alpha"],
        lora_dropout=float(recipe["dropout"]),
        target_modules=list(recipe["target_modules"]),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers by a name that it is about to drop.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        model = get_peft_model(base.model, config)
    if recipe["gradient_checkpointing"]:
        _enable_checkpointing(base.model)
    model.train()
    return model


def _enable_checkpointing(model: Any) -> None:
    """Each layer's activations are computed again in the backward pass instead of kept."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def list_trainable(model: Any) -> list[torch.nn.Parameter]:
    """The adapter's parameters, float32, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def name_trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The same by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_changed(model: Any) -> bool:
    """Whether the adapter does anything: every B begins as zero."""
    return any(bool(weight.ne(0).any()) for name, weight in model.named_parameters() if "lora_B" in name)


def encode_adapter(model: Any, base_name: str) -> tuple[bytes, bytes]:
    """The adapter's weights (safetensors) and configuration (JSON, sorted), as peft and other engines read them."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(state.items())}
    weights: bytes = safetensors.torch.save(tensors, metadata={"format": "pt"})
    config = model.peft_config["default"]
    stated = {
        "base_model_name_or_path": base_name,
        "bias": config.bias,
        "fan_in_fan_out": config.fan_in_fan_out,
        "inference_mode": True,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": config.modules_to_save,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": sorted(config.target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }
    return weights, json.dumps(stated, indent=1, sort_keys=True).encode() + b"\n"
