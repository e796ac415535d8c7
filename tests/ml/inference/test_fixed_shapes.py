"""On a GPU the shapes of a step's sums and products do not depend on the batch: they choose a library's kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from appliance.ml.inference import adapters, cache, sampling, stepping
from appliance.ml.inference.lora import Stacks
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.serving import engine
from tests.kit.mixes import answer_mixed, check_alone

aten = torch.ops.aten
# Whose result's bits may depend on the shape of what is summed.
SUMS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mean, aten.sum, aten.linear, aten.matmul, aten.softmax}


class Shapes(TorchDispatchMode):
    """Every sum and product, with its tensors' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, tuple[tuple[int, ...], ...]]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.overloadpacket in SUMS:
            shapes = tuple(tuple(one.shape) for one in arguments if isinstance(one, torch.Tensor))
            self.seen.add((str(function), shapes))
        return function(*arguments, **(named or {}))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches laid out as on a GPU, in small pieces."""
    monkeypatch.setattr(engine, "PROMPT_CHUNK", 40)
    monkeypatch.setattr(adapters, "RowLayout", lambda groups, dtype: Stacks(groups, "cpu"))
    monkeypatch.setattr(cache, "BLOCK", 16)
    monkeypatch.setattr(cache, "_FIRST_BLOCKS", 1)
    made = cache.Cache.__init__

    def make(self: Any, *arguments: Any) -> None:
        made(self, *arguments)
        self.step = 4

    monkeypatch.setattr(cache.Cache, "__init__", make)


@pytest.mark.thorough
@pytest.mark.parametrize(("quantisation", "dtype"), [("nf4-double", "bfloat16"), ("none", "float32")])
def test_a_step_s_sums_have_the_same_shapes_and_bits_alone_and_in_a_mixed_batch(
    base_folder: Path, quantisation: str, dtype: str, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.use_determinism(0)
    base = load_base(base_folder, quantisation=quantisation, compute_dtype=dtype, device="cpu", own_layers=True)
    shapes = Shapes()
    read = sampling.read_drawn

    def recorded(*arguments: Any) -> torch.Tensor:
        with shapes:
            return read(*arguments)

    monkeypatch.setattr(engine, "read_drawn", recorded)
    mixed = answer_mixed(base)
    of_mixed, shapes.seen = shapes.seen, set()
    check_alone(base, mixed)
    assert any("bmm" in name for name, _ in of_mixed)
    assert shapes.seen == of_mixed


def test_without_fixed_blocks_the_shapes_would_differ(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would see."""
    shapes = Shapes()
    for count in (1, 5):
        held = [cache.RequestCache() for _ in range(count)]
        kept = cache.Cache("cpu", 4096)
        for one in held:
            kept.reserve(one, 100)
            one.length = 90
        found = cache.DecodeAttention(kept, held)
        heads = torch.ones(count, 4, 16)
        with shapes:
            found.read(0, heads, heads[:, :2], heads[:, :2], cache.Scoring(1.0))
    assert len({shape for name, shape in shapes.seen if name == "aten.bmm.default"}) == 2


def test_joined_4_bit_layers_multiply_as_each_does_and_are_joined_once(base_folder: Path) -> None:
    base = load_base(base_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu", own_layers=True)
    attention = base.model.get_decoder().layers[0].self_attn
    modules = [attention.q_proj, attention.k_proj, attention.v_proj]
    pointers = [module.weight.data_ptr() for module in modules]
    x = torch.randn(5, 64)
    got = stepping._dequantise(modules)(x)
    assert [module.weight.data_ptr() for module in modules] == pointers, "the reader has joined them"
    expected = [
        x @ bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).T
        for module in modules
    ]
    assert torch.allclose(got, torch.cat(expected, dim=1), atol=1e-5)
