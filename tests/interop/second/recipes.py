"""The recipe of an order to train, for a second verifier: docs/formats/ledger.md, "Recipes", from that page alone."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from tests.interop.second.formats import need

LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
HIGH = ("nf4-double", "none", "gptq")
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "qlora": (("nf4-double",), ("nf4-double",)),
    "lora": (("none", "int8", "gptq"), ("none", "gptq")),
    **dict.fromkeys(("rslora", "lora-plus", "olora", "pissa"), (HIGH, HIGH)),
    **dict.fromkeys(("dora", "ia3"), (("nf4-double", "none"), ())),
    "full": (("none",), ()),
}
RANGES = {
    "epochs": (1, 4096), "batch_size": (1, 4096), "gradient_accumulation_steps": (1, 4096),
    "max_length": (8, 1_048_576),
    "save_steps": (1, 1_000_000), "early_stopping": (0, 256), "eval_steps": (0, 1_000_000), "seed": (0, 2**31 - 1),
    "processes": (1, 64),
}  # fmt: skip
FRACTIONS = (
    "dropout",
    "learning_rate",
    "loraplus_lr_ratio",
    "beta",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "validation",
)


def fraction(recipe: dict[str, Any], name: str) -> Decimal:
    value = recipe[name]
    need(
        isinstance(value, str) and re.fullmatch(r"0|(0|[1-9]\d{0,8})\.\d{1,12}", value, re.ASCII),
        f"recipe: {name} is decimal text",
    )
    return Decimal(value)


def check_recipe(r: dict[str, Any], base: dict[str, Any], dataset: dict[str, Any]) -> None:
    """Check a recipe against the facts of the base and the dataset."""
    need(r["method"] in METHODS, "recipe: method")
    quantisations, released = METHODS[r["method"]]
    need(r["quantisation"] in quantisations, "recipe: quantisation")
    need((r["quantisation"] == "gptq") == (base.get("quantisation") == "gptq"), "recipe: gptq")
    need(r["purpose"] == "baseline" or (r["purpose"] == "release" and r["quantisation"] in released), "recipe: purpose")
    for name, (low, high) in RANGES.items():
        need(isinstance(r[name], int) and not isinstance(r[name], bool) and low <= r[name] <= high, f"recipe: {name}")
    bare = r["method"] in ("ia3", "full")
    need(
        (r["rank"], r["alpha"]) == (0, 0) if bare else 1 <= r["rank"] <= 512 and 1 <= r["alpha"] <= 4096, "recipe: rank"
    )
    f = {name: fraction(r, name) for name in FRACTIONS}
    need(f["dropout"] < 1 and (not bare or f["dropout"] == 0), "recipe: dropout")
    layers = r["target_modules"]
    need(
        set(layers) <= LAYERS and bool(layers) == (r["method"] != "full") and len(set(layers)) == len(layers),
        "recipe: target_modules",
    )
    need(
        r["optimiser"] in ("adamw", "adamw-8bit") or (r["optimiser"], r["device"]) == ("paged-adamw-8bit", "cuda"),
        "recipe: optimiser",
    )
    need(f["learning_rate"] > 0 and f["loraplus_lr_ratio"] > 0, "recipe: learning_rate")
    need(r["method"] == "lora-plus" or f["loraplus_lr_ratio"] == 1, "recipe: loraplus_lr_ratio")
    prefers = dataset.get("dataset_kind") == "preference"
    need((f["beta"] > 0) == prefers and not (prefers and r["method"] == "full"), "recipe: beta")
    need(r["method"] not in ("olora", "pissa") or f["weight_decay"] == 0, "recipe: weight_decay")
    need((f["max_grad_norm"] == 0) == (r["privacy"] is not None), "recipe: max_grad_norm")
    need(r["gradient_checkpointing"] in ("none", "mlp", "layer"), "recipe: gradient_checkpointing")
    need(f["validation"] <= Decimal("0.9"), "recipe: validation")
    need(r["device"] in ("cpu", "cuda") and r["compute_dtype"] in ("bfloat16", "float32"), "recipe: device")
    need(r["eval_steps"] > 0 or r["early_stopping"] == 0, "recipe: early_stopping")
    _lengths(r, base, dataset)
    _steps(r, f, dataset)
    if r["privacy"] is not None:
        _privacy(r, f, dataset, prefers)


def _lengths(r: dict[str, Any], base: dict[str, Any], dataset: dict[str, Any]) -> None:
    context, longest = base.get("context_length"), dataset.get("max_tokens")
    need(not isinstance(context, int) or r["max_length"] <= context, "recipe: max_length, context_length")
    need(not isinstance(longest, int) or r["max_length"] >= longest, "recipe: max_length, max_tokens")


def _steps(r: dict[str, Any], f: dict[str, Decimal], dataset: dict[str, Any]) -> None:
    rows = dataset.get("train_rows")
    if not isinstance(rows, int):
        return
    steps = r["epochs"] * -(-rows // (r["batch_size"] * r["gradient_accumulation_steps"]))
    need(round(float(r["warmup_ratio"]) * steps) < steps, "recipe: warmup_ratio")
    need(r["save_steps"] >= -(-steps // 64), "recipe: save_steps")
    need(r["eval_steps"] == 0 or r["eval_steps"] >= -(-steps // 256), "recipe: eval_steps")
    need((f["validation"] > 0) == (r["eval_steps"] > 0), "recipe: validation and eval_steps")


def _privacy(r: dict[str, Any], f: dict[str, Decimal], dataset: dict[str, Any], prefers: bool) -> None:
    privacy, rows = r["privacy"], dataset.get("train_rows")
    need(set(privacy) == {"noise", "clip", "epsilon", "delta"} and isinstance(rows, int), "recipe: privacy")
    p = {name: fraction(privacy, name) for name in privacy}
    need(r["method"] in ("qlora", "lora", "rslora", "lora-plus") and not prefers, "recipe: privacy, method")
    need(f["dropout"] == f["validation"] == r["early_stopping"] == 0 and r["processes"] == 1, "recipe: privacy")
    need(Decimal("0.2") <= p["noise"] <= 1000 and p["clip"] > 0, "recipe: noise and clip")
    need(p["delta"] > 0 and p["delta"] * rows < 1, "recipe: delta")
