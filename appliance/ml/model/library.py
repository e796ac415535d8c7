"""Architectures that transformers supports and this project's table does not, such as mixtures of experts and hybrids.

They run in the library's own modules, one sequence at a time. This module checks the configuration before any file is
read, and the modules before any weight is read. Importing it does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import BadInput
from appliance.ml.layers.architecture import (
    EXPERT_COUNTS,
    HYBRIDS,
    ROLES,
    ROPE_TYPES,
    TABLE,
    find_gap,
    find_odd_layers,
    read_rope_types,
)

ATTENTION_ROLES = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = "experts"
"""The library's name of the module that holds all experts of a layer, as two parameters."""
EXPERT_PARAMETERS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Parameters of the experts module, and their roles."""
MAX_EXPERTS = 1_024
_RECURRENT = ("mamba", "linear_attention")
# Rope types whose angles depend only on a token's position.
_ROPE_TYPES = tuple(kind for kind in ROPE_TYPES if kind != "longrope")
# Errors that the library raises for unexpected configurations.
_BUILDING = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_WRAPPER = "ForConditionalGeneration"


def uses_library_layers(config: Mapping[str, Any]) -> bool:
    """Return True if the architecture is not in the table, or has experts or recurrent layers."""
    name = str((config.get("architectures") or [""])[0])
    if name not in TABLE:
        return True
    if name not in HYBRIDS:
        return False
    layers = config.get("layer_types") or config.get("layers_block_type") or ()
    recurrent = isinstance(layers, list | tuple) and any(kind in _RECURRENT for kind in layers)
    return bool(count_experts(config)) or recurrent


def count_experts(config: Mapping[str, Any]) -> int:
    """Return the number of experts of a layer; 0 if there are none."""
    found = next((config[name] for name in EXPERT_COUNTS if config.get(name)), 0)
    return found if type(found) is int else MAX_EXPERTS + 1


def find_refusal(config: Mapping[str, Any]) -> str | None:
    """Return the reason why a configuration is refused, as `field: expected X, got Y`; None if it is accepted."""
    if not uses_library_layers(config):
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
    # The import takes seconds, and most bases are in the table.
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if name not in KNOWN.values() or not name.endswith("ForCausalLM"):
        return f"architectures: expected one of {', '.join(TABLE)} or another decoder that transformers has, got {name}"
    expected = [kind for kind, known in KNOWN.items() if known == name]
    if config.get("model_type") not in expected:
        return f"model_type: expected {' or '.join(expected)} for {name}, got {config.get('model_type')!r:.40}"
    return None


def _find_odd_member(config: Mapping[str, Any]) -> str | None:
    if (experts := count_experts(config)) > MAX_EXPERTS:
        member = next(name for name in EXPERT_COUNTS if config.get(name))
        return f"{member}: expected a whole number up to {MAX_EXPERTS}, got {config[member]!r:.40} ({experts})"
    chosen = config.get("num_experts_per_tok")
    if experts and not (type(chosen) is int and 1 <= chosen <= experts):
        return f"num_experts_per_tok: expected a whole number from 1 to {experts}, got {chosen!r:.40}"
    if config.get("is_encoder_decoder"):
        return "is_encoder_decoder: expected a decoder alone, got true"
    if (gap := find_odd_layers(config)) is not None:
        return gap
    for kind in read_rope_types(config):
        if kind not in _ROPE_TYPES:
            return f"rope_type: expected {' or '.join(_ROPE_TYPES)}, got {kind!r:.40}"
    return None


def list_roles(model: Any) -> list[str]:
    """Return the roles, by their names in recipes, of the model's linear layers and experts."""
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
    """Return the distinct ends of the names of experts' parameters, such as `mlp.experts.down_proj`."""
    found: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        *above, module, last = name.split(".")
        if module == EXPERTS and last in EXPERT_PARAMETERS and parameter.dim() == 3:
            found[".".join([above[-1], module, last])] = None
    return list(found)


def check_modules(folder: Path) -> None:
    """Check that the library can read the configuration of a checked folder.

    If its modules will be used, their linear layers must have the names that adapters need.

    The model is built without weights, so this takes no memory.

    Raises:
        BadInput: the library cannot read the configuration, or the attention has other linear layers.
    """
    import torch
    from transformers.activations import ACT2FN

    config = json.loads((folder / "config.json").read_bytes())
    through_library = uses_library_layers(config)
    for member in ("hidden_act", "hidden_activation", "mlp_hidden_act"):
        if (stated := config.get(member)) is not None and stated not in ACT2FN:
            raise BadInput(f"base, config.json, {member}: expected an activation of transformers, got {stated!r:.40}")
    model = _build(folder, modules=through_library)
    if not through_library:
        return
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    if missing := [role for role in ATTENTION_ROLES if role not in names]:
        raise BadInput(
            f"base, config.json, architectures: expected attention of linear layers {', '.join(ATTENTION_ROLES)}, "
            f"got {type(model).__name__} without {', '.join(missing)}"
        )


def _build(folder: Path, *, modules: bool) -> Any:
    """Return the library's reading of a configuration, or its modules without weights."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        read = AutoConfig.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False)
        if not modules:
            return read
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(read)
    except (StrictDataclassError, *_BUILDING) as error:
        said = " ".join(str(error).split())
        raise BadInput(
            f"base, config.json: expected a configuration that transformers can build, got {said:.200}"
        ) from None
