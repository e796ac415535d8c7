"""NF4 weights, made once when a base is imported and sealed with it: to make them anew takes half a minute a billion.

`NF4_FILE` holds what bitsandbytes makes of every linear layer of a decoder layer, under the library's own names:
packed weights, the scales of their blocks, and those of the scales. Everything else is read from the base's own files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from appliance.errors import BadInput
from appliance.ml.quantised.settings import NF4_FILE

BLOCK, SCALES_BLOCK = 64, 256
"""Weights that share a scale, and scales that do; the library's own."""


def make_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit normal floats with double quantisation, multiplied in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def write_nf4(folder: Path) -> None:
    """Quantises a base's linear layers and writes `NF4_FILE` into its folder; the same bytes every time."""
    model = AutoModelForCausalLM.from_pretrained(
        str(folder.absolute()),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        quantization_config=make_config(torch.bfloat16),
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.state_dict(prefix=f"{name}.")
            tensors |= {key: tensor.contiguous() for key, tensor in state.items() if not key.endswith(".bias")}
    safetensors.torch.save_file(dict(sorted(tensors.items())), folder / NF4_FILE, metadata={"format": "pt"})


def load_nf4(folder: Path, dtype: torch.dtype, device: str, attention: str | None) -> Any:
    """The model whose linear layers are those of `NF4_FILE`, the rest in `dtype`; files are mapped, not copied."""
    config = AutoConfig.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False)
    config.quantization_config = make_config(dtype).to_dict()
    stored = safetensors.torch.load_file(folder / NF4_FILE)
    state = dict(stored)
    for path in sorted(folder.glob("model*.safetensors")):
        # The library does not cast what it is given as a state; a cast to the same dtype copies nothing.
        state |= {name: one.to(dtype) for name, one in safetensors.torch.load_file(path).items() if name not in state}
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, device_map={"": device}, attn_implementation=attention
    )
    layers = {name: one for name, one in model.named_modules() if isinstance(one, bitsandbytes.nn.Linear4bit)}
    if strange := sorted(name for name in stored if name.partition(".weight")[0] not in layers):
        raise BadInput(f"{NF4_FILE}: expected weights of linear layers, got {strange[0]!r:.80}")
    for name, module in layers.items():
        _check_layer(name, module)
        # What the layer is dequantised to.
        module.weight.quant_state.dtype = dtype
    return model


def _check_layer(name: str, layer: Any) -> None:
    """BadInput where a layer's tensors are not as large as what reads them, by address, takes them to be."""
    weight, state = layer.weight, layer.weight.quant_state
    count = layer.in_features * layer.out_features
    blocks = -(-count // BLOCK)
    expected = {
        "packed weights": f"{-(-count // 2)} of {torch.uint8}",
        "scales": f"{blocks} of {torch.uint8}",
        "numbers": f"16 of {torch.float32}",
        "scales of scales": f"{-(-blocks // SCALES_BLOCK)} of {torch.float32}",
        "numbers of scales": f"256 of {torch.float32}",
    }
    nested = state.state2
    tensors = (weight, state.absmax, state.code, *((nested.absmax, nested.code) if state.nested else (None, None)))
    for (part, wanted), one in zip(expected.items(), tensors, strict=True):
        got = "none" if one is None or not one.is_contiguous() else f"{one.numel()} of {one.dtype}"
        if got != wanted:
            raise BadInput(f"{NF4_FILE}, {name}, {part}: expected {wanted}, got {got}")
    form = state.quant_type, state.blocksize, tuple(state.shape), nested.blocksize if state.nested else None
    if form != ("nf4", BLOCK, (layer.out_features, layer.in_features), SCALES_BLOCK):
        shape = f"{layer.out_features} x {layer.in_features}"
        raise BadInput(f"{NF4_FILE}, {name}: expected nf4 of {shape} in blocks of {BLOCK}, got {form}")
