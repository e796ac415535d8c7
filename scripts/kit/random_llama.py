"""A random Llama with another model's tokenizer, as a publisher would ship it: it costs what a real model does.

The weights are drawn tensor by tensor and written in shards, so that making one takes the memory of one shard.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from transformers import LlamaConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SPREAD = 0.02


@dataclass(frozen=True)
class Shape:
    """Dimensions; the vocabulary is the tokenizer's."""

    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    context: int


BILLION = Shape(layers=22, hidden=2048, inner=5632, heads=32, key_heads=4, context=2048)
"""With SmolLM2's tokenizer 1.17 billion weights."""
LAYERS_A_SHARD = 6


def build_llama(folder: Path, tokenizer: Path, shape: Shape = BILLION, device: str = "cpu") -> Path:
    """Make the folder unless it exists, with the same weights every time on one kind of device.

    `tokenizer`: a folder with a tokenizer's files, and a `config.json` that says its size and its special tokens.
    `device`: where the weights are drawn; a GPU is quicker.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: one that was broken off is not taken for it.
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        _write(part, tokenizer, shape, device)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def _write(folder: Path, tokenizer: Path, shape: Shape, device: str) -> None:
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    config = json.loads((tokenizer / "config.json").read_bytes())
    words = int(config["vocab_size"])
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=words,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        dtype="bfloat16",
        **{key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config},
    ).save_pretrained(str(folder))
    generator = torch.Generator(device).manual_seed(1)
    shards = list(_list_shards(shape, words))
    total, places = 0, {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: _draw(key, size, generator) for key, size in shapes.items()}
        safetensors.torch.save_file(tensors, str(folder / name), metadata={"format": "pt"})
        total += sum(one.numel() * one.element_size() for one in tensors.values())
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _draw(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(size, dtype=torch.bfloat16)
    drawn = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
    return drawn.normal_(0, _SPREAD, generator=generator).cpu()


def _list_shards(shape: Shape, words: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the tensors of each file with their sizes."""
    keys = shape.hidden // shape.heads * shape.key_heads
    sizes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (shape.hidden,),
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "post_attention_layernorm": (shape.hidden,),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }
    yield {"model.embed_tokens.weight": (words, shape.hidden)}
    for first in range(0, shape.layers, LAYERS_A_SHARD):
        layers = range(first, min(first + LAYERS_A_SHARD, shape.layers))
        yield {f"model.layers.{layer}.{name}.weight": size for layer in layers for name, size in sizes.items()}
    yield {"model.norm.weight": (shape.hidden,), "lm_head.weight": (words, shape.hidden)}
