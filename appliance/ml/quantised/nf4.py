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

from appliance.ml.quantised.settings import NF4_FILE


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
    state = safetensors.torch.load_file(folder / NF4_FILE)
    for path in sorted(folder.glob("model*.safetensors")):
        # The library does not cast what it is given as a state; a cast to the same dtype copies nothing.
        state |= {name: one.to(dtype) for name, one in safetensors.torch.load_file(path).items() if name not in state}
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, device_map={"": device}, attn_implementation=attention
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # What the layer is dequantised to.
            module.weight.quant_state.dtype = dtype
    return model
