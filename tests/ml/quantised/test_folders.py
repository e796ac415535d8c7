"""A GPTQ folder is imported as it is and loaded without a library; what does not fit is refused by its tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from appliance.errors import BadInput
from appliance.ml.model import convert, machine
from appliance.ml.model.base import load_base
from appliance.ml.model.convert import convert_base
from appliance.ml.model.folder import check_folder
from appliance.ml.quantised.linear import GptqLinear
from scripts.kit.tiny_model import build_base
from tests.kit.gptq import MODULES, Packing, dequantise, quantise_folder

LAYER = "model.layers.1.mlp.up_proj"
Tensors = dict[str, torch.Tensor]


def imported(folder: Path, output: Path) -> dict[str, Any]:
    output.mkdir()
    return convert_base(folder, output)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_gptq_folder_is_imported_as_it_is(tmp_path: Path, kind: str, beside: bool) -> None:
    packing = Packing(8, 64, False, True, "gptq_v2")
    source = quantise_folder(build_base(tmp_path / "base", kind), tmp_path / "gptq", packing, beside=beside)
    plain, facts = imported(tmp_path / "base", tmp_path / "one"), imported(source, tmp_path / "two")
    assert (plain["quantisation"], facts["quantisation"]) == ("none", "gptq")
    assert facts["gptq"] == {
        "bits": 8, "group_size": 64, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"
    }  # fmt: skip
    assert (facts["parameters"], facts["shape"]) == (plain["parameters"], plain["shape"])
    for path in source.iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_answers_as_its_dequantised_twin(tmp_path: Path, kind: str, dtype: str) -> None:
    """The twin is a plain folder of the weights that the kit reads out of the packed ones."""
    machine.use_determinism(0)
    packing = Packing(desc_act=True)
    source = quantise_folder(build_base(tmp_path / "base", kind), tmp_path / "gptq", packing)
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    names = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    assert len(names) == 2 * len(MODULES)
    plain = {name: one.float() for name, one in tensors.items() if name.rpartition(".")[0] not in names}
    for name in names:
        layer = {part: tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        plain[f"{name}.weight"] = dequantise(layer, 4, "gptq")
        if f"{name}.bias" in tensors:
            plain[f"{name}.bias"] = tensors[f"{name}.bias"].float()
    twin = Path(shutil.copytree(tmp_path / "base", tmp_path / "twin"))
    safetensors.torch.save_file(plain, twin / "model.safetensors", metadata={"format": "pt"})
    ids = torch.arange(5, 45)[None]
    ours = load_base(source, quantisation="gptq", compute_dtype=dtype, device="cpu")
    theirs = load_base(twin, quantisation="none", compute_dtype=dtype, device="cpu")
    assert sum(isinstance(module, GptqLinear) for module in ours.model.modules()) == len(names)
    with torch.no_grad():
        one, other = (base.hidden(input_ids=ids, use_cache=False).float() for base in (ours, theirs))
    tolerance = 1e-5 if dtype == "float32" else 0.03
    assert (one - other).abs().max() <= tolerance * other.abs().max()


def test_a_folder_is_loaded_as_what_it_is(gptq_folder: Path, base_folder: Path) -> None:
    with pytest.raises(BadInput, match="quantisation: expected weights for nf4-double, got a folder in GPTQ"):
        load_base(gptq_folder, quantisation="nf4-double", compute_dtype="float32", device="cpu")
    with pytest.raises(BadInput, match="quantisation: expected weights for gptq, got a folder without it"):
        load_base(base_folder, quantisation="gptq", compute_dtype="float32", device="cpu")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"bits": 3}, "quantization_config, bits: expected 4 or 8, got 3"),
    "bits-text": ({"bits": "4"}, "bits: expected 4 or 8, got '4'"),
    "group": ({"group_size": 0}, "group_size: expected -1 or a whole number above 0, got 0"),
    "divides": ({"group_size": 48}, r"qweight: expected a number of inputs that group_size 48 divides, got (64|128)"),
    "format": ({"checkpoint_format": "marlin"}, "checkpoint_format: expected gptq or gptq_v2, got 'marlin'"),
    "format-list": ({"checkpoint_format": []}, "checkpoint_format: expected gptq or gptq_v2, got "),
    "method-object": ({"quant_method": {}}, "quant_method: .*got {}"),
    "dynamic": ({"dynamic": {"+:.*q_proj": {"bits": 8}}}, "dynamic: expected one setting for all layers"),
    "head": ({"lm_head": True}, "lm_head: expected one setting"),
    "words": ({"pack_dtype": "int16"}, "pack_dtype: expected .*int32"),
    "order": ({"desc_act": 1}, "desc_act: expected true or false, got 1"),
    "awq": ({"quant_method": "awq"}, "quant_method: .*got 'awq': bring the model's original bf16 or fp16 weights"),
    "bnb": ({"quant_method": "bitsandbytes"}, "quant_method: .*got 'bitsandbytes': bring"),
    "none": ({"quant_method": None}, "quant_method: .*got None"),
    "other-bits": ({"bits": 8}, r"expected dimensions of the weights that are there"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_not_covered_are_refused_before_anything_is_written(
    gptq_folder: Path, tmp_path: Path, case: str
) -> None:
    changes, message = SETTINGS[case]
    folder = Path(shutil.copytree(gptq_folder, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=message):
        imported(folder, tmp_path / "output")
    assert not list((tmp_path / "output").iterdir())


def _edit(part: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        made = change(tensors.pop(f"{LAYER}.{part}"))
        if made is not None:
            tensors[f"{LAYER}.{part}"] = made

    return edit


def _fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def fill(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[7] = value
        return tensor

    return fill


TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "no-index": (_edit("g_idx", lambda t: None), "g_idx: expected this tensor, since desc_act is true, got none"),
    "no-zeros": (_edit("qzeros", lambda t: None), "qzeros: expected this tensor beside the layer's others, got none"),
    "no-scales": (_edit("scales", lambda t: None), "scales: expected this tensor"),
    "no-weight": (_edit("qweight", lambda t: None), "qweight: expected this tensor"),
    "weight-dtype": (_edit("qweight", lambda t: t.float()), r"qweight: expected I32 \[any, any\], got F32"),
    "zeros-shape": (_edit("qzeros", lambda t: t[:1].clone()), r"qzeros: expected I32 \[2, 16\], got I32 \[1, 16\]"),
    "scales-dtype": (_edit("scales", lambda t: t.int()), r"scales: expected F16 or BF16 or F32 \[2, 128\], got I32"),
    "scales-shape": (_edit("scales", lambda t: t.t().contiguous()), r"scales: expected .* got F16 \[128, 2\]"),
    "index-shape": (_edit("g_idx", lambda t: t[:-1].clone()), r"g_idx: expected I32 \[64\]"),
    "index-high": (_edit("g_idx", _fill(2)), r"up_proj.g_idx: expected groups from 0 to 1, got 2"),
    "index-low": (_edit("g_idx", _fill(-1)), r"up_proj.g_idx: expected groups from 0 to 1, got -1"),
    "index-count": (_edit("g_idx", lambda t: t * 0), "g_idx: expected 32 inputs in group 0, got 64"),
    "zeros-range": (_edit("qzeros", _fill(0x7F777777)), "qzeros: expected stored zeros of 0 to 14 .*, got 15"),
    "scales-nan": (_edit("scales", _fill(float("nan"))), "up_proj.scales: expected finite numbers"),
    "both": (lambda t: t.update({f"{LAYER}.weight": torch.zeros(128, 64)}), "weight: expected no weight beside"),
    "unknown": (
        lambda t: t.update({n.replace("1.mlp.up", "7.mlp.up"): v.clone() for n, v in t.items() if LAYER in n}),
        "layers.7.mlp.up_proj.qweight: expected a linear layer of the decoder, got none",
    ),
    "narrow": (_edit("qweight", lambda t: t[:4].clone()), "up_proj.qzeros: expected"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(gptq_folder: Path, tmp_path: Path, case: str) -> None:
    edit, message = TENSORS[case]
    folder = Path(shutil.copytree(gptq_folder, tmp_path / "base"))
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=message):
        imported(folder, tmp_path / "output")
    if case != "unknown":
        assert not list((tmp_path / "output").iterdir())


def test_two_files_that_say_different_settings_are_refused(gptq_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gptq_folder, tmp_path / "base"))
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 64, "desc_act": True}))
    with pytest.raises(BadInput, match=r"quantize_config.json: expected what config.json says, .*group=32"):
        check_folder(folder)


def _shard(folder: Path) -> tuple[Path, dict[str, str]]:
    """Write the folder's weights as two shards and an index."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    named = {name: files[place % 2] for place, name in enumerate(sorted(tensors))}
    for file in files:
        own = {name: one for name, one in tensors.items() if named[name] == file}
        safetensors.torch.save_file(own, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": named}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / files[1], named


def test_a_layer_may_lie_in_two_shards(gptq_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gptq_folder, tmp_path / "base"))
    _shard(folder)
    imported(folder, tmp_path / "output")
    one, other = (
        load_base(place, quantisation="gptq", compute_dtype="float32", device="cpu").model.model.layers[1].mlp.up_proj
        for place in (tmp_path / "output", gptq_folder)
    )
    assert torch.equal(one.dequantise(torch.float32), other.dequantise(torch.float32))


@pytest.mark.parametrize("spoil", ["overlap", "lack", "elsewhere", "cut", "unlisted"])
def test_shards_that_overlap_or_lack_a_tensor_are_refused_by_name(
    base_folder: Path, tmp_path: Path, spoil: str
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    path, named = _shard(folder)
    tensors = safetensors.torch.load_file(path)
    first, last = sorted(named)[0], sorted(tensors)[-1]
    if spoil == "overlap":
        tensors[first] = torch.zeros(1)
    elif spoil in ("lack", "elsewhere"):
        del tensors[last]
    elif spoil == "unlisted":
        tensors["more"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    messages = {
        "overlap": f"{first}: expected this tensor in one file, got it in model-00001.* and model-00002",
        "lack": f"{last}: expected it in 'model-00002.*got none that has it",
        "elsewhere": f"{last}: expected it in 'model-00002.*got none that has it",
        "cut": r"expected \d+ bytes of tensors in model-00002.*: the file is not whole",
        "unlisted": "more: expected it in model.safetensors.index.json",
    }
    with pytest.raises(BadInput, match=messages[spoil]):
        check_folder(folder)


def _write_header(path: Path, members: dict[str, Any], size: int) -> None:
    data = json.dumps(members).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(size))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, "a in model.safetensors: expected a dtype of"),
        ({"a": {"dtype": ["U8"], "shape": [2], "data_offsets": [0, 2]}}, "a in .*expected a dtype of"),
        ({"a": {"dtype": "U8", "shape": [-2], "data_offsets": [0, 2]}}, "a in .*expected a shape and two offsets"),
        ({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 2]}}, r"a in .*expected 3 bytes of U8 \[3\], got"),
        ({"a": [1]}, "a in .*expected a dtype"),
        (
            {
                "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
                "b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]},
            },
            "b in .*tensors that overlap",
        ),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, "a in .*tensors with a gap before it"),
    ],
)  # fmt: skip
def test_a_header_that_is_no_layout_of_the_file_is_refused(
    base_folder: Path, tmp_path: Path, members: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    _write_header(folder / "model.safetensors", members, 1 << 20 if "F4" in str(members) else 8)
    monkeypatch.setattr("appliance.ml.model.folder.check_weights", lambda *_: None)
    with pytest.raises(BadInput, match=message):
        check_folder(folder)


def test_what_changed_under_the_import_is_checked_again(
    gptq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(gptq_folder, tmp_path / "base"))
    copy = convert._copy_file

    def spoil(source: Path, target: Path) -> None:
        copy(source, target)
        if target.name == "model.safetensors":
            tensors = safetensors.torch.load_file(target)
            tensors[f"{LAYER}.g_idx"] *= 0
            safetensors.torch.save_file(tensors, target, metadata={"format": "pt"})

    monkeypatch.setattr(convert, "_copy_file", spoil)
    with pytest.raises(BadInput, match="g_idx: expected 32 inputs in group 0, got 64"):
        imported(folder, tmp_path / "output")
