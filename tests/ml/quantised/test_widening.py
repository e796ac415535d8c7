"""FP8 and MXFP4 become bf16 at import: exactly where bf16 can, else rounded once, and the entry says which."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from appliance.errors import BadInput
from appliance.ml.model.base import load_base
from appliance.ml.model.convert import convert_base
from appliance.ml.model.folder import check_folder
from appliance.ml.quantised.widening import block_size, multiply_blocks, multiply_fp4, round_once, widen_folder
from tests.kit.gptq import MODULES

FP8: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def nearest_bf16(exact: Fraction) -> float:
    """To nearest, ties to even, by whole numbers: 8 bits of significand, the smallest exponent -133."""
    if not exact:
        return 0.0
    sign, size = (-1 if exact < 0 else 1), abs(exact)
    exponent = max(size.numerator.bit_length() - size.denominator.bit_length() - 8, -133)
    while size / Fraction(2) ** exponent >= 256:
        exponent += 1
    return float(sign * round(size / Fraction(2) ** exponent) * Fraction(2) ** exponent)


def test_a_product_is_rounded_once_to_nearest_even() -> None:
    """Also where float32 in between would round a second time: half a last place, and a little more or less."""
    generator = torch.Generator().manual_seed(1)
    halves = [(129 + 2 * n) * 2.0**-8 * (1 + near * 2.0**-40) for n in range(20) for near in (-1, 0, 1)]
    odd = [sign * one * 2.0**power for one in halves for sign in (1, -1) for power in (0, -60, 60, -126)]
    many = (torch.randn(4000, generator=generator, dtype=torch.float64) * 0.02).tolist()
    exact = torch.tensor([0.0, *odd, *many], dtype=torch.float64)
    made, rounded = round_once(exact)
    wanted = [nearest_bf16(Fraction(one)) for one in exact.tolist()]
    assert made.tolist() == wanted
    assert rounded == sum(one != want for one, want in zip(exact.tolist(), wanted, strict=True))
    twice = exact.float().to(torch.bfloat16)
    assert not torch.equal(made, twice), "the detour that this avoids makes a difference here"


@pytest.mark.parametrize(
    ("shape", "scales"), [((256, 384), (2, 3)), ((300, 200), (3, 2)), ((64, 96), (1, 1)), ((64, 96), (64, 1))]
)
@pytest.mark.parametrize("exact", [True, False])
def test_an_fp8_weight_is_its_number_times_its_blocks_scale(
    shape: tuple[int, int], scales: tuple[int, int], exact: bool
) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(scales, generator=generator) * 0.01 + 0.001
    if exact:
        scale = torch.exp2(torch.log2(scale).round())
    made, rounded = multiply_blocks(weight, scale)
    sides = [block_size(size, blocks) for size, blocks in zip(shape, scales, strict=True)]
    assert sides == {(2, 3): [128, 128], (3, 2): [128, 128], (1, 1): [64, 128], (64, 1): [1, 128]}[scales]
    numbers, factors = weight.float().tolist(), scale.tolist()
    for row in range(0, shape[0], 7):
        for column in range(0, shape[1], 5):
            product = Fraction(numbers[row][column]) * Fraction(factors[row // sides[0]][column // sides[1]])
            assert made[row, column].item() == nearest_bf16(product)
    assert (rounded == 0) == exact


def test_an_mxfp4_weight_is_what_transformers_makes_of_it() -> None:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (2, 6, 3, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 140, (2, 6, 3), generator=generator, dtype=torch.uint8)
    made, rounded = multiply_fp4(blocks, scales)
    assert made.shape == (2, 96, 6) and rounded == 0
    assert torch.equal(made, convert_moe_packed_tensors(blocks, scales))


def test_the_smallest_and_largest_scales_of_mxfp4_are_exact_or_refused() -> None:
    blocks = torch.full((1, 1, 1, 16), 0x17, dtype=torch.uint8)  # 6 and 0.5
    made, rounded = multiply_fp4(blocks, torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert rounded == 0 and made.unique().tolist() == [2.0**-128, 6 * 2.0**-127]
    assert not multiply_fp4(blocks, torch.full((1, 1, 1), 254, dtype=torch.uint8))[0].isfinite().all()
    with pytest.raises(BadInput, match="scales of MXFP4 below 255, got 255"):
        multiply_fp4(blocks, torch.full((1, 1, 1), 255, dtype=torch.uint8))


Tensors = dict[str, torch.Tensor]


def make_fp8(source: Path, target: Path, kind: str = "block", **settings: Any) -> tuple[Path, Tensors]:
    """Write the folder with its decoder's linear layers in FP8, in two shards, scales apart from weights.

    Return it with the weights that a reader computes in float64.
    """
    shutil.copytree(source, target)
    tensors = safetensors.torch.load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    first: Tensors = {}
    second: Tensors = {}
    wanted: Tensors = {}
    for name, tensor in tensors.items():
        if name.split(".")[-2] not in MODULES or not name.endswith(".weight"):
            first[name] = wanted[name] = tensor
            continue
        scale = (tensor.float().abs().amax() / 448).reshape(1, 1) if kind == "block" else None
        if kind == "tensor":
            scale = (tensor.float().abs().amax() / 448).reshape(())
        elif kind == "row":
            scale = tensor.float().abs().amax(1, keepdim=True) / 448
        assert scale is not None
        first[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        second[f"{name}_scale_inv" if kind == "block" else f"{name}_scale"] = scale
        if kind == "tensor":
            second[name.replace("weight", "input_scale")] = torch.ones(())
        wanted[name] = (first[name].double() * scale.double()).to(torch.bfloat16)
    files = {f"model-0000{place}-of-00002.safetensors": one for place, one in ((1, first), (2, second))}
    for file, one in files.items():
        safetensors.torch.save_file(one, target / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, one in files.items() for name in one}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {**FP8, **settings}
    (target / "config.json").write_text(json.dumps(config))
    return target, wanted


@pytest.mark.parametrize("kind", ["block", "tensor", "row"])
def test_an_fp8_folder_is_imported_as_a_plain_one_in_bf16(base_folder: Path, tmp_path: Path, kind: str) -> None:
    source, wanted = make_fp8(base_folder, tmp_path / "fp8", kind)
    output = tmp_path / "output"
    output.mkdir()
    facts = convert_base(source, output)
    assert (facts["dtype"], facts["quantisation"]) == ("bfloat16", "none")
    (said,) = facts["warnings"]
    count = sum(wanted[name].numel() for name in wanted if name.split(".")[-2] in MODULES)
    assert said.startswith("the weights were fp8 in the publisher's files and were made bfloat16: ")
    assert said.endswith(f" of {count} weights were rounded, to nearest even")
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    found: Tensors = {}
    for path in sorted(output.glob("model*.safetensors")):
        found |= safetensors.torch.load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == torch.bfloat16
        assert (found[name].double() - tensor.double()).abs().max() <= 2.0**-8 * tensor.double().abs().max(), name
    base = load_base(output, quantisation="nf4-double", compute_dtype="float32", device="cpu")
    assert base.model.config.num_hidden_layers == 2
    check_folder(output, sealed=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (output / name).read_bytes() == (source / name).read_bytes()


def test_scales_that_are_powers_of_two_lose_nothing_and_the_entry_says_so(base_folder: Path, tmp_path: Path) -> None:
    source, _ = make_fp8(base_folder, tmp_path / "fp8")
    path = source / "model-00002-of-00002.safetensors"
    scales = {name: torch.exp2(one.log2().ceil()) for name, one in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(scales, path, metadata={"format": "pt"})
    (tmp_path / "output").mkdir()
    (said,) = convert_base(source, tmp_path / "output")["warnings"]
    assert said.endswith("made bfloat16: every weight is exact")


NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("no-scale", f"{NAME}: expected one of {NAME}_scale_inv, {NAME}_scale beside it, got 0"),
        ("scale-dtype", f"{NAME}_scale_inv: expected F32, BF16 or F16, got I32"),
        ("scale-shape", f"{NAME}_scale_inv: expected blocks that divide {NAME}.*got F32"),
        ("scale-alone", r"other.weight_scale_inv: expected it beside a weight in F8_E4M3"),
        ("other-fp8", r"other.weight: expected it beside a weight in F8_E4M3, got F8_E5M2"),
        ("scale-inf", f"{NAME}: expected finite numbers in bfloat16"),
        ("number-nan", f"{NAME}: expected finite numbers in bfloat16"),
        ("nothing", "expected tensors in fp8, as config.json says, got none"),
    ],
)
def test_an_fp8_folder_that_does_not_fit_is_refused_by_tensor(
    base_folder: Path, tmp_path: Path, spoil: str, message: str
) -> None:
    source, _ = make_fp8(base_folder, tmp_path / "fp8")
    weights, scales = (source / f"model-0000{place}-of-00002.safetensors" for place in (1, 2))
    tensors, factors = safetensors.torch.load_file(weights), safetensors.torch.load_file(scales)
    scale = f"{NAME}_scale_inv"
    if spoil == "no-scale":
        del factors[scale]
    elif spoil == "scale-dtype":
        factors[scale] = torch.ones(1, 1, dtype=torch.int32)
    elif spoil == "scale-shape":
        factors[scale] = torch.ones(9, 63)
    elif spoil == "scale-alone":
        factors["other.weight_scale_inv"] = torch.ones(1, 1)
    elif spoil == "other-fp8":
        tensors["other.weight"] = torch.ones(2, 2).to(torch.float8_e5m2)
    elif spoil == "scale-inf":
        factors[scale] = torch.full((1, 1), float("inf"))
    elif spoil == "number-nan":
        tensors[NAME].view(torch.uint8)[0, 0] = 0x7F
    elif spoil == "nothing":
        tensors = {n: t.to(torch.bfloat16) for n, t in tensors.items()}
        factors = {"more": torch.ones(1)}
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    safetensors.torch.save_file(factors, scales, metadata={"format": "pt"})
    named = dict.fromkeys(tensors, weights.name) | dict.fromkeys(factors, scales.name)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    (tmp_path / "output").mkdir()
    with pytest.raises(BadInput, match=message):
        convert_base(source, tmp_path / "output")


def test_a_sealed_folder_is_never_fp8(base_folder: Path, tmp_path: Path) -> None:
    source, _ = make_fp8(base_folder, tmp_path / "fp8")
    with pytest.raises(BadInput, match=r"config.json: expected weights that an import has made bf16, got fp8"):
        load_base(source, quantisation="none", compute_dtype="float32", device="cpu")


def test_experts_in_mxfp4_are_written_as_transformers_has_them(tmp_path: Path) -> None:
    """The tensors alone: an architecture with experts is refused or covered elsewhere."""
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    generator = torch.Generator().manual_seed(4)
    experts = "model.layers.0.mlp.experts"
    tensors = {
        f"{experts}.gate_up_proj_blocks": torch.randint(0, 256, (2, 8, 2, 16), generator=generator, dtype=torch.uint8),
        f"{experts}.gate_up_proj_scales": torch.randint(110, 130, (2, 8, 2), generator=generator, dtype=torch.uint8),
        f"{experts}.gate_up_proj_bias": torch.randn(2, 8, generator=generator).to(torch.bfloat16),
        "model.embed_tokens.weight": torch.randn(5, 64, generator=generator).to(torch.bfloat16),
        "model.odd": torch.arange(3, dtype=torch.uint8),
    }
    safetensors.torch.save_file(tensors, source / "model.safetensors")
    (source / "config.json").write_text(
        json.dumps({"quantization_config": {"quant_method": "mxfp4"}, "torch_dtype": "x"})
    )
    said = widen_folder(source, output, ["model.safetensors"], "mxfp4")
    assert said == "the weights were mxfp4 in the publisher's files and were made bfloat16: every weight is exact"
    found = safetensors.torch.load_file(output / "model.safetensors")
    made = convert_moe_packed_tensors(*(tensors[f"{experts}.gate_up_proj_{part}"] for part in ("blocks", "scales")))
    assert found.keys() == {
        f"{experts}.gate_up_proj",
        f"{experts}.gate_up_proj_bias",
        "model.embed_tokens.weight",
        "model.odd",
    }
    assert torch.equal(found.pop(f"{experts}.gate_up_proj"), made)
    assert all(torch.equal(one, tensors[name]) for name, one in found.items())
    assert json.loads((output / "config.json").read_text()) == {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        ((2, 8, 2, 15), (2, 8, 2), r"x_blocks: expected U8 \[experts, rows, blocks, 16\], got U8"),
        ((2, 8, 2, 16), (2, 8, 3), r"x_scales: expected U8 \[2, 8, 2\], got U8 \[2, 8, 3\]"),
        ((2, 8, 2, 16), None, r"x_scales: expected U8 \[2, 8, 2\], got none"),
        (None, (2, 8, 2), "x_scales: expected it beside x_blocks, got it alone"),
    ],
)
def test_mxfp4_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, blocks: tuple[int, ...] | None, scales: tuple[int, ...] | None, message: str
) -> None:
    shapes = {"x_blocks": blocks, "x_scales": scales}
    tensors = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in shapes.items() if shape}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=message):
        widen_folder(tmp_path, tmp_path, ["model.safetensors"], "mxfp4")
