"""A base small enough to train in a second: two random layers, a byte-level tokenizer, a ChatML template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

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
    "rate_ratio": "1.0",
    "epochs": 2,
    "batch_size": 4,
    "accumulation": 2,
    "max_length": 128,
    "warmup_ratio": "0.1",
    "weight_decay": "0.0",
    "max_grad_norm": "1.0",
    "gradient_checkpointing": "none",
    "checkpoint_every": 10,
    "early_stopping": 0,
    "validation": "0.0",
    "validate_every": 0,
    "seed": 7,
    "device": "cpu",
    "compute_dtype": "float32",
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
_KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


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


def build_base(folder: Path, kind: str = "llama") -> Path:
    """A folder as a publisher would ship it; the same bytes every time."""
    folder.mkdir()
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    make_config, make_model = _KINDS[kind]
    model = make_model(make_config(vocab_size=tokenizer.get_vocab_size(), **_SHAPE)).to(torch.bfloat16)
    model.save_pretrained(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
