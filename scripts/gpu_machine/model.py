"""Random models of Llama's shape, made on the spot: their size costs time and memory, whatever their weights are."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import torch

from scripts.kit.random_llama import BILLION, Shape, build_llama
from scripts.kit.tiny_model import SPECIAL, TEMPLATE, WORDS, build_tokenizer

SHAPES = {
    "tiny": (Shape(layers=2, hidden=64, inner=128, heads=4, key_heads=2, context=2048), 512),
    "1b": (BILLION, 32_000),
    "8b": (Shape(layers=32, hidden=4096, inner=14_336, heads=32, key_heads=8, context=8192), 128_256),
}
"""Each with the size of its vocabulary. `1b` is TinyLlama's shape, 1.1 billion parameters; `8b` is that of Llama 3, 8.0
billion."""


def make_base(folder: Path, name: str, device: str) -> Path:
    """Draw a base's folder on the device, as an import leaves it."""
    shape, words = SHAPES[name]
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    _make_tokenizer(tokenizer, words)
    build_llama(folder, tokenizer, shape, device)
    shutil.rmtree(tokenizer)
    if device == "cuda":
        torch.cuda.empty_cache()  # The card's memory is for those that are measured.
    return folder


def _make_tokenizer(folder: Path, words: int) -> None:
    """Write the tests' tokenizer with as many words as the model has. The added words have no text."""
    folder.mkdir()
    stated = json.loads(build_tokenizer().to_str())
    vocabulary: dict[str, int] = stated["model"]["vocab"]
    vocabulary |= {f"<unused {number}>": number for number in range(len(vocabulary), words)}
    (folder / "tokenizer.json").write_text(json.dumps(stated, ensure_ascii=False), encoding="utf-8")
    special = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(folder / "tokenizer_config.json", special)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _write_json(folder / "config.json", {"vocab_size": words, **ids})


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
