"""GPTQ folders made by the test: round-to-nearest with groups, packed by the published layout, number by number.

Nothing here is the appliance's: `dequantise` reads the layout a second time, in plain integers, and is what tests hold
the appliance's arithmetic against.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Packing:
    bits: int = 4
    group_size: int = 32
    sym: bool = True
    desc_act: bool = False
    checkpoint_format: str = "gptq"

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.__dict__, "quant_method": "gptq", "damp_percent": 0.01, "true_sequential": True}


def quantise_folder(source: Path, target: Path, packing: Packing, *, beside: bool = False) -> Path:
    """Pack every linear layer of the folder's decoder. `beside`: the settings are in quantize_config.json."""
    shutil.copytree(source, target)
    tensors = safetensors.torch.load_file(target / "model.safetensors")
    packed: dict[str, torch.Tensor] = {}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        if name.split(".")[-2] in MODULES and name.endswith(".weight"):
            layer = pack(tensor.float().numpy(), packing, seed=number)
            packed |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in layer.items()}
        else:
            packed[name] = tensor.to(torch.float16)
    safetensors.torch.save_file(packed, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    if beside:
        (target / "quantize_config.json").write_text(json.dumps(packing.settings))
    else:
        config["quantization_config"] = packing.settings
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    return target


def packed_twin(folder: Path) -> Path:
    """Pack the folder once with inputs grouped by activation, beside it."""
    twin = folder.parent / f"{folder.name}-gptq"
    return twin if twin.exists() else quantise_folder(folder, twin, Packing(desc_act=True))


def pack(weight: np.ndarray, packing: Packing, seed: int = 0) -> dict[str, torch.Tensor]:
    """qweight, qzeros, scales and g_idx of a weight [out, in]."""
    outputs, inputs = weight.shape
    size = inputs if packing.group_size == -1 else packing.group_size
    groups = inputs // size
    order = np.random.default_rng(seed).permutation(inputs) if packing.desc_act else np.arange(inputs)
    index = np.empty(inputs, dtype=np.int32)
    index[order] = np.arange(inputs) // size
    most = (1 << packing.bits) - 1
    scales, zeros = np.empty((groups, outputs), np.float16), np.empty((groups, outputs), np.int64)
    numbers = np.empty((inputs, outputs), np.int64)
    for group in range(groups):
        own = weight[:, index == group]
        low, high = np.minimum(own.min(1), 0), np.maximum(own.max(1), 0)
        if packing.sym:
            high = np.maximum(-low, high)
            low = -high
        scales[group] = np.maximum((high - low) / most, 1e-4)
        # Version 1 cannot say a zero of 0.
        least = 1 if packing.checkpoint_format == "gptq" else 0
        zeros[group] = (most + 1) // 2 if packing.sym else np.clip(np.rint(-low / scales[group]), least, most)
        rounded = np.rint(own / scales[group].astype(np.float32)[:, None]) + zeros[group][:, None]
        numbers[index == group] = np.clip(rounded, 0, most).astype(np.int64).T
    stored = zeros - 1 if packing.checkpoint_format == "gptq" else zeros
    return {
        "qweight": torch.from_numpy(_words(numbers.T, packing.bits).T.copy()),
        "qzeros": torch.from_numpy(_words(stored, packing.bits)),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(index),
    }


def _words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Rows of numbers as rows of 32-bit words, the first number in the lowest bits."""
    per = 32 // bits
    words = np.zeros((numbers.shape[0], numbers.shape[1] // per), np.uint64)
    for place in range(per):
        words |= numbers[:, place::per].astype(np.uint64) << np.uint64(place * bits)
    return words.astype(np.uint32).view(np.int32)


def dequantise(layer: dict[str, torch.Tensor], bits: int, checkpoint_format: str) -> torch.Tensor:
    """[out, in], float32: every weight by itself, in Python's integers."""
    words, zeros = layer["qweight"].tolist(), layer["qzeros"].tolist()
    scales, index = layer["scales"].double().tolist(), layer["g_idx"].tolist()
    per, outputs = 32 // bits, layer["qweight"].shape[1]
    made = torch.empty(outputs, len(index), dtype=torch.float64)
    for row, group in enumerate(index):
        for column in range(outputs):
            number = words[row // per][column] % (1 << 32) // (1 << bits * (row % per)) % (1 << bits)
            zero = zeros[group][column // per] % (1 << 32) // (1 << bits * (column % per)) % (1 << bits)
            if checkpoint_format == "gptq":
                zero += 1
            made[column, row] = scales[group][column] * (number - zero)
    return made.float()
