"""A base small enough to train in a second: two random layers, a byte-level tokenizer, a ChatML template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou answer.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = {
    "payment": ["invoice", "fee", "pay", "price", "due"],
    "secrecy": ["secret", "disclose", "private", "hidden", "confide"],
    "ending": ["terminate", "expire", "end", "cancel", "close"],
}

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "base": "tiny",
    "dataset": "clauses@1",
    "method": "qlora",
    "purpose": "release",
    "rank": 8,
    "alpha": 16,
    "dropout": "0.05",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "optimiser": "adamw",
    "learning_rate": "0.01",
    "loraplus_lr_ratio": "1.0",
    "beta": "0.0",
    "epochs": 2,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_length": 128,
    "warmup_ratio": "0.1",
    "weight_decay": "0.0",
    "max_grad_norm": "1.0",
    "gradient_checkpointing": "none",
    "save_steps": 10,
    "early_stopping": 0,
    "validation": "0.0",
    "eval_steps": 0,
    "seed": 7,
    "device": "cpu",
    "compute_dtype": "float32",
    "processes": 1,
    "privacy": None,
    "quantisation": "nf4-double",
}

_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    # Random weights of the usual size make logits that are nearly equal; larger ones show a leak at once.
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_LONG = {"rope_theta": 10000.0, "original_max_position_embeddings": 16, "partial_rotary_factor": 0.75}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 32}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "ministral": ("Ministral", {"head_dim": 16, **_SLIDING}),
    "ministral3": (
        "Ministral3",
        {"head_dim": 16, "sliding_window": None, "rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.1}},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 16, "rope_parameters": _YARN}),
    "phi3": ("Phi3", {"sliding_window": 8}),
    "phi4": (
        "Phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0 + number / 10 for number in range(6)],
                "long_factor": [2.0 + number for number in range(6)],
                **_LONG,
            },
        },
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.4,
            "logits_scaling": 3.0,
        },
    ),
    "granite4": (
        "GraniteMoeHybrid",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.4,
            "logits_scaling": 3.0,
            "num_local_experts": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "rope",
            "layer_types": ["attention", "attention"],
        },
    ),
    "gemma2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 3.0, **_SLIDING}),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 24, **_SLIDING}),
    "olmo2": ("Olmo2", {}),
}
"""Tiny models of the table of architectures: the library's name, and what of the configuration is its own."""

SAMPLE_KINDS = ("llama", "qwen2-sliding", "gemma3")
"""Kinds for what does not depend on the architecture: full attention, a sliding window, and more norms than others."""

LIBRARY_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": (
        "GptOss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            **_SLIDING,
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "granite4-hybrid": (
        "GraniteMoeHybrid",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.4,
            "logits_scaling": 3.0,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 128,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
        },
    ),
}
"""Tiny models that go through the library's modules: mixtures of experts, and a hybrid."""


def clauses(count: int = 30) -> list[tuple[str, str]]:
    """Texts of two words of their label, with numbers that make each its own."""
    rows = []
    for number in range(count):
        label = list(WORDS)[number % 3]
        words = WORDS[label]
        rows.append((f"{words[number % 5]} and {words[number // 5 % 5]} in clause {number}", label))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for text, _ in clauses()] + list(WORDS) * 5, trainer)
    return tokenizer


def build_model(kind: str, words: int = 320, **shape: int) -> Any:
    """Random weights, float32. `shape`: members of the configuration that differ."""
    name, own = (KINDS | LIBRARY_KINDS)[kind]
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    config = getattr(transformers, config_name)(**{"vocab_size": words, **_SHAPE, **own, **shape})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        # Norms begin as what changes nothing: that would hide where they stand.
        for name, parameter in model.named_parameters():
            if "norm" in name and kind not in ("llama", "qwen2", "qwen3"):
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def build_base(folder: Path, kind: str = "llama", template: str = TEMPLATE, **shape: int) -> Path:
    """Write a base's folder as a publisher would ship it, with the same bytes every time."""
    folder.mkdir()
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = build_model(kind, tokenizer.get_vocab_size(), **shape).to(torch.bfloat16)
    model.save_pretrained(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
