"""Weights that were quantised once at import are, bit for bit, those that loading would make."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit

from appliance.errors import BadInput
from appliance.ml.inference.reading import read_fingerprint
from appliance.ml.model import machine
from appliance.ml.model.base import load_base
from appliance.ml.model.convert import convert_base
from appliance.ml.quantised import nf4 as blocks
from appliance.ml.quantised.nf4 import NF4_FILE, write_nf4
from scripts.kit.tiny_model import KINDS, SAMPLE_KINDS, build_base


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "bfloat16") for kind in KINDS), *((kind, "float32") for kind in SAMPLE_KINDS)]
)
def test_what_was_made_once_is_what_loading_makes(kind: str, dtype: str, tmp_path: Path) -> None:
    machine.use_determinism(1)
    folder = build_base(tmp_path / kind, kind)

    def read() -> tuple[object, torch.Tensor]:
        base = load_base(folder, quantisation="nf4-double", compute_dtype=dtype, device="cpu", own_layers=True)
        with torch.inference_mode():
            library = base.hidden(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
        return read_fingerprint(base), library

    expected = read()
    write_nf4(folder)
    got = read()
    if dtype == "bfloat16":
        assert got[0] == expected[0]
        assert torch.equal(got[1], expected[1]), "through the library's modules, too"
    else:
        # Weights that are widened before they are quantised can round to the neighbouring code.
        assert float((got[1] - expected[1]).abs().max()) < 0.1 * float(expected[1].abs().max())
        again = read()
        assert got[0] == again[0] and torch.equal(got[1], again[1]), "the same each time"


def test_an_import_makes_them_and_they_are_read_instead_of_the_weights(tmp_path: Path) -> None:
    source, output = build_base(tmp_path / "source"), tmp_path / "base"
    output.mkdir()
    convert_base(source, output)
    first = (output / NF4_FILE).read_bytes()
    (output / NF4_FILE).unlink()
    write_nf4(output)
    assert (output / NF4_FILE).read_bytes() == first, "the same bytes every time"
    base = load_base(output, quantisation="nf4-double", compute_dtype="bfloat16", device="cpu")
    weight = base.model.get_decoder().layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.uint8


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight", lambda one: one[:-32], "packed weights: expected 4096 of torch.uint8, got 4064 of torch.uint8"),
        ("weight", lambda one: one.float(), "packed weights: expected 4096 of torch.uint8, got 4096 of torch.float32"),
        ("weight.absmax", lambda one: one[:-1], "scales: expected 128 of torch.uint8, got 127 of torch.uint8"),
        ("weight.quant_map", lambda one: one[:8], "numbers: expected 16 of torch.float32, got 8 of torch.float32"),
        ("weight.nested_absmax", lambda one: one[:0], "scales of scales: expected 1 of torch.float32"),
        ("weight.nested_quant_map", lambda one: one[:9], "numbers of scales: expected 256 of torch.float32"),
    ],
)
def test_tensors_of_another_size_are_not_read(
    key: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    """Kernels read them by address: one that is too short would be read past its end."""
    folder, layer = build_base(tmp_path / "base"), "model.layers.0.mlp.up_proj"
    write_nf4(folder)
    stored = safetensors.torch.load_file(folder / NF4_FILE)
    stored[f"{layer}.{key}"] = change(stored[f"{layer}.{key}"]).contiguous()
    safetensors.torch.save_file(stored, folder / NF4_FILE, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=re.escape(f"{NF4_FILE}, {layer}, {message}")):
        load_base(folder, quantisation="nf4-double", compute_dtype="bfloat16", device="cpu")


def test_the_file_may_not_bring_what_is_no_linear_layer(tmp_path: Path) -> None:
    folder = build_base(tmp_path / "base")
    write_nf4(folder)
    stored = safetensors.torch.load_file(folder / NF4_FILE)
    stored["model.norm.weight"] = torch.zeros(64, dtype=torch.bfloat16)
    safetensors.torch.save_file(stored, folder / NF4_FILE, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"expected weights of linear layers, got 'model\.norm\.weight'"):
        load_base(folder, quantisation="nf4-double", compute_dtype="bfloat16", device="cpu")


def test_a_publisher_s_folder_may_not_bring_them(tmp_path: Path) -> None:
    source, output = build_base(tmp_path / "source"), tmp_path / "base"
    output.mkdir()
    write_nf4(source)
    own = (source / NF4_FILE).read_bytes()
    (source / NF4_FILE).write_bytes(own[:-8] + bytes(8))
    convert_base(source, output)
    assert (output / NF4_FILE).read_bytes() == own, "made anew"


@pytest.mark.parametrize("shape", [(96, 64), (96, 96), (128, 32), (33, 96), (31, 100), (5, 9218)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_its_number_times_the_scale_of_its_block(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Blocks run on from a row into the next: the library's kernel for the CPU began one at each row."""
    assert blocks.join_blocks, "the kernel is registered"
    packed, state = quantize_4bit(
        torch.randn(shape, dtype=dtype), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    numbers = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten().long()
    scales = (dequantize_blockwise(state.absmax, state.state2) + state.offset).repeat_interleave(64)
    expected = (state.code[numbers] * scales[: len(numbers)]).view(shape).to(dtype)
    assert torch.equal(dequantize_4bit(packed, state), expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_inputs_that_are_no_whole_number_of_blocks_are_multiplied_as_others(kind: str, tmp_path: Path) -> None:
    machine.use_determinism(1)
    folder = build_base(tmp_path / kind, kind, hidden_size=96, intermediate_size=160)

    def read(quantisation: str, *, own_layers: bool) -> torch.Tensor:
        base = load_base(
            folder, quantisation=quantisation, compute_dtype="bfloat16", device="cpu", own_layers=own_layers
        )
        return base.hidden_alone([5, 6, 7, 8]).detach().float()

    plain = read("none", own_layers=False)
    write_nf4(folder)
    nf4 = read("nf4-double", own_layers=False)
    assert float((nf4 - plain).norm() / plain.norm()) < 0.35
