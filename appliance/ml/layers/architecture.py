"""The table of architectures: what a decoder layer is made of, by the class that a model's configuration names.

Training (`decoder.py`), evaluation and prompts (`reader.py`) and drawing (`ml/inference/stepping.py`) read a row of it;
each piece of arithmetic stands once. A new architecture is a row here and a case in
tests/ml/layers/test_architectures.py. No torch: a configuration is judged before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
"""Those whose angles depend on a token's position alone, and for longrope on its sequence's length."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
HYBRIDS = ("GraniteMoeHybridForCausalLM",)
"""Of the table, those that are in it without experts and recurrent layers, and go through the library with them."""
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Row:
    """A row of the table. Texts are the names of the library's modules in a layer, and of configuration members."""

    reading: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    writing: str = "self_attn.o_proj"
    widening: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    narrowing: str = "mlp.down_proj"
    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    wide_norm: bool = False
    """Whether a norm is scaled in float32, before it is rounded."""
    norm_offset: bool = False
    """Whether a norm's weight is kept minus 1."""
    head_norm: Literal["none", "head", "row"] = "none"
    """Whether queries and keys are normalised: each head by itself, or all heads of a token together."""
    activation: str = "hidden_act"
    window: Literal["none", "every layer", "by layer"] = "none"
    """Which layers see `sliding_window` keys only: those that `layer_types` calls sliding, or all."""
    rope: Literal["every layer", "by layer type", "no_rope_layers", "position_embedding_type"] = "every layer"
    query_scaling: str | None = None
    """The member of the rope's parameters by which queries grow with their position."""

    @property
    def modules(self) -> dict[str, str]:
        """For each role of a linear layer, as recipes name it, the layer that plays it."""
        reading = self.reading if len(self.reading) == 3 else self.reading * 3
        widening = self.widening if len(self.widening) == 2 else self.widening * 2
        names = (*reading, self.writing, *widening, self.narrowing)
        return dict(zip(ROLES, names, strict=True))


ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_SANDWICH = {
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
    "wide_norm": True,
    "norm_offset": True,
    "activation": "hidden_activation",
    "window": "by layer",
}

TABLE: Mapping[str, Row] = {
    "LlamaForCausalLM": Row(),
    "SmolLM3ForCausalLM": Row(window="by layer", rope="no_rope_layers"),
    "MistralForCausalLM": Row(window="every layer"),
    "MinistralForCausalLM": Row(window="by layer"),
    "Ministral3ForCausalLM": Row(window="every layer", query_scaling="llama_4_scaling_beta"),
    "Qwen2ForCausalLM": Row(window="by layer"),
    "Qwen3ForCausalLM": Row(window="by layer", head_norm="head"),
    "Phi3ForCausalLM": Row(reading=("self_attn.qkv_proj",), widening=("mlp.gate_up_proj",), window="every layer"),
    "GraniteForCausalLM": Row(),
    "GraniteMoeHybridForCausalLM": Row(
        widening=("shared_mlp.input_linear",),
        narrowing="shared_mlp.output_linear",
        rope="position_embedding_type",
    ),
    "Gemma2ForCausalLM": Row(**_SANDWICH),  # type: ignore[arg-type]
    "Gemma3ForCausalLM": Row(**_SANDWICH, head_norm="head", rope="by layer type"),  # type: ignore[arg-type]
    "Olmo2ForCausalLM": Row(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
        wide_norm=True,
        head_norm="row",
    ),
}


@dataclass(frozen=True)
class LayerKind:
    """What differs from layer to layer. `window`: keys that a query sees, its own among them; `rope`: which of the
    model's angles turn queries and keys ("" where it has one set), None for a layer without positions."""

    window: int | None
    rope: str | None


@dataclass(frozen=True)
class Architecture:
    """A row, read with one model's configuration."""

    row: Row
    kinds: tuple[LayerKind, ...]
    heads: int
    key_heads: int
    activation: str
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    """What logits are divided by."""
    softcap: float | None = None
    """Attention scores s become cap tanh(s / cap)."""
    logits_softcap: float | None = None
    query_scaling: tuple[float, int] | None = None
    """β and the length n of Llama 4's query scaling 1 + β ln(1 + ⌊position / n⌋)."""


def find_gap(config: Mapping[str, Any]) -> str | None:
    """What of a configuration the table does not cover, as `member: expected X, got Y`; None where it covers all.

    `config` is config.json as it was published, or the library's reading of it.
    """
    names = config.get("architectures") or ["nothing"]
    row = TABLE.get(str(names[0]))
    if row is None:
        return f"architectures: expected one of {', '.join(TABLE)}, got {names[0]}"
    activation = config.get(row.activation, config.get("hidden_act"))
    checks = (
        (row.activation, ACTIVATIONS, activation, activation in (None, *ACTIVATIONS)),
        *((name, (0,), config.get(name), not config.get(name)) for name in EXPERT_COUNTS),
        (
            "use_bidirectional_attention",
            (False,),
            config.get("use_bidirectional_attention"),
            not config.get("use_bidirectional_attention"),
        ),
        *(
            ("layer_types", (FULL, SLIDING), kind, kind in (FULL, SLIDING, "attention"))
            for kind in _list(config.get("layer_types", config.get("layers_block_type")))
        ),
        *(("rope_type", ROPE_TYPES, kind, kind in ROPE_TYPES) for kind in read_rope_types(config)),
    )
    if (gap := find_odd_layers(config)) is not None:
        return gap
    for member, expected, got, holds in checks:
        if not holds:
            return f"{member}: expected {' or '.join(map(str, expected))}, got {got!r:.40}"
    if row.rope == "position_embedding_type" and not _list(config.get("layer_types", config.get("layers_block_type"))):
        return f"layer_types: expected {FULL} for each layer, got none"
    return None


def find_odd_layers(config: Mapping[str, Any]) -> str | None:
    """Of any decoder's configuration: heads that do not share their keys evenly, a window that is no number of keys, or
    kinds of layers that are not as many as its layers."""
    heads, key_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    shared = key_heads is None or (type(key_heads) is int and key_heads >= 1)
    if not shared or (type(heads) is int and key_heads is not None and heads % key_heads):
        return f"num_key_value_heads: expected a number that divides {heads}, num_attention_heads, got {key_heads}"
    window, layers = config.get("sliding_window"), config.get("num_hidden_layers")
    if window is not None and (type(window) is not int or window < 1):
        return f"sliding_window: expected a whole number above 0 or null, got {window!r:.40}"
    for member in ("layer_types", "layers_block_type", "no_rope_layers"):
        kinds = config.get(member)
        if kinds is not None and (not isinstance(kinds, list | tuple) or (kinds and len(kinds) != layers)):
            got = len(kinds) if isinstance(kinds, list | tuple) else repr(kinds)[:40]
            return f"{member}: expected one for each of {layers} layers, got {got}"
    return None


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def read_rope_types(config: Mapping[str, Any]) -> list[str]:
    """Of every set of angles; older configurations say `rope_scaling`, and `type` in it."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        return [type(stated).__name__]
    sets = [one for one in stated.values() if isinstance(one, Mapping)] or [stated]
    return [str(one.get("rope_type", one.get("type", "default"))) for one in sets]


def describe(config: Mapping[str, Any]) -> Architecture | None:
    """What the library's reading of a configuration (`config.to_dict()`) makes of its row; None where the table does
    not cover it."""
    if find_gap(config) is not None:
        return None
    row = TABLE[config["architectures"][0]]
    scaling = None
    if row.query_scaling is not None and (beta := config["rope_parameters"].get(row.query_scaling)) is not None:
        scaling = float(beta), int(config["rope_parameters"]["original_max_position_embeddings"])
    heads = int(config["num_attention_heads"])
    return Architecture(
        row,
        tuple(_kind(row, config, layer) for layer in range(config["num_hidden_layers"])),
        heads,
        int(config.get("num_key_value_heads") or heads),
        str(config[row.activation]),
        float(config.get("embedding_multiplier") or 1),
        float(config.get("residual_multiplier") or 1),
        float(config.get("logits_scaling") or 1),
        config.get("attn_logit_softcapping") if row.norm_offset else None,
        config.get("final_logit_softcapping") if row.norm_offset else None,
        scaling,
    )


def find_architecture(model: Any) -> Architecture | None:
    """Of a loaded model, which may have adapters of peft's; None where the table does not cover it."""
    return describe({**model.config.to_dict(), "architectures": [type(model).__name__]})


def _kind(row: Row, config: Mapping[str, Any], layer: int) -> LayerKind:
    types = _list(config.get("layer_types"))
    kind = types[layer] if types else FULL
    slides = row.window == "every layer" or (
        row.window == "by layer" and kind == SLIDING and config.get("use_sliding_window", True)
    )
    window = config.get("sliding_window") if slides else None
    ropes: dict[str, str | None] = {
        "every layer": "",
        "by layer type": kind,
        "no_rope_layers": "" if row.rope != "no_rope_layers" or config["no_rope_layers"][layer] else None,
        "position_embedding_type": "" if config.get("position_embedding_type") == "rope" else None,
    }
    return LayerKind(int(window) if window else None, ropes[row.rope])
