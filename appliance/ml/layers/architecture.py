"""Which decoder layers are computed by this project's own code."""

from __future__ import annotations

from typing import Any


def is_known_layer(layer: Any) -> bool:
    """Whether a decoder's layer is one that is written out by hand, in training and in serving: what Llama, Qwen2 and
    Qwen3 have in common, with full attention."""
    known = type(layer).__name__ in ("LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
    return known and not getattr(layer.self_attn, "sliding_window", None)
