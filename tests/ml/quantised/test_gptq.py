"""GPTQ's layout, read by the appliance and by an independent reader of the kit: the same weights, bit for bit."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.ml.quantised import linear
from appliance.ml.quantised.gptq import find_layers, parse_gptq
from appliance.ml.quantised.headers import Header
from appliance.ml.quantised.linear import GptqLinear, fits_few_rows, join_few_rows
from tests.kit.gptq import Packing, dequantise, pack

INPUTS, OUTPUTS = 192, 48
_NAMES = {torch.int32: "I32", torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}
PACKINGS = [
    Packing(bits, group, sym, order, form)
    for bits, group, sym, order, form in (
        (4, 32, True, False, "gptq"),
        (4, 64, False, False, "gptq_v2"),
        (4, 96, False, True, "gptq"),
        (4, -1, True, False, "gptq_v2"),
        (4, 12, False, False, "gptq"),
        (8, 32, True, True, "gptq"),
        (8, 64, False, False, "gptq_v2"),
        (8, 6, False, True, "gptq_v2"),
        (8, -1, False, False, "gptq"),
    )
]


def make_layer(
    packing: Packing, seed: int = 0, bias: bool = False, outputs: int = OUTPUTS
) -> tuple[GptqLinear, dict[str, torch.Tensor]]:
    weight = np.random.default_rng(seed).normal(0.05, 0.2, (outputs, INPUTS)).astype(np.float32)
    tensors = pack(weight, packing, seed)
    if bias:
        tensors["bias"] = torch.linspace(-1, 1, outputs).half()
    return load_layer(packing.settings, tensors), tensors


def load_layer(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> GptqLinear:
    headers = {f"x.{name}": Header(_NAMES[one.dtype], tuple(one.shape), "f") for name, one in tensors.items()}
    gptq = parse_gptq(settings, "settings")
    layer = GptqLinear(gptq, find_layers(gptq, headers)["x"], torch.bfloat16, torch.device("cpu"))
    layer.load_state_dict(tensors)
    return layer


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("chunk", [linear.CHUNK, 500])
def test_a_weight_is_its_scale_times_its_number_less_its_zero(
    packing: Packing, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact in float32, rounded once in bfloat16, in one piece and in many."""
    monkeypatch.setattr(linear, "CHUNK", chunk)
    layer, tensors = make_layer(packing)
    expected = dequantise(tensors, packing.bits, packing.checkpoint_format)
    assert torch.equal(layer.dequantise(torch.float32), expected)
    assert torch.equal(layer.dequantise(torch.bfloat16), expected.to(torch.bfloat16))


def test_the_versions_zeros_differ_by_one() -> None:
    layer, tensors = make_layer(Packing(checkpoint_format="gptq_v2"))
    other, _ = make_layer(Packing(checkpoint_format="gptq"))
    other.load_state_dict(tensors)
    scales = tensors["scales"].float().repeat_interleave(32, dim=0).t()
    assert torch.allclose(layer.dequantise(torch.float32) - other.dequantise(torch.float32), scales)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packing", PACKINGS[:4], ids=str)
def test_a_product_and_its_gradient_are_those_of_the_weight(packing: Packing, bias: bool) -> None:
    layer, _ = make_layer(packing, bias=bias)
    x = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = torch.nn.functional.linear(theirs, layer.dequantise(torch.bfloat16), layer.bias)
    made = layer(ours)
    for one, leaf in ((made, ours), (expected, theirs)):
        (one.float() ** 2).sum().backward()
        assert leaf.grad is not None
    assert torch.equal(made, expected)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    with torch.no_grad():
        assert torch.equal(layer(x), made)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packing", [one for one in PACKINGS if one.group_size not in (12, 6)], ids=str)
def test_few_rows_are_near_the_product_and_each_rows_bits_are_its_own(packing: Packing, bias: bool) -> None:
    """Alone, and among up to 70 others: the kernel works in blocks of rows."""
    layers = [make_layer(packing, seed, bias, outputs)[0] for seed, outputs in enumerate((64, 128, 48))]
    assert fits_few_rows(layers, torch.bfloat16)
    x = torch.randn(70, INPUTS, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = torch.cat([x.float() @ one.dequantise(torch.float32).t() for one in layers], dim=1)
    if bias:
        exact += torch.cat([one.bias.float() for one in layers])
    for count in (2, 3):
        product = join_few_rows(layers[:count])
        made, wanted = product(x), exact[:, : 192 if count == 2 else 240]
        assert (made.float() - wanted).abs().max() < 0.015 * wanted.abs().max()
        for start, stop in [(row, row + 1) for row in range(70)] + list(pairwise((0, 3, 7, 16, 33, 70))):
            assert torch.equal(product(x[start:stop]), made[start:stop])


def test_what_the_few_row_kernel_cannot_take_is_known_before() -> None:
    assert not fits_few_rows([make_layer(Packing(group_size=12))[0]], torch.bfloat16)
    assert not fits_few_rows([make_layer(Packing())[0]], torch.float32)
    assert not fits_few_rows([make_layer(Packing(), outputs=40)[0]], torch.bfloat16)
    assert not fits_few_rows([torch.nn.Linear(64, 64)], torch.bfloat16)


VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "gptq.json").read_text())
"""Made by tests/gptq/vectors.py; `origin` says with what."""


def _decode(value: dict[str, Any]) -> torch.Tensor:
    data = bytearray(base64.b64decode(value["data"]))
    return torch.frombuffer(data, dtype=getattr(torch, value["dtype"])).view(value["shape"])


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: "-".join(map(str, case["settings"].values())))
def test_weights_and_products_are_those_of_gptqmodels_torch_backend(case: dict[str, Any]) -> None:
    """Its weights are float16: ours, rounded to that, are the same bits."""
    assert case["layer"] == "TorchLinear"
    layer = load_layer(case["settings"], {name: _decode(one) for name, one in case["tensors"].items()})
    weight, x, output = (_decode(case[name]) for name in ("weight", "x", "output"))
    assert torch.equal(layer.dequantise(torch.float32).t().half(), weight)
    with torch.no_grad():
        assert torch.allclose(layer(x.float()), output.float(), rtol=2e-3, atol=2e-3 * output.abs().max().item())
