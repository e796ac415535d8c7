"""A step through all layers in one kernel call: the values of the layers in torch, and bits that do not depend on the
batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bitsandbytes
import pytest
import torch

from appliance.ml.inference.adapters import AdapterSlots
from appliance.ml.inference.cache import Cache, DecodeAttention, RequestCache
from appliance.ml.inference.stepping import Stepper
from appliance.ml.layers.packing import find_longest_short
from appliance.ml.model import machine
from appliance.ml.model.base import LoadedBase
from appliance.ml.quantised import kernels
from appliance.ml.serving.engine import MAX_ROWS
from scripts.kit.tiny_model import KINDS, build_model
from tests.kit.mixes import MODULES, plain_adapter
from tests.ml.quantised.test_product import needs_kernel, way  # noqa: F401 # a fixture

STEPS = 20
"""Across the window (8), longrope's first length (16) and a block of the cache."""
ROWS: list[tuple[str | None, int]] = [("a", 3), (None, 50), ("b", 60), ("a", 70), ("wide", 90)]
"""Each row's slot and first token."""


def _slots(kind: str, gate: float = 1) -> AdapterSlots:
    """Over NF4 layers in bf16, with adapters on the layers that have the usual names; the weights of every gate times
    `gate`."""
    machine.use_determinism(3)
    model = build_model(kind).eval().requires_grad_(False).to(torch.bfloat16)
    head = model.get_output_embeddings()
    linears = [(name, one) for name, one in model.named_modules() if type(one) is torch.nn.Linear and one is not head]
    for name, linear in linears:
        linear.weight.mul_(gate if name.endswith("gate_proj") else 1)
        model.set_submodule(name, _quantise(linear))
    base = LoadedBase(model, None, "cpu")  # type: ignore[arg-type]
    slots = AdapterSlots(base)
    names = [name for name in (*MODULES, "qkv_proj", "input_linear") if any(one.endswith(name) for one, _ in linears)]
    for slot, rank in (("a", 6), ("b", 16), ("wide", 70)):
        slots.load(slot, *plain_adapter(base, rank, rank, names))
    return slots


def _quantise(linear: torch.nn.Linear) -> Any:
    has_bias = linear.bias is not None
    made = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, has_bias, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    made.load_state_dict(linear.state_dict())
    return made.requires_grad_(False).to("cpu").eval()


@torch.inference_mode()
def _draw(slots: AdapterSlots, rows: Sequence[tuple[str | None, int]], *, fused: bool = True) -> list[torch.Tensor]:
    """[rows, hidden] of each step: a row's tokens count up from its first."""
    stepper, longest = slots.stepper, find_longest_short(slots._model.config)
    assert stepper is not None
    assert stepper._fused is not None
    # A request before them: no row's blocks begin with the first.
    cache, before, found = Cache("cpu", 8_192), RequestCache(), []
    cache.reserve(before, 1)
    held = [RequestCache() for _ in rows]
    with slots.mixing([slot for slot, _ in rows]), pytest.MonkeyPatch.context() as patch:
        if not fused:
            patch.setitem(stepper.__dict__, "_fused", None)
        for step in range(STEPS):
            ids, places = [first + step for _, first in rows], [one.length for one in held]
            for one in held:
                one.long = longest is not None and step > longest
            assert slots.mix is not None
            found.append(stepper.read(ids, places, DecodeAttention(cache, held), slots.mix))
            for one in held:
                one.length += 1
    return found


def _compare_alone(slots: AdapterSlots, rows: Sequence[tuple[str | None, int]], threads: int) -> None:
    """Each row's bits alone are those in a batch with the others, in so many threads."""
    alone = [_draw(slots, [row]) for row in rows]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = _draw(slots, rows)
    finally:
        torch.set_num_threads(before)
    for step, hidden in enumerate(together):
        for row, own in enumerate(alone):
            assert torch.equal(hidden[row], own[step][0]), (row, step)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.ml.inference.cache.BLOCK", 16)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_layers_in_torch(kind: str) -> None:
    slots = _slots(kind)
    expected = _draw(slots, ROWS, fused=False)
    for step, (some, other) in enumerate(zip(_draw(slots, ROWS), expected, strict=True)):
        # Inputs of products are rounded to bf16, 2^-9 of each number.
        assert (some - other).norm() <= 0.02 * other.norm(), step


@needs_kernel
def test_layers_turn_as_many_numbers_as_their_own_angles_have(monkeypatch: pytest.MonkeyPatch) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    name, own = KINDS["gemma3"]
    monkeypatch.setitem(KINDS, "gemma3", (name, {**own, "rope_parameters": ropes}))
    slots = _slots("gemma3")
    for some, other in zip(_draw(slots, ROWS), _draw(slots, ROWS, fused=False), strict=True):
        assert (some - other).norm() <= 0.02 * other.norm()


@needs_kernel
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_gate_far_from_0_is_shut_or_open(kind: str) -> None:
    slots = _slots(kind, gate=1e5)
    for some, other in zip(_draw(slots, ROWS[:2]), _draw(slots, ROWS[:2], fused=False), strict=True):
        assert bool(some.isfinite().all())
        assert (some - other).norm() <= 0.02 * other.norm()


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_alone_and_in_a_batch_with_any_threads(threads: int) -> None:
    slots = _slots("gemma3")
    _compare_alone(slots, ROWS, threads)


@pytest.mark.usefixtures("way")
@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [15, 16, 17, 31, MAX_ROWS])
def test_a_row_has_the_same_bits_in_a_batch_of_any_size(
    count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By tiles, products of more than 16 rows take more room than those of fewer."""
    monkeypatch.setattr(f"{__name__}.STEPS", 3)
    slots = _slots("llama")
    rows = [(("a", None, "b", "wide")[place % 4], 3 + place) for place in range(count)]
    _compare_alone(slots, rows, threads)


@needs_kernel
def test_a_row_that_is_no_number_changes_no_other() -> None:
    slots = _slots("llama")
    expected = _draw(slots, ROWS)
    weights = slots.find("wide").weights
    for pair in weights.values():
        pair[1].fill_(float("nan"))
    slots._last_layout = None
    slots._layout.forget("wide")
    for some, other in zip(_draw(slots, ROWS), expected, strict=True):
        assert torch.equal(some[:-1], other[:-1])
        assert bool(some[-1].isnan().all())


@needs_kernel
def test_layers_of_another_form_are_left_to_torch() -> None:
    machine.use_determinism(3)
    assert Stepper(build_model("llama").to(torch.bfloat16), _architecture("llama"))._fused is None


def _architecture(kind: str) -> Any:
    from appliance.ml.layers.architecture import find_architecture

    return find_architecture(build_model(kind))


def test_kernels_of_another_source_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.errors import Unavailable

    monkeypatch.setattr(kernels, "VERSION", kernels.VERSION + 1)
    kernels.load_kernels.cache_clear()
    with pytest.raises(Unavailable, match="compile them again"):
        kernels.load_kernels()
    kernels.load_kernels.cache_clear()
