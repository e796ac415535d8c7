"""Requests over several adapters in one batch, and an engine that keeps the logits of each."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch

from appliance.ml.inference.request import InferenceRequest
from appliance.ml.inference.sampling import Lookahead
from appliance.ml.model.base import LoadedBase
from appliance.ml.serving.engine import ServingEngine
from scripts.kit.tiny_model import RECIPE

MODULES = list(RECIPE["target_modules"])


def plain_adapter(
    base: LoadedBase, seed: int, rank: int, modules: list[str], scale: float = 0.1
) -> tuple[bytes, bytes]:
    """Return configuration and weights of an adapter of random numbers that are large enough to have an effect."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in base.model.named_modules():
        layer = getattr(module, "base", module)
        if name.rsplit(".", 1)[-1] in modules and hasattr(layer, "in_features"):
            key = f"base_model.model.{name.removesuffix('.base')}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator) * scale
            tensors[f"{key}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator) * scale
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": modules}
    return json.dumps(config).encode(), safetensors.torch.save(tensors)


class Watched(ServingEngine):
    """An engine that keeps the logits that each request's tokens were drawn from."""

    def __init__(self, base: LoadedBase, prompt_cache_bytes: int = 0) -> None:
        super().__init__(base, prompt_cache_bytes)
        self.seen: dict[str, list[torch.Tensor]] = {}
        self.widest = 0

    def _draw(self, row: Any, lookahead: Any) -> Any:
        if isinstance(lookahead, Lookahead):
            self.seen.setdefault(row.name, []).append(lookahead.logits.clone())
        return super()._draw(row, lookahead)

    def _compute(self, rows: Any) -> Any:
        self.widest = max(self.widest, len(rows))
        return super()._compute(rows)


def ask(text: str, **changes: Any) -> InferenceRequest:
    return InferenceRequest(({"role": "user", "content": text},), **{"max_tokens": 12, **changes})


def load_adapters(base: LoadedBase) -> Watched:
    """Three adapters: two of one family, one of another rank on other layers."""
    watched = Watched(base)
    for name, seed, rank, modules in (
        ("a", 1, 8, MODULES),
        ("b", 2, 6, MODULES),
        ("c", 3, 12, ["q_proj", "down_proj"]),
    ):
        watched.slots.load(name, *plain_adapter(base, seed, rank, modules))
    return watched


REQUESTED: dict[str, tuple[str | None, InferenceRequest]] = {
    "1": ("a", ask("pay", max_tokens=40)),
    "2": ("b", ask("pay and due in clause 3 " * 4, max_tokens=40)),
    "3": ("c", ask("secret", temperature=1.0, seed=5, max_tokens=30)),
    "4": ("a", ask("fee and fee in clause 12 " * 9, max_tokens=20)),
    "5": (None, ask("hidden and close", max_tokens=30)),
    "6": ("b", ask("expire", max_tokens=4)),
    "7": ("a", ask("end and end", temperature=0.7, top_p=0.9, seed=9, max_tokens=30)),
    "8": ("c", ask("cancel and price in clause 7 " * 3, max_tokens=25)),
    "9": ("b", ask("what is cut off in the middle", max_tokens=40)),
}


def answer_mixed(base: LoadedBase) -> Watched:
    """Answer requests that join and leave in the middle, one of them cancelled."""
    watched = load_adapters(base)
    joining = [["9", "1", "2"], ["3"], [], ["4", "5"], ["6", "7", "8"]]
    for step in range(80):
        for name in joining[step] if step < len(joining) else []:
            watched.start(name, *REQUESTED[name])
        if step == 22:
            watched.cancel("9")
        watched.step()
    assert not watched.busy
    assert watched.widest >= 8
    return watched


def check_alone(base: LoadedBase, mixed: Watched) -> None:
    """Answer each request of a mixed batch again, alone: its logits must have the same bits."""
    mixed.slots.remove()
    for name, (slot, request) in REQUESTED.items():
        alone = load_adapters(base)
        alone.start(name, slot, request)
        while alone.busy:
            alone.step()
        alone.slots.remove()
        got, expected = mixed.seen[name], alone.seen[name]
        assert len(got) == len(expected) or name == "9"
        assert all(same_bits(some, other) for some, other in zip(got, expected, strict=False)), name
    assert len({mixed.seen[name][0].sum().item() for name in REQUESTED}) == len(REQUESTED), (
        "each answers in its own way"
    )


def same_bits(some: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(some.view(torch.int32), other.view(torch.int32))
