"""Loading of GPTQ folders with transformers, through its interface for external quantisers.

`load_arguments` returns the arguments for `from_pretrained`. The packed layers of the loaded model are `GptqLinear`;
the rest of the model and its configuration contain no sign of quantisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from appliance.errors import BadInput
from appliance.ml.quantised.gptq import Gptq, GptqLayer, find_layers
from appliance.ml.quantised.headers import read_headers
from appliance.ml.quantised.linear import GptqLinear
from appliance.ml.quantised.nf4 import MEMBER

_METHOD = "appliance-gptq"


@register_quantization_config(_METHOD)
class _Settings(QuantizationConfigMixin):  # type: ignore[misc]
    """The input of the quantiser: the settings and the dimensions of each packed layer."""

    def __init__(self, gptq: Gptq, layers: dict[str, GptqLayer]) -> None:
        self.quant_method = _METHOD
        self.gptq, self.layers = gptq, layers


@register_quantizer(_METHOD)
class _Quantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces linear layers by packed ones before weights are read."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        settings = self.quantization_config
        for name, layer in settings.layers.items():
            plain = _find_linear(model, name, layer)
            dtype, device = plain.weight.dtype, plain.weight.device
            model.set_submodule(name, GptqLinear(settings.gptq, layer, dtype, device))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self.remove_quantization_config(model)
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _find_linear(model: Any, name: str, layer: GptqLayer) -> torch.nn.Linear:
    try:
        found = model.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, torch.nn.Linear) or found is model.get_output_embeddings():
        raise BadInput(f"base, {name}.qweight: expected a linear layer of the decoder, got none of this name")
    if (found.in_features, found.out_features) != (layer.inputs, layer.outputs):
        expected, got = f"{found.in_features} inputs and {found.out_features} outputs", (layer.inputs, layer.outputs)
        raise BadInput(f"base, {name}.qweight: expected {expected} by config.json, got {got[0]} and {got[1]}")
    return found


def load_arguments(folder: Path, gptq: Gptq | None) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for a packed folder; empty if `gptq` is None."""
    if gptq is None:
        return {}
    config = AutoConfig.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False)
    if hasattr(config, MEMBER):
        delattr(config, MEMBER)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    layers = find_layers(gptq, read_headers(folder, files))
    return {"config": config, "quantization_config": _Settings(gptq, layers)}


def count_packed(model: Any) -> int:
    """Return the number of weights in packed layers, which are not parameters of the model."""
    return sum(module.in_features * module.out_features for module in model.modules() if isinstance(module, GptqLinear))
