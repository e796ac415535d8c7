"""A Llama in safetensors as the 4-bit GGUF file that llama.cpp reads: what its own converter and quantiser would write.

Linear layers and embeddings are Q4_0, the head is Q8_0 (theirs is Q6_K, which the gguf library cannot quantise to),
norms are float32. The tokenizer is copied from a GGUF file that has the same one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.torch
import torch

LLAMA = gguf.MODEL_ARCH.LLAMA
Q4_0, Q8_0, F32 = (getattr(gguf.GGMLQuantizationType, name) for name in ("Q4_0", "Q8_0", "F32"))


def write_model(base: Path, tokenizer: Path, output: Path) -> Path:
    """Write the GGUF file unless it exists. `tokenizer` is a GGUF file with the base's own tokenizer."""
    if output.is_file():
        return output
    config = json.loads((base / "config.json").read_bytes())
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}-") as scratch:
        part = Path(scratch) / "part.gguf"
        # What is written waits in a file, not in memory.
        writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[LLAMA], use_temp_file=True)
        _describe(writer, config)
        _copy_tokenizer(writer, tokenizer, config["vocab_size"])
        for name, kind, data in _list_tensors(base, config):
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, output)
    return output


def permute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows (output, …) of q or k in llama.cpp's order: it rotates a head's neighbours, transformers its halves."""
    paired = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(weight.shape)


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(float(config["rope_parameters"]["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def _copy_tokenizer(writer: gguf.GGUFWriter, source: Path, words: int) -> None:
    fields = [one for one in gguf.GGUFReader(source).fields.values() if one.name.startswith("tokenizer.")]
    tokens = next((one for one in fields if one.name == "tokenizer.ggml.tokens"), None)
    if tokens is None or len(tokens.data) != words:
        got = "none" if tokens is None else len(tokens.data)
        raise SystemExit(f"bench: {source.name}: expected a tokenizer of {words} tokens, got {got}")
    for one in fields:
        kind, inner = one.types[0], one.types[-1] if len(one.types) > 1 else None
        writer.add_key_value(one.name, one.contents(), kind, sub_type=inner)


def _list_tensors(base: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any, np.ndarray[Any, Any]]]:
    names = gguf.get_tensor_name_map(LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for path in sorted(base.glob("model*.safetensors")):
        for key, tensor in safetensors.torch.load_file(path).items():
            weight, module = tensor.to(torch.float32).numpy(), key.removesuffix(".weight")
            if count := heads.get(module.rpartition(".")[2]):
                weight = permute(weight, count)
            kind = F32 if weight.ndim == 1 else Q8_0 if module == "lm_head" else Q4_0
            data = weight if kind is F32 else gguf.quants.quantize(weight, kind)
            yield f"{names.get_name(module)}.weight", kind, data
