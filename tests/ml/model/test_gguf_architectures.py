"""GGUF files of each architecture that transformers reads become bases with the logits of the written model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from appliance.errors import BadInput
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.model.chat import load_chat
from appliance.ml.model.convert import convert_base
from appliance.ml.model.gguf import ARCHITECTURES, _divide
from scripts.kit import tiny_model
from scripts.kit.tiny_model import SPECIAL, TEMPLATE, build_model, build_tokenizer

IDS = [3 * number % 300 + 3 for number in range(30)]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
GEMMA3 = {
    "layer_types": ["sliding_attention"] * 2,
    "query_pre_attn_scalar": 16,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    },
}
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {}),
    "llama3": ("llama", "llama3.1", {"max_position_embeddings": 256}),
    "mistral": ("llama", "mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", "qwen2", {}),
    # transformers takes the class's 128 for a Qwen 3's heads, as all published ones have.
    "qwen3": ("qwen3", "qwen3", {"head_dim": 128}),
    "qwen3-yarn": ("qwen3", "qwen3-yarn", {"head_dim": 128, "rope_parameters": YARN}),
    "phi3": ("phi3", "phi3", {}),
    "phi3-partial": ("phi3", "phi3", {"partial_rotary_factor": 0.75, "sliding_window": None}),
    "gemma2": ("gemma2", "gemma2", {"query_pre_attn_scalar": 16, "final_logit_softcapping": 20.0}),
    "gemma3": ("gemma3", "gemma3", GEMMA3),
}
"""By test: GGUF's architecture, the tiny model, and what of it is changed to what a GGUF file can say."""
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PLACES = {"F16": (gguf.GGMLQuantizationType.F16, 1e-3), "Q8_0": (gguf.GGMLQuantizationType.Q8_0, 0.06)}


def _build(monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict[str, Any]) -> Any:
    kinds = {**tiny_model.KINDS, "llama3.1": ("Llama", {"rope_parameters": LLAMA31})}
    name, own = kinds[kind]
    machine.use_determinism(3)
    monkeypatch.setitem(tiny_model.KINDS, kind, (name, own | changes))
    model = build_model(kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # What F16 and the base's bf16 both hold.
            parameter.copy_(parameter.bfloat16().float())
    return model


def _fields(writer: Any, architecture: str, config: Any) -> None:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    parameters = config.rope_parameters
    full = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_dimension_count(int(size * full.get("partial_rotary_factor", 1.0)))
    if full.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        writer.add_rope_scaling_factor(full["factor"])
    if full.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if "sliding_attention" in parameters:
        writer.add_float32("gemma3.rope.freq_base_swa", parameters["sliding_attention"]["rope_theta"])
    if getattr(config, "sliding_window", None) and architecture in ("phi3", "gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _tokens(writer: Any) -> None:
    vocabulary = json.loads(build_tokenizer().to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])


def _sentencepiece(writer: Any) -> None:
    """As Gemma has it: pieces with scores, bytes, and no merges."""
    pieces = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [*"abcdefghijklmnopqrstuvwxyz", "▁", "pa", "pay", "▁p", "▁pa", "▁pay", "in", "an"]
    pieces += [f"<unused{number}>" for number in range(320 - len(pieces))]
    kinds = [3, 3, 3, 2] + [6] * 256 + [1] * (len(pieces) - 260)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([float(-place) for place in range(len(pieces))])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(3)


def _permute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """As llama.cpp lays out the rows of a llama's queries and keys."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_model(
    path: Path, architecture: str, model: Any, kind: gguf.GGMLQuantizationType, *, tokens: Any = _tokens, more: Any = ()
) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    _fields(writer, architecture, config)
    tokens(writer)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        if architecture == "llama" and ("q_proj.weight" in name or "k_proj.weight" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = _permute(data, heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        stem, _, suffix = name.rpartition(".")
        place = names.get_name(stem)
        assert place is not None, name
        # Norms and biases are float32 in a published file too.
        stored = kind if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(f"{place}.{suffix}", gguf.quants.quantize(data, stored), raw_dtype=stored)
    if config.rope_parameters.get("rope_type") == "llama3":
        size = config.hidden_size // config.num_attention_heads
        divisors = [_divide(500000.0 ** (-2 * place / size), 8.0) for place in range(size // 2)]
        writer.add_tensor("rope_freqs.weight", np.array(divisors, dtype=np.float32))
    for name, value in more:
        writer.add_tensor(name, value) if isinstance(value, np.ndarray) else writer.add_uint32(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([IDS]), use_cache=False).logits[0].float()
    return logits


def test_every_architecture_of_the_header_is_tested() -> None:
    assert {architecture for architecture, _, _ in FILES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", FILES)
def test_a_gguf_file_s_logits_are_the_written_model_s(
    case: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, kind, changes = FILES[case]
    model, (stored, most) = _build(monkeypatch, kind, changes), PLACES[place]
    output = tmp_path / "output"
    output.mkdir()
    convert_base(write_model(tmp_path / "tiny.gguf", architecture, model, stored), output)
    base = load_base(output, quantisation="none", compute_dtype="float32", device="cpu")
    expected, got = _logits(model), _logits(base.model)
    assert float((got - expected).norm() / expected.norm()) < most
    own, written = base.model.config.to_dict(), model.config.to_dict()
    assert own.get("sliding_window") == written.get("sliding_window")
    for name in ("full_attention", "sliding_attention"):
        some, other = (one["rope_parameters"].get(name, one["rope_parameters"]) for one in (own, written))
        assert {**some, "partial_rotary_factor": some.get("partial_rotary_factor", 1.0)} == pytest.approx(
            {**other, "partial_rotary_factor": other.get("partial_rotary_factor", 1.0)}
        )


def test_gemma_s_pieces_become_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, kind, changes = FILES["gemma2"]
    model, output = _build(monkeypatch, kind, changes), tmp_path / "output"
    output.mkdir()
    source = write_model(tmp_path / "tiny.gguf", architecture, model, PLACES["F16"][0], tokens=_sentencepiece)
    convert_base(source, output)
    chat = load_chat(output)
    ids = chat.encode("pay a pay")
    assert [chat.tokenizer.id_to_token(token) for token in ids] == ["pay", "▁", "a", "▁pay"]
    assert chat.decode(ids) == "pay a pay" and chat.decode(chat.encode("é")) == "é"


@pytest.mark.parametrize(
    ("case", "more", "message"),
    [
        ("llama", {"blk.0.attn_q.bias": np.zeros(64, np.float32)}, "tensors: expected those of LlamaForCausalLM alone"),
        ("phi3", {"rope_factors_long.weight": np.ones(8, np.float32)}, "tensors: expected those of Phi3ForCausalLM"),
        ("llama", {"rope_freqs.weight": np.full(8, 3.0, np.float32)}, "rope_freqs.weight: expected Llama 3's"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count: expected none, got 8"),
        ("llama", {"llama.attention.sliding_window": 8}, "llama.attention.sliding_window: expected none, got 8"),
    ],
)
def test_what_the_library_would_pass_over_is_refused(
    case: str, more: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, kind, changes = FILES[case]
    model, output = _build(monkeypatch, kind, changes), tmp_path / "output"
    output.mkdir()
    source = write_model(tmp_path / "tiny.gguf", architecture, model, PLACES["F16"][0], more=more.items())
    with pytest.raises(BadInput, match=f"{message}.*bring the publisher's folder of safetensors"):
        convert_base(source, output)
    assert not list(output.iterdir())
