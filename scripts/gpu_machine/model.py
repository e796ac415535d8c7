"""Random models of Llama's shape, made on the spot: what costs time and memory is their size, not what they know."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from scripts.kit.tiny_model import SPECIAL, TEMPLATE, WORDS, build_tokenizer


@dataclass(frozen=True)
class Shape:
    """Of a Llama. `context` is the most tokens of a sequence."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    words: int
    context: int


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 512, 2048),
    "1b": Shape(2048, 5632, 22, 32, 4, 32_000, 2048),
    "8b": Shape(4096, 14_336, 32, 32, 8, 128_256, 8192),
}
"""`1b` is TinyLlama's shape, 1.1 billion parameters; `8b` is that of Llama 3, 8.0 billion."""
_SCALE = 0.02


def make_base(folder: Path, name: str, device: str) -> Path:
    """A base's folder as an import leaves it, a shard for each layer; drawn on the device, which is quicker there."""
    shape = SHAPES[name]
    folder.mkdir()
    generator = torch.Generator(device).manual_seed(0)
    shards = [_shape_layer(shape, number) for number in range(shape.layers)]
    weight_map = {}
    for number, shapes in enumerate([*shards, _shape_rest(shape)], start=1):
        file = f"model-{number:05}-of-{shape.layers + 1:05}.safetensors"
        tensors = {key: _draw(size, generator) for key, size in shapes.items()}
        safetensors.torch.save_file(tensors, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    _write_json(folder / "config.json", _describe(shape))
    (folder / "tokenizer.json").write_text(_fill_tokenizer(shape.words), encoding="utf-8")
    special = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(folder / "tokenizer_config.json", special)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    if device == "cuda":
        torch.cuda.empty_cache()  # The card's memory is for those that are measured.
    return folder


def _shape_layer(shape: Shape, number: int) -> dict[str, tuple[int, ...]]:
    size, keys = shape.hidden, shape.hidden // shape.heads * shape.key_heads
    shapes = {
        "self_attn.q_proj": (size, size),
        "self_attn.k_proj": (keys, size),
        "self_attn.v_proj": (keys, size),
        "self_attn.o_proj": (size, size),
        "mlp.gate_proj": (shape.inner, size),
        "mlp.up_proj": (shape.inner, size),
        "mlp.down_proj": (size, shape.inner),
        "input_layernorm": (size,),
        "post_attention_layernorm": (size,),
    }
    return {f"model.layers.{number}.{name}.weight": value for name, value in shapes.items()}


def _shape_rest(shape: Shape) -> dict[str, tuple[int, ...]]:
    words = (shape.words, shape.hidden)
    return {"model.embed_tokens.weight": words, "lm_head.weight": words, "model.norm.weight": (shape.hidden,)}


def _draw(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    drawn = torch.randn(size, generator=generator, device=generator.device, dtype=torch.bfloat16)
    return drawn.mul_(_SCALE).cpu()


def _describe(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "head_dim": shape.hidden // shape.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "max_position_embeddings": shape.context,
        "vocab_size": shape.words,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "bfloat16",
    }


def _fill_tokenizer(words: int) -> str:
    """The tests' tokenizer with as many words as the model has; those that are added stand for no text."""
    stated = json.loads(build_tokenizer().to_str())
    vocabulary: dict[str, int] = stated["model"]["vocab"]
    vocabulary |= {f"<unused {number}>": number for number in range(len(vocabulary), words)}
    return json.dumps(stated, ensure_ascii=False)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def make_rows(count: int, longest: int) -> list[dict[str, str]]:
    """Texts of a quarter of `longest` to `longest` words, and a label; the same every time."""
    draw = random.Random(1)
    labels = list(WORDS)
    words = [word for some in WORDS.values() for word in some]
    return [
        {
            "text": " ".join(draw.choice(words) for _ in range(draw.randint(longest // 4, longest))),
            "label": draw.choice(labels),
        }
        for _ in range(count)
    ]
