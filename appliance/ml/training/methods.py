"""Training methods: adding trainable weights to a base, and encoding the trained weights.

PEFT adds them, so that the adapter has the usual format. The base is unchanged by every method but `full`, which trains
it: evaluation and serving use the imported base and the adapter.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import bitsandbytes
import safetensors
import safetensors.torch
import torch
from peft import IA3Config, LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.ia3 import IA3Layer
from torch.nn.functional import pad

from appliance.domain.recipe.methods import ADAPTER_WEIGHTS, METHODS
from appliance.domain.recipe.recipe import ON_EXPERTS
from appliance.errors import BadInput
from appliance.formats.core.digest import Hasher
from appliance.ml.inference import adapters
from appliance.ml.layers.architecture import TABLE, find_architecture
from appliance.ml.model import folder
from appliance.ml.model.base import LoadedBase
from appliance.ml.model.library import EXPERT_PARAMETERS, list_experts, list_roles
from appliance.ml.quantised.linear import GptqLinear

ADAPTER = "default"
ITERATIONS = 8
"""Iterations of the subspace method; the residual is within 1 % of that of the exact decomposition, even for noise."""


def begin(model: Any, method: str, *, seed: int) -> None:
    """Initialise every adapted layer, which has twice the recipe's rank, with its own random generator.

    The first half is trained. The second half is the negated start, so that the sum begins at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in list_layers(model):
        (a, b), rank = _take_pair(layer), layer.r[ADAPTER] // 2
        found = STARTS[method](read_weight(layer.get_base_layer()), rank, layer.scaling[ADAPTER], generator)
        start_a, start_b = _pad_start(*found, rank)
        with torch.no_grad():
            a.copy_(torch.cat([start_a, start_a]))
            b.copy_(torch.cat([start_b, -start_b], dim=1))
        a.register_hook(  # type: ignore[no-untyped-call]
            partial(_zero_second_half, rank=rank, dim=0)
        )
        b.register_hook(  # type: ignore[no-untyped-call]
            partial(_zero_second_half, rank=rank, dim=1)
        )


def _pad_start(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad a start to this rank with zeros.

    A layer has no more directions than its smaller side. The zeros receive no gradient, and the other directions can
    express every change of such a layer.
    """
    missing = rank - len(a)
    return pad(a, (0, 0, 0, missing)), pad(b, (0, missing))


def _take_pair(layer: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _zero_second_half(gradient: torch.Tensor, *, rank: int, dim: int) -> torch.Tensor:
    """Zero the gradient of the second half, so that Adam without weight decay does not change it."""
    trained = gradient.narrow(dim, 0, rank)
    return torch.cat([trained, torch.zeros_like(trained)], dim=dim)


def list_layers(model: Any) -> Iterator[Any]:
    """Yield the adapted layers, in the model's order."""
    return (module for module in model.modules() if ADAPTER in getattr(module, "lora_A", ()))


def read_weight(layer: Any) -> torch.Tensor:
    """Return the weight of a layer, float32 [out, in], dequantised."""
    if isinstance(layer, GptqLinear):
        return layer.dequantise(torch.float32)
    weight = layer.weight
    if isinstance(weight, bitsandbytes.nn.Params4bit):
        weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.detach().float()  # type: ignore[no-any-return]


def _start_olora(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the start of OLoRA (Büyükakyüz, 2024): the first rows of R and columns of Q."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def _start_pissa(
    weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the start of PiSSA (Meng et al., 2024): the largest singular values, split between A and B.

    They are computed by subspace iteration.
    """
    draw = torch.randn(weight.shape[1], min(rank + 8, *weight.shape), generator=generator).to(weight.device)
    basis = torch.linalg.qr(weight @ draw).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis).Q).Q
    u, values, v = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    roots = (values[:rank] / scale).sqrt()
    return roots[:, None] * v[:rank], (basis @ u)[:, :rank] * roots


STARTS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {"olora": _start_olora, "pissa": _start_pissa}


def is_moved(model: Any) -> bool:
    """Return True if any layer differs from its start, which its second half holds."""
    for layer in list_layers(model):
        (a, start_a), (b, start_b) = (weight.chunk(2, dim=dim) for dim, weight in enumerate(_take_pair(layer)))
        if not torch.equal(a, start_a) or not torch.equal(b, -start_b):
            return True
    return False


def list_target_modules(model: Any, roles: Sequence[str]) -> list[str]:
    """Return the ends of names of linear layers with these roles.

    Raises:
        BadInput: no layer has one of the roles.
    """
    row, found, played = TABLE.get(type(model).__name__), list[str](), set[str]()
    linears = [name for name, module in model.named_modules() if hasattr(module, "in_features")]
    parameters = {role for name in list_experts(model) for role in EXPERT_PARAMETERS[name.rsplit(".", 1)[-1]]}
    for role in roles:
        names = [role] if row is None else [row.modules[role]]
        mine = [name for name in names if any(f".{linear}".endswith(f".{name}") for linear in linears)]
        found += mine
        played |= {role} if mine or role in parameters else set()
    if missing := [role for role in roles if role not in played]:
        raise BadInput(
            f"recipe, target_modules: expected some of {', '.join(list_roles(model))}, which this base has, "
            f"got {', '.join(missing)}"
        )
    return list(dict.fromkeys(found))


def name_parameters(model: Any, recipe: Mapping[str, Any]) -> list[str]:
    """Return the ends of names of the experts' parameters with the recipe's roles; empty without experts.

    Raises:
        BadInput: the method or dropout is not supported for parameters, or only some roles of a parameter are listed.
    """
    chosen = [name for name in list_experts(model) if set(_get_roles(name)) & set(recipe["target_modules"])]
    for name in chosen:
        if not set(_get_roles(name)) <= set(recipe["target_modules"]):
            raise BadInput(
                f"recipe, target_modules: expected {', '.join(_get_roles(name))} together, which are one parameter of "
                f"this base's experts, got {', '.join(recipe['target_modules'])}"
            )
    if chosen and recipe["method"] not in ON_EXPERTS:
        raise BadInput(
            f"recipe, method: expected one of {', '.join(ON_EXPERTS)} for experts, got {recipe['method']}; "
            "name the attention's layers alone in target_modules"
        )
    if chosen and float(recipe["dropout"]):
        raise BadInput(f"recipe, dropout: expected 0.0 for experts, got {recipe['dropout']}")
    return chosen


def _get_roles(name: str) -> tuple[str, ...]:
    return EXPERT_PARAMETERS[name.rsplit(".", 1)[-1]]


FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
IA3_MODULES = ("k_proj", "v_proj", "down_proj")
"""Roles that IA3 scales if the recipe lists all roles: keys, values and inner activations, as in its paper."""


@dataclass(frozen=True)
class TrainableModel:
    """A model with trainable weights: a PEFT model, or for `full` the base's own model.

    `began` is the digest of the initial weights for `full`, None for other methods. `saved_as` is the dtype of the
    saved weights.
    """

    model: Any
    method: str
    began: str | None
    saved_as: torch.dtype


def attach_adapter(base: LoadedBase, recipe: Mapping[str, Any]) -> TrainableModel:
    """Return the base's model in training mode with a new adapter, whose initial output equals the base's."""
    _check_no_reader(base)
    method = recipe["method"]
    if method not in METHODS:
        raise BadInput(f"recipe, method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "full":
        model = base.model.requires_grad_(True)
        began = digest_weights(model)
    else:
        model, began = _wrap(base.model, _configure(base.model, recipe)), None
        if method in STARTS:
            begin(model, method, seed=recipe["seed"])
    if recipe["gradient_checkpointing"] != "none":
        _enable_checkpointing(base.model)
    model.train()
    return TrainableModel(model, method, began, base.autocast or torch.float32)


def _check_no_reader(base: LoadedBase) -> None:
    """Refuse a base with hand-written layers, which would ignore adapters on the library's modules."""
    if base.reader is not None:
        raise ValueError("base: expected one that was loaded without a reader, got one that reads past its adapters")


def _configure(model: Any, recipe: Mapping[str, Any]) -> LoraConfig | IA3Config:
    roles = list(recipe["target_modules"])
    modules = name_modules(model, roles)
    if recipe["method"] == "ia3":
        scaled = name_modules(model, [role for role in roles if role in IA3_MODULES] or roles)
        inner = [name for name in name_modules(model, FEED_FORWARD) if name in scaled]
        return IA3Config(target_modules=scaled, feedforward_modules=inner, task_type="CAUSAL_LM")
    # The adapter also holds its start, so rank and alpha are doubled, and alpha / rank is unchanged.
    times = 2 if recipe["method"] in STARTS else 1
    return LoraConfig(
        r=times * recipe["rank"],
        lora_alpha=times * recipe["alpha"],
        lora_dropout=float(recipe["dropout"]),
        target_modules=modules,
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=recipe["method"] == "rslora",
        use_dora=recipe["method"] == "dora",
        target_parameters=name_parameters(model, recipe) or None,
    )


def name_modules(model: Any, roles: Sequence[str]) -> list[str]:
    """Return the model's names of linear layers for the roles in a recipe.

    Raises:
        BadInput: a layer has several roles, and the recipe lists only some of them.
    """
    architecture = find_architecture(model)
    if architecture is None:
        return list_target_modules(model, roles)
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
        # PEFT calls a method of transformers that is deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        wrapped = get_peft_model(model, config)
    for module in wrapped.modules():
        if isinstance(module, IA3Layer):
            # Otherwise its float32 factors would convert the rest of the model to float32.
            module.register_forward_hook(lambda _, given, output: output.to(given[0].dtype))
    return wrapped


def _enable_checkpointing(model: Any) -> None:
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def list_trainable(model: Any) -> list[torch.nn.Parameter]:
    """Return the trained weights, float32, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def name_trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the trained weights by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_changed(attached: TrainableModel) -> bool:
    """Return True if training has changed the model's output."""
    if attached.began is not None:
        return attached.began != digest_weights(attached.model)
    if attached.method in STARTS:
        return is_moved(attached.model)
    # B is zero at the start, and then changes of A or DoRA's magnitude have no effect. IA3's factors are 1 at the
    # start.
    begins = {"lora_B": 0.0, "ia3_l": 1.0}
    return any(
        bool(weight.ne(begin).any())
        for name, weight in name_trainable(attached.model).items()
        for part, begin in begins.items()
        if part in name
    )


def digest_weights(model: Any) -> str:
    """Return the digest over the bytes of all trained weights, in the model's order."""
    hasher = Hasher()
    for weight in list_trainable(model):
        plain = weight.detach().to("cpu").contiguous()
        hasher.update(plain.view(torch.uint8).numpy().data)
    return hasher.digest()


def name_files(method: str) -> tuple[str, str]:
    """Return the names of the files for the two results of `encode_adapter`."""
    weights = METHODS[method].weights
    return weights, adapters.CONFIG_FILE if weights == ADAPTER_WEIGHTS else folder.CONFIG_FILE


def encode_adapter(attached: TrainableModel, base_name: str) -> tuple[bytes, bytes]:
    """Return the weights (safetensors) and the configuration (sorted JSON), as PEFT and other engines read them.

    For `full`, they are the base's weights in the dtype of the evaluation, and the base's configuration.
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


def apply_trained(base: LoadedBase, config: bytes, weights: bytes) -> Any:
    """Apply trained weights of any method permanently to a base.

    Return the PEFT model, or for `full` the base's own model.

    Raises:
        BadInput: the files are invalid or do not fit the base.
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
