"""The table of architectures: the modules of a decoder layer, by the class that a model's configuration names.

Training and evaluation (`decoder.py`) and generation (`ml/inference/stepping.py`) read the same row, so each piece of
arithmetic exists once. To add an architecture, add a row here and a case in tests/ml/layers/test_architectures.py. This
module does not import torch, because configurations are checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")
"""Supported rope types: their angles depend on a token's position only; longrope's also on the sequence's length."""
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
HYBRIDS = ("GraniteMoeHybridForCausalLM",)
"""Supported classes that may have experts or recurrent layers; with those, the library's own modules run the model."""
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class ArchitectureRow:
    """A row of the table of architectures.

    Strings name either modules of the library's decoder layer or fields of the model's configuration.
    """

    reading: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    writing: str = "self_attn.o_proj"
    widening: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    narrowing: str = "mlp.down_proj"
    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    wide_norm: bool = False
    """True if a norm multiplies by its weight in float32, before rounding to the model's dtype."""
    norm_offset: bool = False
    """True if the stored weight of a norm is the factor minus 1."""
    head_norm: Literal["none", "head", "row"] = "none"
    """Normalisation of queries and keys: none, each head separately, or all heads of a token together."""
    activation: str = "hidden_act"
    window: Literal["none", "every layer", "by layer"] = "none"
    """Layers limited to `sliding_window` keys: none, all, or those that `layer_types` calls sliding."""
    rope: Literal["every layer", "by layer type", "no_rope_layers", "position_embedding_type"] = "every layer"
    query_scaling: str | None = None
    """Field of the rope parameters with the factor β that scales queries by position; None without such scaling."""

    @property
    def modules(self) -> dict[str, str]:
        """Return the module name for each role of a linear layer, by the role's name in recipes."""
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

TABLE: Mapping[str, ArchitectureRow] = {
    "LlamaForCausalLM": ArchitectureRow(),
    "SmolLM3ForCausalLM": ArchitectureRow(window="by layer", rope="no_rope_layers"),
    "MistralForCausalLM": ArchitectureRow(window="every layer"),
    "MinistralForCausalLM": ArchitectureRow(window="by layer"),
    "Ministral3ForCausalLM": ArchitectureRow(window="every layer", query_scaling="llama_4_scaling_beta"),
    "Qwen2ForCausalLM": ArchitectureRow(window="by layer"),
    "Qwen3ForCausalLM": ArchitectureRow(window="by layer", head_norm="head"),
    "Phi3ForCausalLM": ArchitectureRow(
        reading=("self_attn.qkv_proj",), widening=("mlp.gate_up_proj",), window="every layer"
    ),
    "GraniteForCausalLM": ArchitectureRow(),
    "GraniteMoeHybridForCausalLM": ArchitectureRow(
        widening=("shared_mlp.input_linear",),
        narrowing="shared_mlp.output_linear",
        rope="position_embedding_type",
    ),
    "Gemma2ForCausalLM": ArchitectureRow(**_SANDWICH),  # type: ignore[arg-type]
    "Gemma3ForCausalLM": ArchitectureRow(**_SANDWICH, head_norm="head", rope="by layer type"),  # type: ignore[arg-type]
    "Olmo2ForCausalLM": ArchitectureRow(
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
    """Properties that differ between the layers of one model.

    `window` is the number of keys that a query attends to, its own included; None for all. `rope` names the set of
    rotary angles of the layer ("" if the model has one set); None for a layer without positions.
    """

    window: int | None
    rope: str | None


@dataclass(frozen=True)
class Architecture:
    """A row of the table together with the values of one model's configuration."""

    row: ArchitectureRow
    kinds: tuple[LayerKind, ...]
    heads: int
    key_heads: int
    activation: str
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    """Divisor of the logits."""
    softcap: float | None = None
    """Cap c of the attention scores s, which become c tanh(s / c); None without a cap."""
    logits_softcap: float | None = None
    query_scaling: tuple[float, int] | None = None
    """β and length n of Llama 4's query scaling, 1 + β ln(1 + ⌊position / n⌋); None without scaling."""


def find_gap(config: Mapping[str, Any]) -> str | None:
    """Return the first part of a configuration that the table does not cover; None if it covers all.

    The result has the form `field: expected X, got Y`. `config` is config.json as published, or the library's
    `config.to_dict()`.
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
    """Return the first inconsistency in a configuration that can occur in any decoder; None if there is none.

    It checks that the key heads divide the heads evenly, that the window is a number of keys, and that there is one
    layer kind for each layer. Qwen's configurations state a window of 0 if no layer has one.
    """
    return _find_odd_heads(config) or _find_odd_window(config) or _find_odd_kinds(config)


def _find_odd_heads(config: Mapping[str, Any]) -> str | None:
    heads, key_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    shared = key_heads is None or (type(key_heads) is int and key_heads >= 1)
    if not shared or (type(heads) is int and key_heads is not None and heads % key_heads):
        return f"num_key_value_heads: expected a number that divides {heads}, num_attention_heads, got {key_heads}"
    return None


def _find_odd_window(config: Mapping[str, Any]) -> str | None:
    window, row = config.get("sliding_window"), TABLE.get(str((config.get("architectures") or [""])[0]))
    by_kind = row is None or row.window == "by layer"
    unused = by_kind and config.get("use_sliding_window") is False and SLIDING not in _list(config.get("layer_types"))
    if window is not None and (type(window) is not int or window < (0 if unused else 1)):
        return f"sliding_window: expected a whole number above 0 or null, got {window!r:.40}"
    return None


def _find_odd_kinds(config: Mapping[str, Any]) -> str | None:
    layers = config.get("num_hidden_layers")
    for member in ("layer_types", "layers_block_type", "no_rope_layers"):
        kinds = config.get(member)
        if kinds is not None and (not isinstance(kinds, list | tuple) or (kinds and len(kinds) != layers)):
            got = len(kinds) if isinstance(kinds, list | tuple) else repr(kinds)[:40]
            return f"{member}: expected one for each of {layers} layers, got {got}"
    return None


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def read_rope_types(config: Mapping[str, Any]) -> list[str]:
    """Return the rope type of each set of angles.

    Older configurations call the field `rope_scaling`, and the type `type`.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        return [type(stated).__name__]
    sets = [one for one in stated.values() if isinstance(one, Mapping)] or [stated]
    return [str(one.get("rope_type", one.get("type", "default"))) for one in sets]


def describe(config: Mapping[str, Any]) -> Architecture | None:
    """Return the architecture of a configuration (`config.to_dict()`); None if the table does not cover it."""
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
    """Return the architecture of a loaded model, with or without PEFT adapters; None if the table does not cover it."""
    return describe({**model.config.to_dict(), "architectures": [type(model).__name__]})


def _kind(row: ArchitectureRow, config: Mapping[str, Any], layer: int) -> LayerKind:
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
