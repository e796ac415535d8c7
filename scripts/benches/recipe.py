"""The recipe that the training benches train with, ours and every peer's."""

from __future__ import annotations

from typing import Any

RECIPE: dict[str, Any] = {
    "method": "qlora",
    "baseline": None,
    "purpose": "release",
    "rank": 16,
    "alpha": 32,
    "dropout": "0.0",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "optimiser": "adamw",
    "learning_rate": "0.001",
    "loraplus_lr_ratio": "1.0",
    "beta": "0.0",
    "epochs": 1,
    "batch_size": 16,
    "gradient_accumulation_steps": 1,
    "max_length": 1024,
    "warmup_ratio": "0.1",
    "weight_decay": "0.0",
    "max_grad_norm": "1.0",
    "gradient_checkpointing": "none",
    "save_steps": 1_000_000,
    "early_stopping": 0,
    "validation": "0.0",
    "eval_steps": 0,
    "seed": 1,
    "compute_dtype": "bfloat16",
    "processes": 1,
    "privacy": None,
    "quantisation": "nf4-double",
}
