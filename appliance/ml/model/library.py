"""Architectures that transformers knows and the table of ours does not, as mixtures of experts and hybrid layers.

They go through the library's own modules, one sequence at a time. Here is what a configuration must say before anything
is read, and what the modules must have before any weight is. Importing this file needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from appliance.ml.layers.architecture import ROLES, ROPE_TYPES, TABLE, find_gap, read_rope_types

ATTENTION_ROLES = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = "experts"
"""The library's name for the module that holds all experts of a layer, as two parameters."""
EXPERT_PARAMETERS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Of that module, and the roles that they play."""
MAX_EXPERTS = 1_024
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_RECURRENT = ("mamba", "linear_attention")
# Those whose angles depend on a token's position alone.
_ROPE_TYPES = tuple(kind for kind in ROPE_TYPES if kind != "longrope")
_WRAPPER = "ForConditionalGeneration"


def goes_through_library(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of another architecture than the table's, or has experts or recurrent layers."""
    if str((config.get("architectures") or [""])[0]) not in TABLE:
        return True
    layers = config.get("layer_types") or config.get("layers_block_type") or ()
    recurrent = isinstance(layers, list | tuple) and any(kind in _RECURRENT for kind in layers)
    return bool(count_experts(config)) or recurrent


def count_experts(config: Mapping[str, Any]) -> int:
    """Of a layer; 0 where it has none."""
    found = next((config[name] for name in _EXPERT_COUNTS if config.get(name)), 0)
    return found if type(found) is int else MAX_EXPERTS + 1


def find_refusal(config: Mapping[str, Any]) -> str | None:
    """Why no base is made of a configuration, as `member: expected X, got Y`; None where one is."""
    if not goes_through_library(config):
        return find_gap(config)
    name = str((config.get("architectures") or ["nothing"])[0])
    if name.endswith(_WRAPPER):
        text = name.removesuffix(_WRAPPER) + "ForCausalLM"
        return (
            f"architectures: expected a text model, as {text}, got {name}, which holds one beside an encoder of images "
            "or sound; bring its text model, saved by itself"
        )
    return _find_unknown(config, name) or _find_odd_member(config)


def _find_unknown(config: Mapping[str, Any], name: str) -> str | None:
    # Takes seconds, and most bases are in the table.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if name not in KNOWN.values() or not name.endswith("ForCausalLM"):
        return f"architectures: expected one of {', '.join(TABLE)} or another decoder that transformers has, got {name}"
    expected = [kind for kind, known in KNOWN.items() if known == name]
    if config.get("model_type") not in expected:
        return f"model_type: expected {' or '.join(expected)} for {name}, got {config.get('model_type')!r:.40}"
    return None


def _find_odd_member(config: Mapping[str, Any]) -> str | None:
    if (experts := count_experts(config)) > MAX_EXPERTS:
        member = next(name for name in _EXPERT_COUNTS if config.get(name))
        return f"{member}: expected a whole number up to {MAX_EXPERTS}, got {config[member]!r:.40} ({experts})"
    if config.get("is_encoder_decoder"):
        return "is_encoder_decoder: expected a decoder alone, got true"
    for kind in read_rope_types(config):
        if kind not in _ROPE_TYPES:
            return f"rope_type: expected {' or '.join(_ROPE_TYPES)}, got {kind!r:.40}"
    return None


def list_roles(model: Any) -> list[str]:
    """The roles, as recipes name them, that linear layers or experts of a model play."""
    row = TABLE.get(type(model).__name__)
    linears = [name for name, module in model.named_modules() if hasattr(module, "in_features")]
    by_experts = {role for name in list_experts(model) for role in EXPERT_PARAMETERS[name.rsplit(".", 1)[-1]]}
    found = []
    for role in ROLES:
        name = role if row is None else row.modules[role]
        if role in by_experts or any(f".{linear}".endswith(f".{name}") for linear in linears):
            found.append(role)
    return found


def list_experts(model: Any) -> list[str]:
    """The ends of the names of experts' parameters, from the layer on, as `mlp.experts.down_proj`; each once."""
    found: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        *above, module, last = name.split(".")
        if module == EXPERTS and last in EXPERT_PARAMETERS and parameter.dim() == 3:
            found[".".join([above[-1], module, last])] = None
    return list(found)


def check_modules(folder: Path) -> None:
    """BadInput for an architecture whose linear layers have not the names that adapters are put on.

    Of a checked folder; the model is built without weights, so that this takes no memory.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not goes_through_library(json.loads((folder / "config.json").read_bytes())):
        return
    config = AutoConfig.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    if missing := [role for role in ATTENTION_ROLES if role not in names]:
        raise BadInput(
            f"base, config.json, architectures: expected attention of linear layers {', '.join(ATTENTION_ROLES)}, "
            f"got {type(model).__name__} without {', '.join(missing)}"
        )
