"""Training methods: how trainable weights are put on a base, and taken off as what is saved.

Through peft, so that an adapter is the format that everybody reads. The base stays as it was under every method but
`full`, which trains it: what is evaluated and served is the base that was imported, and the adapter.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from peft import IA3Config, LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.ia3 import IA3Layer

from appliance.domain.recipe.methods import ADAPTER_WEIGHTS, METHODS
from appliance.errors import BadInput
from appliance.formats.core.digest import Hasher
from appliance.ml.inference import adapters
from appliance.ml.layers.architecture import find_architecture
from appliance.ml.model import folder
from appliance.ml.model.base import Base
from appliance.ml.training import starts, targets

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
IA3_MODULES = ("k_proj", "v_proj", "down_proj")
"""What IA3 scales where the recipe names all of them: keys, values and the inner activations, as in its paper."""


@dataclass(frozen=True)
class Attached:
    """A model with trainable weights, and what tells whether they have moved: a peft model; for `full` the base's own.

    `began`: the digest of the weights that `full` began with, None for every other method; `saved_as`: the dtype that
    they are kept in.
    """

    model: Any
    method: str
    began: str | None
    saved_as: torch.dtype


def attach_adapter(base: Base, recipe: Mapping[str, Any]) -> Attached:
    """A model in training mode over the base, which starts as no change at all."""
    _check_no_reader(base)
    method = recipe["method"]
    if method not in METHODS:
        raise BadInput(f"recipe, method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "full":
        model = base.model.requires_grad_(True)
        began = digest_weights(model)
    else:
        model, began = _wrap(base.model, _configure(base.model, recipe)), None
        if method in starts.STARTS:
            starts.begin(model, method, seed=recipe["seed"])
    if recipe["gradient_checkpointing"] != "none":
        _enable_checkpointing(base.model)
    model.train()
    return Attached(model, method, began, base.autocast or torch.float32)


def _check_no_reader(base: Base) -> None:
    """What is put on the library's modules is not seen by layers that were written out by hand before."""
    if base.reader is not None:
        raise ValueError("base: expected one that was loaded without a reader, got one that reads past its adapters")


def _configure(model: Any, recipe: Mapping[str, Any]) -> LoraConfig | IA3Config:
    roles = list(recipe["target_modules"])
    modules = name_modules(model, roles)
    if recipe["method"] == "ia3":
        scaled = name_modules(model, [role for role in roles if role in IA3_MODULES] or roles)
        inner = [name for name in name_modules(model, FEED_FORWARD) if name in scaled]
        return IA3Config(target_modules=scaled, feedforward_modules=inner, task_type="CAUSAL_LM")
    # Beside what is trained stands where it began; alpha / rank stays what it is.
    times = 2 if recipe["method"] in starts.STARTS else 1
    return LoraConfig(
        r=times * recipe["rank"],
        lora_alpha=times * recipe["alpha"],
        lora_dropout=float(recipe["dropout"]),
        target_modules=modules,
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=recipe["method"] == "rslora",
        use_dora=recipe["method"] == "dora",
        target_parameters=targets.name_parameters(model, recipe) or None,
    )


def name_modules(model: Any, roles: Sequence[str]) -> list[str]:
    """The model's own names for the roles of linear layers that a recipe names.

    BadInput where one layer of the model plays several roles and a recipe names some of them.
    """
    architecture = find_architecture(model)
    if architecture is None:
        return targets.name_modules(model, roles)
    names = architecture.row.modules
    chosen = {names[role] for role in roles}
    for role, name in names.items():
        if name in chosen and role not in roles:
            together = [other for other, same in names.items() if same == name]
            raise BadInput(
                f"recipe, target_modules: expected {', '.join(together)} together, which are one layer of this base, "
                f"got {', '.join(roles)}"
            )
    return list(dict.fromkeys(names[role].rsplit(".", 1)[-1] for role in roles))


def _wrap(model: Any, config: LoraConfig | IA3Config) -> Any:
    with warnings.catch_warnings():
        # peft asks transformers by a name that it is about to drop.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        wrapped = get_peft_model(model, config)
    for module in wrapped.modules():
        if isinstance(module, IA3Layer):
            # Its float32 factors would carry the rest of the model up to float32.
            module.register_forward_hook(lambda _, given, output: output.to(given[0].dtype))
    return wrapped


def _enable_checkpointing(model: Any) -> None:
    """Each layer's activations are computed again in the backward pass instead of kept."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def list_trainable(model: Any) -> list[torch.nn.Parameter]:
    """The trained weights, float32, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def name_trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The same by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_changed(attached: Attached) -> bool:
    """Whether what was trained does anything that it did not do when it began."""
    if attached.began is not None:
        return attached.began != digest_weights(attached.model)
    if attached.method in starts.STARTS:
        return starts.is_moved(attached.model)
    # B begins as zero, and while it is, A and DoRA's magnitude change nothing that is of use; IA3's factors begin as 1.
    begins = {"lora_B": 0.0, "ia3_l": 1.0}
    return any(
        bool(weight.ne(begin).any())
        for name, weight in name_trainable(attached.model).items()
        for part, begin in begins.items()
        if part in name
    )


def digest_weights(model: Any) -> str:
    """Over the bytes of every trained weight, in the model's order."""
    hasher = Hasher()
    for weight in list_trainable(model):
        plain = weight.detach().to("cpu").contiguous()
        hasher.update(plain.view(torch.uint8).numpy().data)
    return hasher.digest()


def name_files(method: str) -> tuple[str, str]:
    """The files of what `encode_adapter` gives."""
    weights = METHODS[method].weights
    return weights, adapters.CONFIG_FILE if weights == ADAPTER_WEIGHTS else folder.CONFIG_FILE


def encode_adapter(attached: Attached, base_name: str) -> tuple[bytes, bytes]:
    """The weights (safetensors) and configuration (JSON, sorted), as peft and other engines read them.

    `full` gives the base's weights in the dtype that they are judged in, and the base's configuration.
    """
    model = attached.model
    if attached.method == "full":
        return _encode_model(model, attached.saved_as)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    stated = _state_config(model.peft_config["default"]) | {"base_model_name_or_path": base_name}
    return _encode_tensors(state), json.dumps(stated, indent=1, sort_keys=True).encode() + b"\n"


def _state_config(config: Any) -> dict[str, Any]:
    stated = {
        "inference_mode": True,
        "modules_to_save": config.modules_to_save,
        "peft_type": config.peft_type.value,
        "target_modules": sorted(config.target_modules),
        "task_type": "CAUSAL_LM",
    }
    if isinstance(config, IA3Config):
        return stated | {"feedforward_modules": sorted(config.feedforward_modules)}
    return stated | {
        "bias": config.bias,
        "fan_in_fan_out": config.fan_in_fan_out,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "r": config.r,
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        **({"target_parameters": sorted(config.target_parameters)} if config.target_parameters else {}),
    }


def _encode_model(model: Any, dtype: torch.dtype) -> tuple[bytes, bytes]:
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items() if name not in tied}
    config = model.config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    return _encode_tensors(state), json.dumps(config, indent=1, sort_keys=True).encode() + b"\n"


def _encode_tensors(state: Mapping[str, torch.Tensor]) -> bytes:
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(state.items())}
    data: bytes = safetensors.torch.save(tensors, metadata={"format": "pt"})
    return data


def apply_trained(base: Base, config: bytes, weights: bytes) -> Any:
    """Puts what was trained, by any method, on a base, for good: the base's own answers are gone.

    The peft model; for `full` the base's own.
    """
    _check_no_reader(base)
    try:
        tensors, stated = safetensors.torch.load(weights), json.loads(config)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise BadInput(f"trained weights: expected safetensors and JSON, got: {error}") from None
    if "peft_type" not in stated:
        _apply_model(base.model, tensors)
        return base.model
    kinds: dict[str, type[LoraConfig] | type[IA3Config]] = {"LORA": LoraConfig, "IA3": IA3Config}
    kind = kinds.get(method := stated.pop("peft_type"))
    stated.pop("base_model_name_or_path", None)
    if kind is None:
        raise BadInput(f"trained weights, peft_type: expected LORA or IA3, got {str(method)[:40]}")
    model = _wrap(base.model, kind(**stated))
    result = set_peft_model_state_dict(model, tensors)
    if result.unexpected_keys or any(part in key for key in result.missing_keys for part in ("lora_", "ia3_")):
        different = ", ".join(sorted({*result.unexpected_keys, *result.missing_keys})[:3])
        raise BadInput(f"trained weights: expected those of the adapted layers, got a difference in {different}")
    model.eval()
    return model


def _apply_model(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: (tensor.dtype, tensor.shape) for name, tensor in expected.items()}
    if different := sorted(name for name, _ in shapes.items() ^ wanted.items())[:3]:
        found = ", ".join(different)
        raise BadInput(f"trained weights: expected this base's names, shapes and dtypes, got a difference in {found}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
