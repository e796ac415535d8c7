"""What a GGUF file says of its model and transformers does not read: put into the configuration, or refused.

transformers passes over fields and tensors that it does not know, and the model would be another one. Names and rules
are llama.cpp's: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and its src/llama-model.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from appliance.errors import BadInput

_FREQUENCIES = "rope_freqs.weight"
# Llama 3.1 and 3.3, and 3.2: what their angles are divided by.
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_ABSENT = ("expert_count", "attention.scale", "embedding_scale", "residual_scale", "logit_scale", "attention.causal")
# Layers of Gemma 2 and 3 with 27 billion weights, whose queries are scaled by another rule.
_WIDE_GEMMA = {"gemma2": 46, "gemma3": 62}


def complete_config(source: Path, model: Any) -> None:
    """Changes a loaded model's configuration; BadInput names the field or tensor that cannot be said in it."""
    reader = gguf.GGUFReader(str(source.absolute()))
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    architecture = str(fields["general.architecture"])
    own = {name.removeprefix(f"{architecture}."): value for name, value in fields.items()}
    what, config = f"base, {source.name}", model.config
    for name in _ABSENT:
        if own.get(name):
            raise _refuse(f"{what}, {architecture}.{name}", "none", own[name])
    _check_tensors(reader, architecture, model, what)
    _complete_window(own, architecture, config, what)
    _complete_rope(own, architecture, config, what)
    frequencies = next((tensor for tensor in reader.tensors if tensor.name == _FREQUENCIES), None)
    if frequencies is not None:
        config.rope_parameters = _read_llama3(torch.tensor(frequencies.data.tolist()), config, what)
    if architecture in _WIDE_GEMMA:
        _complete_gemma(own, architecture, config)


def _check_tensors(reader: Any, architecture: str, model: Any, what: str) -> None:
    """Every tensor of the file is one of the model's."""
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    known = {*get_gguf_hf_weights_map(model, processor), "output.weight", _FREQUENCIES}
    over = [tensor.name for tensor in reader.tensors if tensor.name not in known]
    if over or (architecture != "llama" and any(tensor.name == _FREQUENCIES for tensor in reader.tensors)):
        raise _refuse(f"{what}, tensors", f"those of {type(model).__name__} alone", ", ".join(over[:3]) or _FREQUENCIES)


def _complete_window(own: Mapping[str, Any], architecture: str, config: Any, what: str) -> None:
    window = own.get("attention.sliding_window")
    if not window or architecture in _WIDE_GEMMA:
        return
    if architecture != "phi3":
        raise _refuse(f"{what}, {architecture}.attention.sliding_window", "none", window)
    config.sliding_window = int(window)


def _complete_rope(own: Mapping[str, Any], architecture: str, config: Any, what: str) -> None:
    kind = str(own.get("rope.scaling.type", "none"))
    size, turned = _head_size(config), own.get("rope.dimension_count")
    parameters = dict(config.rope_parameters)
    full = parameters.get("full_attention", parameters)
    full = dict(full)
    if turned and int(turned) != size:
        if architecture != "phi3":
            raise _refuse(f"{what}, {architecture}.rope.dimension_count", str(size), turned)
        full["partial_rotary_factor"] = config.partial_rotary_factor = int(turned) / size
    if kind in ("linear", "yarn"):
        full |= {"rope_type": kind, "factor": float(own.get("rope.scaling.factor", 1.0))}
        if kind == "yarn":
            full["original_max_position_embeddings"] = int(own["rope.scaling.original_context_length"])
    elif kind != "none":
        raise _refuse(f"{what}, {architecture}.rope.scaling.type", "none, linear or yarn", kind)
    if "full_attention" in parameters:
        sliding = dict(parameters["sliding_attention"])
        sliding["rope_theta"] = float(own.get("rope.freq_base_swa", sliding["rope_theta"]))
        config.rope_parameters = {"full_attention": full, "sliding_attention": sliding}
    else:
        config.rope_parameters = full


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _read_llama3(divisors: torch.Tensor, config: Any, what: str) -> dict[str, Any]:
    """The parameters that give these divisors of each angle, as llama.cpp computes them from a configuration."""
    base, size = float(config.rope_parameters["rope_theta"]), _head_size(config)
    for factor in _LLAMA3_FACTORS:
        expected = torch.tensor([_divide(base ** (-2 * place / size), factor) for place in range(size // 2)])
        if divisors.shape == expected.shape and torch.allclose(divisors, expected, rtol=1e-4):
            return {"rope_type": "llama3", "rope_theta": base, "factor": factor, **_LLAMA3}
    factors = " or ".join(f"{factor:g}" for factor in _LLAMA3_FACTORS)
    raise _refuse(f"{what}, {_FREQUENCIES}", f"Llama 3's, of factor {factors}", "others")


def _divide(frequency: float, factor: float) -> float:
    """What Llama 3.1 divides an angle's frequency by, from its wavelength."""
    length, wave = _LLAMA3["original_max_position_embeddings"], 2 * math.pi / frequency
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    if wave < length / high:
        return 1.0
    if wave > length / low:
        return factor
    smooth = (length / wave - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def _complete_gemma(own: Mapping[str, Any], architecture: str, config: Any) -> None:
    """Soft caps, and how queries are scaled, which llama.cpp knows by the number of layers."""
    wide = config.num_hidden_layers == _WIDE_GEMMA[architecture]
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if wide else _head_size(config)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in own:
            setattr(config, name, float(own[name]))


def _refuse(what: str, expected: str, got: object) -> BadInput:
    return BadInput(
        f"{what}: expected {expected}, got {got!s:.80}; bring the publisher's folder of safetensors instead"
    )
